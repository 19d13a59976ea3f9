"""`python -m hdmnet.evaluate ckpt=PATH`: the test protocol on a checkpoint of ours or of the official release.

A method that has nothing to learn needs none: `python -m hdmnet.evaluate model=prototype dataset=pascal`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hdmnet.cli.entry_point import entry_point
from hdmnet.runtime.errors import InputError

if TYPE_CHECKING:
    from omegaconf import DictConfig


@entry_point("evaluate")
def main(cfg: DictConfig) -> None:
    """Evaluate as the config says; what the checkpoint was trained with is taken from it."""
    from hdmnet.cli.entry_point import job_overrides
    from hdmnet.config.stored import evaluation_config
    from hdmnet.run.checkpoints import run_entry
    from hdmnet.run.pipeline import evaluate
    from hdmnet.runtime.checkpoint_file import BASE_LEARNER_KEY, read_checkpoint

    if cfg.ckpt is None:
        evaluate(cfg, None)
        return
    content = read_checkpoint(cfg.ckpt)
    if BASE_LEARNER_KEY in content:
        raise InputError(f"ckpt={cfg.ckpt} is a base learner; expected checkpoints/best.ckpt of a run's folder")
    about = run_entry(content, cfg.ckpt)
    if about is not None:
        cfg = evaluation_config(cfg, about["config"], job_overrides(cfg), f"ckpt={cfg.ckpt}")
    evaluate(cfg, content)


if __name__ == "__main__":
    main()
