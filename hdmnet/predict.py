"""`python -m hdmnet.predict support=[IMG:MASK,…] query=[IMG,…] output=DIR`: segment a user's own pictures."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from hdmnet.cli.entry_point import entry_point
from hdmnet.cli.quoting import quote_files

if TYPE_CHECKING:
    from omegaconf import DictConfig

_FILES = ("ckpt", "support", "query", "output", "save")


def main(cfg: DictConfig | None = None) -> None:
    """Segment as the config or the command line says; exit code 1 if a query could not be."""
    if cfg is None:
        sys.argv[1:] = quote_files(sys.argv[1:], _FILES)
    run(cfg)


@entry_point("predict")
def run(cfg: DictConfig) -> None:
    """Segment as the config says.

    Raises:
        ValueError: Something is not as it should be, or a query could not be segmented.
    """
    from hdmnet.apps.predict import example_of, find_queries, predict
    from hdmnet.apps.supports import parse_supports

    if cfg.example:
        predict(cfg, *example_of(cfg))
    else:
        predict(cfg, parse_supports(cfg.support), find_queries(cfg.query, whole_folders=cfg.video.folders))


if __name__ == "__main__":
    main()
