"""The console command `hdmnet train …`: the same as `python -m hdmnet.train …`."""

from __future__ import annotations

import os
import runpy
import sys

from hdmnet.config.values import did_you_mean

COMMANDS = {
    "try": "the packaged segmenter on drawn pictures: a mask in half a minute",
    "train": "train and test a method",
    "evaluate": "the test protocol on a checkpoint",
    "predict": "segment your own pictures",
    "demo": "a web page on this machine",
    "report": "tables and figures of finished runs",
}
_SHORT = {"try": ["predict", "example=true"]}
_COMPOSED = ("train", "evaluate", "predict", "demo")  # those whose words Hydra completes


def main() -> int:
    """Run the command that the first word names; returns the exit code, where the command does not exit by itself."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        lines = [f"  {command:<10}{text}" for command, text in COMMANDS.items()]
        print(
            "\n".join(
                [
                    "hdmnet COMMAND …",
                    "",
                    *lines,
                    "",
                    "hdmnet COMMAND --help says what a command takes",
                    'eval "$(hdmnet -sc install=bash)" lets the Tab key complete commands and keys',
                ]
            )
        )
        return 0
    if name in ("-sc", "--shell-completion"):
        return _complete(sys.argv[1:])
    if name not in COMMANDS:
        known = f"expected one of {', '.join(COMMANDS)}{did_you_mean(name, list(COMMANDS))}"
        print(f"error: hdmnet {name}: no such command; {known}", file=sys.stderr)
        return 2
    name, *words = _SHORT.get(name, [name])
    sys.argv[1:2] = words
    if os.getcwd() not in sys.path:  # as `python -m` does: classes of one's own lie beside one's work
        sys.path.insert(0, os.getcwd())
    # As the main module, so that ranks and jobs of a sweep, which start the main module again, find the command.
    runpy.run_module(f"hdmnet.{name}", run_name="__main__", alter_sys=True)
    return 0


def _complete(words: list[str]) -> int:
    """Hydra's shell completion: its installation, or an answer to the shell; gives the exit code.

    Hydra knows one command a program: the second word, which is ours, is taken out of the line that the shell sends.
    """
    from hdmnet.cli.entry_point import run_command

    name = "train"
    if words[-1].startswith("query="):
        program, *rest = os.environ.get("COMP_LINE", "").split(" ")
        if len(rest) <= 1:
            print(" ".join(COMMANDS))
            return 0
        name, *typed = rest
        if name not in _COMPOSED:
            return 0
        os.environ["COMP_LINE"] = " ".join([program, *typed])
        os.environ["COMP_POINT"] = str(len(os.environ["COMP_LINE"]))
    sys.argv[1:] = words
    return run_command(name, lambda cfg: None)
