"""The network on one's own pictures: Python, command line, web page, export."""
