"""`python -m hdmnet.demo`: a page on this machine: mark an object, find its kind in other pictures."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from hdmnet.cli.entry_point import entry_point

if TYPE_CHECKING:
    from omegaconf import DictConfig


@entry_point("demo")
def main(cfg: DictConfig) -> None:
    """Serve the page as the config says, until Ctrl-C or SIGTERM."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        from hdmnet.apps.web_page import serve

        serve(cfg)
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    main()
