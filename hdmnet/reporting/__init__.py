"""The paper's tables and figures from finished runs; `hdmnet/report.py` is the entry point."""
