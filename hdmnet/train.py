"""`python -m hdmnet.train`: stage 1 (base learner) where the method needs it, stage 2, test."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hdmnet.cli.entry_point import entry_point

if TYPE_CHECKING:
    from omegaconf import DictConfig


@entry_point("train")
def main(cfg: DictConfig) -> None:
    """Train and test as the config says."""
    from hdmnet.run.pipeline import train

    train(cfg)


if __name__ == "__main__":
    main()
