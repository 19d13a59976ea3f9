"""`python -m hdmnet.report RUNS… --out DIR`: the paper's tables and figures from finished runs.

The page begins with a leaderboard of the methods on each data set, the same episodes of all of them, and models under
several protocols. RUNS are run folders, folders of runs (searched to any depth) or result.json files. DIR gets
`report.html`, one page of everything that needs no network; `tables/*.{md,tex,csv}`; `figures/*.png`.

`python -m hdmnet.report --compare A B [--out DIR]` sets two tests on the same episodes beside each other: the
difference of their mIoU and its interval, by class, by the object's size, and the episodes that differ most; DIR gets
`compare.html`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from hdmnet.cli.parser import OneLineParser
from hdmnet.runtime.console import print_in_any_encoding
from hdmnet.runtime.errors import InputError, one_line, user_message, wants_traceback

_COMMAND_LINE_ERROR = 2  # as the other entry points; 1 where the runs are at fault


def _parser() -> OneLineParser:
    parser = OneLineParser(
        prog="python -m hdmnet.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", metavar="RUNS", help="run folders, folders of runs, or result.json files")
    parser.add_argument("--out", metavar="DIR", help="folder to write; made if needed")
    parser.add_argument(
        "--compare", nargs=2, metavar=("A", "B"), help="two runs' or evaluations' folders, in RUNS' place"
    )
    parser.add_argument(
        "--episodes",
        type=int,
        default=4,
        metavar="N",
        help="episodes drawn in Figures 7, 12 and 13 and of all methods; 0: leave these out (default: 4)",
    )
    parser.add_argument(
        "--costs", action="store_true", help="measure operations and time of every method's episode, on this CPU"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the entry point.

    Args:
        argv: Command line without the program's name; None = the process's own.

    Returns:
        Exit code: 0 done, 1 the runs or the folder are at fault, 2 the command line is.
    """
    print_in_any_encoding()
    try:
        arguments = _parser().parse_args(argv)
        if arguments.episodes < 0:
            raise InputError(f"--episodes is {arguments.episodes}; expected 0 or more")
        missing = [name for name, value in (("RUNS", arguments.runs), ("--out", arguments.out)) if not value]
        if arguments.compare is None and missing:
            raise InputError(f"the following arguments are required: {', '.join(missing)}; see --help")
        if arguments.compare is not None and arguments.runs:
            raise InputError(
                f"--compare takes two folders, and {arguments.runs[0]} beside them is one more; see --help"
            )
    except ValueError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return _COMMAND_LINE_ERROR
    from hdmnet.reporting.compare import compare_runs
    from hdmnet.reporting.writing import write_report

    try:
        if arguments.compare is not None:
            lines = compare_runs(arguments.compare[0], arguments.compare[1], arguments.out)
        else:
            lines = write_report(arguments.runs, arguments.out, num_episodes=arguments.episodes, costs=arguments.costs)
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        message = None if wants_traceback() else user_message(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        return 1
    print("\n".join(lines), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
