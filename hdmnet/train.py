"""`python -m hdmnet.train`: base learner if there is none yet, HDMNet, test."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hdmnet.launch import door

if TYPE_CHECKING:
    from omegaconf import DictConfig


@door("train")
def main(cfg: DictConfig) -> None:
    """Train and test as the config says."""
    from hdmnet.experiment import train  # heavy: only once there is a job to run

    train(cfg)


if __name__ == "__main__":
    main()
