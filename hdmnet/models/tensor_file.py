"""Files of tensors by name, in the usual formats: read without running anything; other files are named."""

from __future__ import annotations

import contextlib
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Under what a state dict lies in a file that holds more.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "weights")
_PREFIXES = re.compile(r"^(?:module\.|_orig_mod\.)+")  # of DistributedDataParallel and torch.compile
_KINDS = (  # by how a file begins
    (b"", "an empty file: fetch it again"),
    (b"<", "a web page: fetch it again, the server may ask for a login"),
    (b"version https://git-lfs", "a pointer of Git LFS: fetch the file by `git lfs pull`"),
    (b"\x89HDF", "an HDF5 file, as Keras writes: convert it to a state dict"),
    (b"\x1f\x8b", "a gzip archive: unpack it"),
)


def read_tensors(path: Path, what: str) -> Any:
    """The content of a file of torch or safetensors, whatever it is called: tensors and plain containers.

    Args:
        path: The file.
        what: What to call it in messages.

    Raises:
        ValueError: It is damaged, of another kind, or holds more, for which code would have to be run; one line.
    """
    with path.open("rb") as file:
        head = file.read(9)
    if head[8:] == b"{":  # after a length of eight bytes
        return _read_safetensors(path, what)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch remarks on odd files before it refuses them
            with path.open("rb") as file:  # of a path torch takes the suffix for what it is
                return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds here; none may pass as a traceback
        raise ValueError(f"cannot read {what} {str(path)!r}: {why_unreadable(path, error)}") from error


def why_unreadable(path: Path, error: Exception) -> str:
    """What a file is that `torch.load` has refused by an error, and how to make one that it takes."""
    with path.open("rb") as file:
        head = file.read(64)
    for beginning, kind in _KINDS:
        if head.lstrip().startswith(beginning) if beginning else not head:
            return f"it is {kind}"
    names: set[str] = set()
    with contextlib.suppress(Exception), zipfile.ZipFile(path) as archive:  # a damaged one fails in many ways
        names = {name.rpartition("/")[2] for name in archive.namelist()}
    if "constants.pkl" in names:
        return "it is TorchScript; save torch.jit.load(FILE).state_dict() by torch.save"
    if names and "data.pkl" not in names:
        return f"it is a zip archive of {', '.join(sorted(names)[:3])} …, not of torch.save"
    more = re.search(r"GLOBAL (\S+)", str(error))
    if more is not None:
        return (
            f"beside tensors it holds {more[1]}, for which code would have to be run (none was); save the weights "
            "alone by torch.save: model.state_dict() where they were made, or of a file that you trust "
            "x.state_dict(), or x['state_dict'], of x = torch.load(FILE, weights_only=False)"
        )
    return (
        "it is damaged, or holds more than tensors, for which code would have to be run (none was); expected a state "
        f"dict saved by torch.save ({type(error).__name__})"
    )


def _read_safetensors(path: Path, what: str) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ModuleNotFoundError:
        raise ValueError(f"cannot read {what} {str(path)!r}: it needs safetensors: pip install safetensors") from None
    try:
        return dict(load_file(path))
    except Exception as error:  # its own class is no ValueError
        raise ValueError(f"cannot read {what} {str(path)!r}: no whole safetensors file ({error})") from error


def unwrap(content: Any) -> dict[str, Tensor] | None:
    """The state dict in a file's content, the prefixes of DDP and `torch.compile` removed; None where there is none.

    Raises:
        ValueError: A tensor is there twice, with and without a prefix.
    """
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not content or not all(isinstance(one, Tensor) for one in content.values()):
        return None
    plain = {_PREFIXES.sub("", str(key)): tensor for key, tensor in content.items()}
    if len(plain) < len(content):
        raise ValueError("names some tensors twice, with and without 'module.' or '_orig_mod.'; expected one of each")
    return plain


def inner_state(state: dict[str, Tensor], wanted: str) -> dict[str, Tensor]:
    """The part of a state dict that lies under the one prefix with which a key is there, `model.` or `backbone.`.

    Args:
        state: Tensors by name.
        wanted: A key that the part has.

    Returns:
        The part without its prefix; all where the key is there as it is, or not at all.

    Raises:
        ValueError: It is there with several prefixes.
    """
    prefixes = sorted(key.removesuffix(wanted) for key in state if key.endswith(f".{wanted}"))
    if wanted in state or not prefixes:
        return state
    if len(prefixes) > 1:
        raise ValueError(f"holds several networks, {' and '.join(prefixes[:3])}; expected one: save its part alone")
    return {key.removeprefix(prefixes[0]): value for key, value in state.items() if key.startswith(prefixes[0])}
