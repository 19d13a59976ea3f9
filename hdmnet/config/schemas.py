"""Types of the top-level keys of the configs, and what Hydra is told of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING


@dataclass
class ExperimentSchema:
    """Types of the keys that conf/train.yaml and conf/evaluate.yaml share; `config/checks.py` checks the groups."""

    dataset: Any = MISSING
    backbone: Any = MISSING
    model: Any = MISSING
    loss: Any = MISSING
    optim: Any = MISSING
    augment: Any = MISSING
    trainer: Any = MISSING
    logger: Any = MISSING
    callbacks: Any = MISSING
    paths: Any = MISSING
    ablation: str | None = None
    sweep: str = "free"
    rerun: bool = False
    fold: int = 0
    shot: int = 1
    seed: int = 0
    batch_size: int = 1
    num_workers: int | None = None
    ckpt: str | None = None
    base_ckpt: str | None = None
    selection: str = "best"
    protocol: str = "uniform"
    support_mask: str = "given"
    reuse: bool = True
    reuse_memory_gb: float = 2.0


@dataclass
class TrainSchema(ExperimentSchema):
    """Types of the top-level keys of conf/train.yaml."""

    resume: str | None = None


@dataclass
class EvaluateSchema(ExperimentSchema):
    """Types of the top-level keys of conf/evaluate.yaml."""

    episodes: int | None = None
    seeds: int | None = None


@dataclass
class PredictSchema:
    """Types of the keys of conf/predict.yaml; `support` and `query` are read by `hdmnet/apps/predict.py`."""

    paths: Any = MISSING
    ckpt: str | None = None
    support: Any = None
    query: Any = None
    output: str = MISSING
    maps: bool = False
    save: str | None = None
    device: str = "auto"
    image_size: Any = None
    official: Any = MISSING


@dataclass
class DemoSchema:
    """Types of the keys of conf/demo.yaml."""

    paths: Any = MISSING
    ckpt: str | None = None
    port: int = 7860
    inbrowser: bool = False
    device: str = "auto"
    image_size: Any = None
    official: Any = MISSING


def register_schemas() -> None:
    """Make known to Hydra what the doors' configs name and no file under conf/ can hold.

    That is the schemas, and a launcher and a sweeper without types: Hydra's own would refuse the keys of conf/launcher
    and conf/sweep, and only a door's config may choose others.
    """
    store = ConfigStore.instance()
    store.store(group="hydra/launcher", name="hdmnet", node={"_target_": MISSING})
    sweeper = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
    store.store(
        group="hydra/sweeper", name="hdmnet", node={"_target_": sweeper, "max_batch_size": None, "params": None}
    )
    store.store(name="train_schema", node=TrainSchema)
    store.store(name="evaluate_schema", node=EvaluateSchema)
    store.store(name="predict_schema", node=PredictSchema)
    store.store(name="demo_schema", node=DemoSchema)
