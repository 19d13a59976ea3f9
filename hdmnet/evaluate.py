"""`python -m hdmnet.evaluate ckpt=PATH`: the test protocol on a checkpoint of ours or of the official release."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hdmnet.launch import HYDRA_VERSION_BASE, door

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from omegaconf import DictConfig


@door("evaluate")
def main(cfg: DictConfig) -> None:
    """Evaluate as the config says; what the checkpoint was trained with is taken from it."""
    if cfg.ckpt is None:
        raise ValueError("ckpt is not given; expected the checkpoint to evaluate, e.g. ckpt=RUN/checkpoints/best.ckpt")
    from hdmnet.checkpoints import BASE_LEARNER_KEY, read_checkpoint, run_entry
    from hdmnet.experiment import evaluate
    from hdmnet.launch import job_overrides
    from hdmnet.trust import evaluation_config

    content = read_checkpoint(cfg.ckpt)
    if BASE_LEARNER_KEY in content:
        raise ValueError(f"ckpt={cfg.ckpt} is a base learner; expected checkpoints/best.ckpt of a run's folder")
    about = run_entry(content, cfg.ckpt)
    if about is not None:
        cfg = evaluation_config(cfg, about["config"], job_overrides(cfg), f"ckpt={cfg.ckpt}")
    evaluate(cfg, official=about is None)


def compose_config(checkpoint: Path, overrides: Sequence[str], run_dir: str) -> tuple[DictConfig, bool]:
    """Compose what the door would run, for scripts.

    Args:
        checkpoint: Of a run or of the official release.
        overrides: The door's command line without ``ckpt``.
        run_dir: The run's folder.

    Returns:
        The config, and whether the checkpoint is the official release's.
    """
    from hydra import compose, initialize_config_dir

    from hdmnet.checkpoints import read_checkpoint, run_entry
    from hdmnet.config import conf_dir, make_paths_absolute, register_schemas
    from hdmnet.trust import evaluation_config
    from hdmnet.validation import validate

    register_schemas()
    with initialize_config_dir(config_dir=str(conf_dir()), version_base=HYDRA_VERSION_BASE):
        cfg = compose("evaluate", overrides=list(overrides))
    cfg.ckpt = str(checkpoint)
    make_paths_absolute(cfg, run_dir)
    about = run_entry(read_checkpoint(checkpoint), checkpoint)
    if about is not None:
        return evaluation_config(cfg, about["config"], overrides, f"ckpt={checkpoint}"), False
    validate(cfg)
    return cfg, True


if __name__ == "__main__":
    main()
