"""The argument parser of scripts and of the report, and how a script ends."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from hdmnet.runtime.console import print_in_any_encoding
from hdmnet.runtime.errors import ConfigError
from hdmnet.runtime.home import expand_home


class OneLineParser(argparse.ArgumentParser):
    """A parser that raises a ConfigError of one line where argparse prints its usage and exits.

    `~` is replaced in what becomes a `Path`: no shell does it in `--out=~/x`.
    """

    def parse_known_args(self, *args: Any, **kwargs: Any) -> Any:
        """As argparse, with `~` replaced; raises InputError where the user has no home folder."""
        namespace, rest = super().parse_known_args(*args, **kwargs)
        for name, value in vars(namespace).items():
            if isinstance(value, Path):
                setattr(namespace, name, expand_home(value))
            elif isinstance(value, list):
                setattr(namespace, name, [expand_home(one) if isinstance(one, Path) else one for one in value])
        return namespace, rest

    def error(self, message: str) -> NoReturn:
        """Raise argparse's complaint as a ConfigError."""
        raise ConfigError(f"{message}; see --help")


def run_main(body: Callable[[], bool], name: str) -> int:
    """Run a script's body and turn its failure into one line on stderr, after the script's name.

    Returns:
        Exit code: 0 if the body says that everything is complete, else 1.
    """
    print_in_any_encoding()
    try:
        return 0 if body() else 1
    except KeyboardInterrupt:
        message = "stopped; the same command goes on from here"
    except (ValueError, OSError) as error:
        message = str(error)
    print(f"{name}: {message}", file=sys.stderr)
    return 1
