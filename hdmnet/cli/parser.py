"""The argument parser of scripts and of the report."""

from __future__ import annotations

import argparse
from typing import NoReturn

from hdmnet.runtime.errors import ConfigError


class OneLineParser(argparse.ArgumentParser):
    """A parser that raises a ConfigError of one line where argparse prints its usage and exits."""

    def error(self, message: str) -> NoReturn:
        """Raise argparse's complaint as a ConfigError."""
        raise ConfigError(f"{message}; see --help")
