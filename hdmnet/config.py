"""What the doors do with a composed config: find it, build objects from it, keep it in a checkpoint.

Light on purpose: `--help` and every refusal of a wrong key come before PyTorch is imported.
"""

from __future__ import annotations

import copy
import difflib
import functools
import importlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf, open_dict

# What a config may build. It can come out of a checkpoint that somebody else made: naming os.system must not help.
ALLOWED_TARGETS = ("hdmnet.", "lightning.pytorch.", "torch.nn.", "torch.optim.", "torchvision.")

# Belongs to the machine or to the command at hand, never to the checkpoint that is evaluated.
NEVER_FROM_CHECKPOINT = frozenset(
    {"paths", "trainer", "logger", "callbacks", "ckpt", "base_ckpt", "resume", "num_workers", "episodes", "seeds"}
    | {"sweep", "rerun", "reuse", "reuse_memory_gb"}
)
# An interpolation that calls a resolver (`${oc.env:HOME}`) and does not just name a key.
RESOLVER = re.compile(r"\$\{.*:", re.DOTALL)
# Folders that are taken from the checkpoint's run while they exist and nothing else names them: key -> variable.
_FOLDER_VARIABLES = {"data_dir": "HDMNET_DATA", "weights_dir": "HDMNET_WEIGHTS"}


@dataclass
class ExperimentSchema:
    """Types of the keys that conf/train.yaml and conf/evaluate.yaml share; `hdmnet/validation.py` checks the groups."""

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
    """Types of the keys of conf/predict.yaml; `support` and `query` are read by `hdmnet/predicting.py`."""

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


