"""Types of the top-level keys of the configs, and what Hydra is told of."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from hdmnet.config.paths import find_option
from hdmnet.runtime.private_api import BASIC_SWEEPER


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


SCHEMAS: dict[str, Any] = {
    "train": TrainSchema,
    "evaluate": EvaluateSchema,
    "predict": PredictSchema,
    "demo": DemoSchema,
}
_LOCAL_SETTINGS = ("predict", "demo")  # take of conf/local/default.yaml what they know; train and evaluate take all


def register_schemas() -> None:
    """Make known to Hydra what the entry points' configs name and no file under conf/ can hold.

    That is the schemas; a launcher and a sweeper without types: Hydra's own would refuse the keys of conf/launcher and
    conf/sweep, and only an entry point's config may choose others; and for predict and demo the local settings without
    the keys that only train and evaluate have.
    """
    store = ConfigStore.instance()
    store.store(group="hydra/launcher", name="hdmnet", node={"_target_": MISSING})
    sweeper = {"_target_": BASIC_SWEEPER, "max_batch_size": None, "params": None}
    store.store(group="hydra/sweeper", name="hdmnet", node=sweeper)
    for name, schema in SCHEMAS.items():
        store.store(name=f"{name}_schema", node=schema)
    file = find_option("local", "default")
    settings: Any = {} if file is None else OmegaConf.to_container(OmegaConf.load(file))
    for name in _LOCAL_SETTINGS:
        known = {key: settings[key] for key in settings if key in {field.name for field in fields(SCHEMAS[name])}}
        store.store(name=f"{name}_local", node=known)
