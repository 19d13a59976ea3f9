"""`python -m hdmnet.predict ckpt=PATH support=[IMG:MASK,…] query=[IMG,…] output=DIR`: segment one's own pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hdmnet.launch import door

if TYPE_CHECKING:
    from omegaconf import DictConfig


@door("predict")
def main(cfg: DictConfig) -> None:
    """Segment as the config says; exit code 1 if a query could not be."""
    if cfg.ckpt is None:
        raise ValueError("ckpt is not given; expected a checkpoint, e.g. ckpt=RUN/checkpoints/best.ckpt")
    from hdmnet.predicting import find_queries, parse_supports, predict

    supports, queries = parse_supports(cfg.support), find_queries(cfg.query)
    predict(cfg, supports, queries)


if __name__ == "__main__":
    main()
