"""The argument parser of scripts and of the report, and how a script ends."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from hdmnet.runtime.errors import ConfigError


class OneLineParser(argparse.ArgumentParser):
    """A parser that raises a ConfigError of one line where argparse prints its usage and exits."""

    def error(self, message: str) -> NoReturn:
        """Raise argparse's complaint as a ConfigError."""
        raise ConfigError(f"{message}; see --help")


def run_main(body: Callable[[], bool], name: str) -> int:
    """Run a script's body and turn its failure into one line on stderr, after the script's name.

    Returns:
        Exit code: 0 if the body says that everything is complete, else 1.
    """
    try:
        return 0 if body() else 1
    except KeyboardInterrupt:
        message = "stopped; the same command goes on from here"
    except (ValueError, OSError) as error:
        message = str(error)
    print(f"{name}: {message}", file=sys.stderr)
    return 1
