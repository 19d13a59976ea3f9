"""The network on a user's own pictures: Python, command line, web page, export."""
