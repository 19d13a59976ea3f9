"""`python -m hdmnet.evaluate ckpt=PATH`: the test protocol on a checkpoint of ours or of the official release."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hdmnet.cli.entry_point import HYDRA_VERSION_BASE, entry_point

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import Any

    from omegaconf import DictConfig


@entry_point("evaluate")
def main(cfg: DictConfig) -> None:
    """Evaluate as the config says; what the checkpoint was trained with is taken from it."""
    if cfg.ckpt is None:
        raise ValueError("ckpt is not given; expected the checkpoint to evaluate, e.g. ckpt=RUN/checkpoints/best.ckpt")
    from hdmnet.cli.entry_point import job_overrides
    from hdmnet.config.stored import evaluation_config
    from hdmnet.run.checkpoints import run_entry
    from hdmnet.run.pipeline import evaluate
    from hdmnet.runtime.checkpoint_file import BASE_LEARNER_KEY, read_checkpoint

    content = read_checkpoint(cfg.ckpt)
    if BASE_LEARNER_KEY in content:
        raise ValueError(f"ckpt={cfg.ckpt} is a base learner; expected checkpoints/best.ckpt of a run's folder")
    about = run_entry(content, cfg.ckpt)
    if about is not None:
        cfg = evaluation_config(cfg, about["config"], job_overrides(cfg), f"ckpt={cfg.ckpt}")
    evaluate(cfg, content)


def compose_config(checkpoint: Path, overrides: Sequence[str], run_dir: str) -> tuple[DictConfig, dict[str, Any]]:
    """Compose what the entry point would run, for scripts.

    Args:
        checkpoint: Of a run or of the official release.
        overrides: The entry point's command line without ``ckpt``.
        run_dir: The run's folder.

    Returns:
        The config, and the checkpoint's content.
    """
    from hydra import compose, initialize_config_dir

    from hdmnet.config.checks import validate
    from hdmnet.config.paths import conf_dir, make_paths_absolute
    from hdmnet.config.schemas import register_schemas
    from hdmnet.config.stored import evaluation_config
    from hdmnet.run.checkpoints import run_entry
    from hdmnet.runtime.checkpoint_file import read_checkpoint

    register_schemas()
    with initialize_config_dir(config_dir=str(conf_dir()), version_base=HYDRA_VERSION_BASE):
        cfg = compose("evaluate", overrides=list(overrides))
    cfg.ckpt = str(checkpoint)
    make_paths_absolute(cfg, run_dir)
    content = read_checkpoint(checkpoint)
    about = run_entry(content, checkpoint)
    if about is not None:
        return evaluation_config(cfg, about["config"], overrides, f"ckpt={checkpoint}"), content
    validate(cfg)
    return cfg, content


if __name__ == "__main__":
    main()
