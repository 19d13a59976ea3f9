"""What a command prints, on consoles of any encoding."""

from __future__ import annotations

import io
import sys


def print_in_any_encoding() -> None:
    """Let this process print what its console's encoding lacks as an escape in place of raising."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
