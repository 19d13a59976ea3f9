"""`python -m hdmnet.demo ckpt=PATH`: a web page on this machine: paint over an object, find its kind elsewhere."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from hdmnet.launch import door

if TYPE_CHECKING:
    from omegaconf import DictConfig


@door("demo")
def main(cfg: DictConfig) -> None:
    """Serve the page as the config says, until Ctrl-C."""
    if cfg.ckpt is None:
        raise ValueError("ckpt is not given; expected a checkpoint, e.g. ckpt=RUN/checkpoints/best.ckpt")
    # Before the import: both would report to their makers which parts of them are used.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        import gradio  # noqa: F401 (only whether it is there)
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ValueError("gradio is not installed; the demo needs it: pip install 'hdmnet[demo]'") from None
    from hdmnet.web_page import serve

    serve(cfg)


if __name__ == "__main__":
    main()
