"""`python -m hdmnet.evaluate ckpt=PATH`: the test protocol on a checkpoint of ours or of the official release."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hdmnet.launch import door

if TYPE_CHECKING:
    from omegaconf import DictConfig


@door("evaluate")
def main(cfg: DictConfig) -> None:
    """Evaluate as the config says; what the checkpoint was trained with is taken from it."""
    if cfg.ckpt is None:
        raise ValueError("ckpt is not given; expected the checkpoint to evaluate, e.g. ckpt=RUN/checkpoints/best.ckpt")
    from hdmnet.checkpoints import BASE_LEARNER_KEY, read_checkpoint, run_entry
    from hdmnet.config import merge_with_checkpoint
    from hdmnet.experiment import evaluate
    from hdmnet.launch import job_overrides
    from hdmnet.validation import validate

    content = read_checkpoint(cfg.ckpt)
    if BASE_LEARNER_KEY in content:
        raise ValueError(f"ckpt={cfg.ckpt} is a base learner; expected checkpoints/best.ckpt of a run's folder")
    about = run_entry(content, cfg.ckpt)
    if about is not None:
        cfg = merge_with_checkpoint(cfg, about["config"], job_overrides(cfg))
        validate(cfg)  # e.g. a fold that the checkpoint's data set does not have
    evaluate(cfg, official=about is None)


if __name__ == "__main__":
    main()