def conf_dir() -> Path:
    """Folder of the configs: `hdmnet/conf` in an installed wheel, `conf` at the root of a checkout.

    Raises:
        FileNotFoundError: Neither is there; the installation is incomplete.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise FileNotFoundError(f"no conf/train.yaml in or beside {package}: install hdmnet again")


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """`"; did you mean 'fold'?"` for the known word that is closest, or nothing where none is close."""
    matches = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""


# -------------------------------------------------------------------------------------------------- plain values


def to_plain(cfg: DictConfig) -> dict[str, Any]:
    """The config as plain dicts and lists with every interpolation resolved, e.g. for `result.json`."""
    return cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))


def to_stored(cfg: DictConfig) -> dict[str, Any]:
    """The config as plain dicts and lists, for a checkpoint.

    Interpolations are kept, so that `evaluate dataset.image_size=257` also reaches the places that refer to it; what
    calls a resolver is not, for it means this machine. Folders are already absolute (see `make_paths_absolute`).
    """
    stored = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=False))
    return _without_resolvers(stored, to_plain(cfg)) if RESOLVER.search(str(stored)) else stored


def _without_resolvers(node: Any, plain: Any) -> Any:
    """The node, its values that call a resolver taken from the resolved one."""
    if isinstance(node, str):
        return plain if RESOLVER.search(node) else node
    if isinstance(node, dict):
        return {key: _without_resolvers(value, plain[key]) for key, value in node.items()}
    return [_without_resolvers(*pair) for pair in zip(node, plain, strict=True)] if isinstance(node, list) else node


def image_size(value: int | Sequence[int]) -> tuple[int, int]:
    """`dataset.image_size` as (H, W) in pixels: one integer stands for a square."""
    if isinstance(value, int):
        return value, value
    height, width = value
    return int(height), int(width)


def make_paths_absolute(cfg: DictConfig, run_dir: str | Path) -> None:
    """Fix the folders of `paths` in place: absolute from the current folder, `~` expanded, `run_dir` filled in.

    Args:
        cfg: A door's composed config.
        run_dir: The run's own folder.
    """
    with open_dict(cfg):
        for key in list(cfg.paths):
            if cfg.paths[key] is not None:
                cfg.paths[key] = str(Path(cfg.paths[key]).expanduser().absolute())
        cfg.paths.run_dir = str(Path(run_dir).absolute())


def merge_with_checkpoint(cfg: DictConfig, stored: Mapping[str, Any], overrides: Sequence[str]) -> DictConfig:
    """The config to evaluate a checkpoint with: what it was trained with, unless the command line says otherwise.

    `dataset=pascal` replaces the stored group but for the size of the network's input, `dataset.image_size=257` sets
    the one key of it. The trainer, loggers, callbacks, output folders and the evaluation's own keys always come from
    the command at hand; the data folder is the training run's where neither the command nor the environment variable
    names one and it still exists.

    Args:
        cfg: The door's composed config, command line included.
        stored: The training run's config as `to_stored` gives it.
        overrides: The command line's overrides, e.g. `["dataset.image_size=257", "shot=5"]`.

    Returns:
        A new config; `cfg` is left as it is.
    """
    mentioned = {override.lstrip("+~").split("=", 1)[0].split("@", 1)[0] for override in overrides}
    asked = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=False))
    merged = copy.deepcopy(cfg)
    OmegaConf.set_struct(merged, False)
    for key, value in stored.items():
        if key in NEVER_FROM_CHECKPOINT or key in mentioned:
            continue
        merged[key] = copy.deepcopy(value)
        for path in sorted(path for path in mentioned if path.startswith(f"{key}.")):
            _set(merged, path, look_up(asked, path))
    trained_size = OmegaConf.select(OmegaConf.create(dict(stored)), "dataset.image_size")
    if "dataset" in mentioned and trained_size is not None and "dataset.image_size" not in mentioned:
        merged.dataset.image_size = trained_size
    for key, variable in _FOLDER_VARIABLES.items():
        folder = look_up(stored, f"paths.{key}")
        named = variable in os.environ or not mentioned.isdisjoint({"paths", f"paths.{key}"})
        if isinstance(folder, str) and not named and Path(folder).is_dir():
            merged.paths[key] = folder
    OmegaConf.set_struct(merged, True)
    return merged


def _set(cfg: DictConfig, path: str, value: Any) -> None:
    """Set a dotted key, or remove it where the command line removed it (`~dataset.val_list`)."""
    if value is ABSENT:
        parent, _, leaf = path.rpartition(".")
        node = OmegaConf.select(cfg, parent)
        if node is not None and leaf in node:
            del node[leaf]
        return
    OmegaConf.update(cfg, path, value, merge=False, force_add=True)


ABSENT = object()


def look_up(plain: Mapping[str, Any], key: str) -> Any:
    """Value at a dotted key of nested mappings, or `ABSENT`."""
    node: Any = plain
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return ABSENT
        node = node[part]
    return node


# ---------------------------------------------------------------------------------------------------- instantiate


def instantiate(cfg: Any, **kwargs: Any) -> Any:
    """Build the object that a config describes by `_target_`; the package's only way from config to object.

    Not Hydra's: that one takes dataclasses among the arguments for configs, wraps every error in three lines, and
    builds whatever is named.

    Args:
        cfg: A node with `_target_` (and `_partial_: true` for a `functools.partial`). Nodes with `_target_` below it
            are built first; other containers become plain dicts and lists.
        **kwargs: More arguments by name, passed as they are; they win over the node's.

    Returns:
        What the target returns; None for None.

    Raises:
        ValueError: No or a forbidden target, one that cannot be imported, or arguments that do not fit.
    """
    key = ""
    if OmegaConf.is_config(cfg):
        key = str(cfg._get_full_key(None) or "")
        cfg = OmegaConf.to_container(cfg, resolve=True)
    if cfg is None:
        return None
    if not isinstance(cfg, Mapping) or "_target_" not in cfg:
        raise ValueError(f"{key or 'config'} cannot be built: it has no _target_")
    return _build({**cfg, **{name: _Ready(value) for name, value in kwargs.items()}}, key)


@dataclass(frozen=True)
class _Ready:
    """Marks an argument that was built already and is passed on untouched."""

    value: Any


def _build(node: Any, key: str) -> Any:
    if isinstance(node, _Ready):
        return node.value
    if isinstance(node, list):
        return [_build(item, key) for item in node]
    if not isinstance(node, Mapping):
        return node
    arguments = {
        name: _build(value, f"{key}.{name}".lstrip("."))
        for name, value in node.items()
        if name not in ("_target_", "_partial_")
    }
    if "_target_" not in node:
        return arguments
    target = str(node["_target_"])
    function = _locate(target, key)
    if node.get("_partial_", False):
        return functools.partial(function, **arguments)
    if target.startswith("hdmnet."):
        return _call(function, arguments, target, key)
    try:
        return function(**arguments)
    except (
        TypeError,
        ValueError,
        AttributeError,
        KeyError,
        OverflowError,
    ) as error:  # a foreign constructor's refusal of a user's value: say which key it was
        raise ValueError(f"{key or target}: {' '.join(str(error).split())}") from error


def _call(function: Callable[..., Any], arguments: dict[str, Any], target: str, key: str) -> Any:
    """Call one of ours: its own ValueErrors say what is wrong; only arguments that do not fit are put in words here."""
    import inspect

    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        raise ValueError(f"{key or target}: {target} does not take these keys: {error}") from None
    return function(**arguments)


def _locate(target: str, key: str) -> Callable[..., Any]:
    """Import what a `_target_` names.

    Raises:
        ValueError: It is outside `ALLOWED_TARGETS` (also by way of a module that an allowed one imports), or not there.
    """
    refusal = f"{key or 'config'}: _target_ {target!r} is not allowed, expected one under {', '.join(ALLOWED_TARGETS)}"
    if not target.startswith(ALLOWED_TARGETS):
        raise ValueError(refusal)
    parts = target.split(".")
    found: Any = None
    for cut in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:cut])
        try:
            found = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # the module is there and lacks something itself: not the config's fault
            continue
        break
    for part in parts[cut:] if found is not None else ():
        found = getattr(found, part, None)
    if found is None or not callable(found):
        raise ValueError(f"{key or 'config'}: _target_ {target!r} does not exist")
    # `hdmnet.config.os.system` starts with an allowed name but is defined elsewhere.
    if not f"{getattr(found, '__module__', None)}.".startswith(ALLOWED_TARGETS):
        raise ValueError(refusal)
    return cast(Callable[..., Any], found)
