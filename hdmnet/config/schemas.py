"""Types of the top-level keys of the configs, and what Hydra is told of."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, cast

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from hdmnet.config.key_help import key_help
from hdmnet.config.paths import find_option
from hdmnet.config.timm_config import timm_pretrained_cfg
from hdmnet.config.values import did_you_mean, part_of_size
from hdmnet.runtime.errors import ConfigError, one_line
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
    protocol: Any = MISSING
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
    recipe: str = "default"
    support_mask: str = "given"
    baseline_episodes: int = 1000
    reuse: bool = True
    reuse_memory_gb: float = 2.0


@dataclass
class TrainSchema(ExperimentSchema):
    """Types of the top-level keys of conf/train.yaml."""

    resume: str | None = None
    compile: str | None = None
    keep_features_gb: float = 0.0


@dataclass
class EvaluateSchema(ExperimentSchema):
    """Types of the top-level keys of conf/evaluate.yaml."""

    episodes: int | None = None
    seeds: int | None = None
    way: int = 1
    generalised: bool = False
    generalised_threshold: float = 0.5
    test_scales: Any = MISSING
    test_flip: bool = False


@dataclass
class VideoSchema:
    """Types of the keys of `video` in conf/predict.yaml."""

    folders: bool = False
    memory: int = 0
    confident: float = 0.8
    in_every_frame: bool = False
    fps: float = 25.0


@dataclass
class PredictSchema:
    """Types of the keys of conf/predict.yaml; `support` and `query` are read by `hdmnet/apps`."""

    paths: Any = MISSING
    model: Any = None
    backbone: Any = None
    ckpt: str | None = None
    support: Any = None
    query: Any = None
    example: bool = False
    output: str = MISSING
    formats: Any = MISSING
    instances: bool = True
    polygons: bool = False
    tolerance: float = 1.0
    maps: bool = False
    tile: Any = None
    tile_overlap: float = 0.25
    video: VideoSchema = field(default_factory=VideoSchema)
    save: str | None = None
    device: str = "auto"
    image_size: Any = None
    test_scales: Any = MISSING
    test_flip: bool = False
    official: Any = MISSING


@dataclass
class DemoSchema:
    """Types of the keys of conf/demo.yaml."""

    paths: Any = MISSING
    model: Any = None
    backbone: Any = None
    ckpt: str | None = None
    folder: str = MISSING
    port: int = 7860
    inbrowser: bool = False
    device: str = "auto"
    image_size: Any = None
    official: Any = MISSING


SCHEMAS = {"train": TrainSchema, "evaluate": EvaluateSchema, "predict": PredictSchema, "demo": DemoSchema}
_NO_SETTINGS = {"hydra", "defaults"}  # of a file of local settings: Hydra's own


def register_schemas() -> None:
    """Make known to Hydra what the entry points' configs name and no file under conf/ can hold.

    That is the schemas; a launcher and a sweeper without types: Hydra's own would refuse the keys of conf/launcher and
    conf/sweep, and only an entry point's config may choose others; of the local settings what each entry point has; and
    the resolvers of conf/backbone/timm.yaml, of conf/dataset/shapes.yaml and of `--help`.
    """
    OmegaConf.register_new_resolver("part_of_size", part_of_size, replace=True)
    OmegaConf.register_new_resolver("timm_pretrained_cfg", timm_pretrained_cfg, replace=True)
    OmegaConf.register_new_resolver("key_help", key_help, replace=True)
    store = ConfigStore.instance()
    store.store(group="hydra/launcher", name="hdmnet", node={"_target_": MISSING})
    sweeper = {"_target_": BASIC_SWEEPER, "max_batch_size": None, "params": None}
    store.store(group="hydra/sweeper", name="hdmnet", node=sweeper)
    settings = _local_settings()
    for name, schema in SCHEMAS.items():
        known = {field.name for field in fields(schema)}
        own = {key: value for key, value in settings.items() if key in known | {"hydra"}}
        if "trainer" in known and "defaults" in settings:  # predict and demo have no group to choose an option of
            own["defaults"] = settings["defaults"]
        store.store(name=f"{name}_schema", node=schema)
        store.store(name=f"{name}_local", node=own)


def _local_settings() -> dict[str, Any]:
    """The content of conf/local/default.yaml, of whichever entry point its keys are.

    Raises:
        ConfigError: It is no YAML of keys and values, or no entry point has one of its keys.
    """
    file = find_option("local", "default")
    if file is None:
        return {}
    try:
        settings: Any = OmegaConf.to_container(OmegaConf.load(file))
    except (YAMLError, OmegaConfBaseException, OSError) as error:
        raise ConfigError(f"{file} cannot be read: {one_line(error)}") from None
    if not isinstance(settings, dict):
        raise ConfigError(f"{file}: a {type(settings).__name__}; expected keys and values")
    known = {field.name for schema in SCHEMAS.values() for field in fields(schema)}
    for key in settings:
        if key not in known | _NO_SETTINGS:
            raise ConfigError(f"{file}: {key}: no such key{did_you_mean(str(key), sorted(known))}")
    return cast(dict[str, Any], settings)
