"""What `python -m hdmnet.evaluate` would run, for scripts that do something else with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from hdmnet.cli.compose import compose_words
from hdmnet.config.checks import validate
from hdmnet.config.paths import make_paths_absolute
from hdmnet.config.stored import evaluation_config
from hdmnet.run.checkpoints import run_entry
from hdmnet.runtime.checkpoint_file import read_checkpoint


def compose_config(checkpoint: Path, overrides: Sequence[str], run_dir: str) -> tuple[DictConfig, dict[str, Any]]:
    """Compose what the entry point would run.

    Args:
        checkpoint: Of a run or of the official release.
        overrides: The entry point's command line without ``ckpt``.
        run_dir: The run's folder.

    Returns:
        The config, and the checkpoint's content.
    """
    cfg = compose_words("evaluate", overrides)
    cfg.ckpt = str(checkpoint)
    make_paths_absolute(cfg, run_dir)
    content = read_checkpoint(checkpoint)
    about = run_entry(content, checkpoint)
    if about is not None:
        return evaluation_config(cfg, about["config"], overrides, f"ckpt={checkpoint}"), content
    validate(cfg)
    return cfg, content
