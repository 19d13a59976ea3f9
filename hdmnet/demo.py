"""`python -m hdmnet.demo`: a web page on this machine: paint over an object, find its kind elsewhere."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hdmnet.cli.entry_point import entry_point
from hdmnet.runtime.errors import InputError

if TYPE_CHECKING:
    from omegaconf import DictConfig


@entry_point("demo")
def main(cfg: DictConfig) -> None:
    """Serve the page as the config says, until Ctrl-C."""
    with _private_folder() as folder:
        try:
            import gradio  # noqa: F401 (only whether it is there)
        except ModuleNotFoundError as error:
            if error.name != "gradio":
                raise
            raise InputError("gradio is not installed; the demo needs it: pip install 'hdmnet[demo]'") from None
        from hdmnet.apps.web_page import serve

        serve(cfg, folder)


@contextmanager
def _private_folder() -> Iterator[Path]:
    """A folder for Gradio's temporary files, removed however the block ends: SIGTERM becomes a `KeyboardInterrupt`."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with tempfile.TemporaryDirectory(prefix="hdmnet-demo-") as folder:
            # Read while Gradio is imported. The last two would report to their makers which parts of them are used.
            os.environ.update(GRADIO_TEMP_DIR=folder, GRADIO_ANALYTICS_ENABLED="False", HF_HUB_DISABLE_TELEMETRY="1")
            yield Path(folder)
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    main()
