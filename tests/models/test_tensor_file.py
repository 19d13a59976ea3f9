"""Files of weights as people keep them: read, or told apart in one line; nothing in them is run."""

from __future__ import annotations

import argparse
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hdmnet.models.backbones.build import build_backbone
from hdmnet.models.tensor_file import inner_state, read_tensors, unwrap

WEIGHTS = {"a.weight": torch.arange(3.0), "a.bias": torch.zeros(1)}


def same(found, expected=WEIGHTS):
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


def prefixed(prefix):
    return {prefix + key: value for key, value in WEIGHTS.items()}


@pytest.mark.parametrize(
    "content",
    [
        WEIGHTS,
        prefixed("module."),
        prefixed("_orig_mod."),
        prefixed("_orig_mod.module."),
        prefixed("module._orig_mod."),
        {"state_dict": WEIGHTS, "epoch": 3},
        {"model_state_dict": prefixed("module."), "optimizer": {}},
        {"model": WEIGHTS},
        {"net": WEIGHTS},
    ],
)
def test_wrappers_and_the_prefixes_of_ddp_and_compile(content):
    assert same(unwrap(content))


@pytest.mark.parametrize("content", [{}, [], {"epoch": 1}, {"student": WEIGHTS, "teacher": WEIGHTS}, torch.zeros(1)])
def test_what_holds_no_state_dict(content):
    assert unwrap(content) is None


def test_a_tensor_that_is_there_twice():
    with pytest.raises(ValueError, match=r"names some tensors twice, with and without 'module\.'"):
        unwrap(WEIGHTS | prefixed("module."))


def test_the_part_of_a_larger_model():
    assert same(inner_state(WEIGHTS, "a.weight"))
    assert same(inner_state(prefixed("model.backbone.") | {"model.head.weight": torch.ones(1)}, "a.weight"))
    assert inner_state({"b": torch.ones(1)}, "a.weight").keys() == {"b"}
    with pytest.raises(ValueError, match=r"holds several networks, encoder_k\. and encoder_q\.; expected one"):
        inner_state(prefixed("encoder_q.") | prefixed("encoder_k."), "a.weight")


@pytest.mark.parametrize("old", [False, True])
def test_files_of_torch(tmp_path, old):
    torch.save({"state_dict": WEIGHTS}, tmp_path / "w.pth", _use_new_zipfile_serialization=not old)
    assert same(read_tensors(tmp_path / "w.pth", "weights")["state_dict"])


def test_safetensors(tmp_path):
    save_file(WEIGHTS, tmp_path / "w.safetensors")
    assert same(read_tensors(tmp_path / "w.safetensors", "weights"))
    (tmp_path / "w.safetensors").rename(tmp_path / "w.bin")  # what it is, its content says
    assert same(read_tensors(tmp_path / "w.bin", "weights"))
    (tmp_path / "w.safetensors").write_bytes((tmp_path / "w.bin").read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"cannot read weights '.*w.safetensors': no whole safetensors file"):
        read_tensors(tmp_path / "w.safetensors", "weights")


def test_a_file_of_torch_that_is_called_otherwise(tmp_path):
    torch.save(WEIGHTS, tmp_path / "w.safetensors")
    assert same(read_tensors(tmp_path / "w.safetensors", "weights"))
    (tmp_path / "w.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid")
    with pytest.raises(ValueError, match="it is a pointer of Git LFS: fetch the file by"):
        read_tensors(tmp_path / "w.safetensors", "weights")


def torchscript(path):
    torch.jit.trace(nn.Linear(1, 1), torch.zeros(1)).save(path)


def damaged_archive(path):
    """The list of what is in it begins with other bytes; its end is whole."""
    archive(path)
    data = bytearray(path.read_bytes())
    data[data.rindex(b"PK\x01\x02")] = 0
    path.write_bytes(data)


def archive(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("weights.npy", b"")


OTHERS = {
    "a number of NumPy": ({"state_dict": WEIGHTS, "best": np.float64(0.5)}, "it holds numpy.*scalar, for which code"),
    "arguments": ({"state_dict": WEIGHTS, "args": argparse.Namespace(lr=1)}, "it holds argparse.Namespace, for which"),
    "a module": (nn.Linear(1, 1), r"it holds torch.nn.modules.linear.Linear, .*model.state_dict\(\) where they were"),
    "nothing": (b"", "it is an empty file: fetch it again"),
    "a page": (b"\n<!DOCTYPE html>", "it is a web page: fetch it again"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid", "it is a pointer of Git LFS"),
    "Keras": (b"\x89HDF\r\n\x1a\n", "it is an HDF5 file"),
    "gzip": (b"\x1f\x8b\x08", "it is a gzip archive: unpack it"),
    "TorchScript": (torchscript, r"it is TorchScript; save torch.jit.load\(FILE\).state_dict\(\)"),
    "a zip": (archive, "it is a zip archive of weights.npy …, not of torch.save"),
    "a damaged zip": (damaged_archive, "it is damaged, or holds more than tensors"),
    "other bytes": (b"abc", r"it is damaged, or holds more than tensors, .*expected a state dict saved by torch.save"),
}


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("name", OTHERS)
def test_other_files_are_told_apart(tmp_path, name):
    content, reason = OTHERS[name]
    path = tmp_path / "w.pth"
    if callable(content) and not isinstance(content, nn.Module):
        content(path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=f"cannot read weights '{path}': .*{reason}") as error:
        read_tensors(path, "weights")
    assert "\n" not in str(error.value)


@pytest.mark.long
def test_a_backbone_takes_its_part_whatever_it_lies_in(tmp_path):
    import torchvision

    state = torchvision.models.resnet18(weights=None).state_dict()
    expected = build_backbone("resnet18", weights=save(tmp_path / "plain.pth", state)).state_dict()
    lightning = {"state_dict": {f"model.{key}": value for key, value in state.items()}, "global_step": 2}
    assert same(build_backbone("resnet18", weights=save(tmp_path / "lightning.ckpt", lightning)).state_dict(), expected)
    save_file(state, tmp_path / "model.safetensors")
    assert same(build_backbone("resnet18", weights=tmp_path / "model.safetensors").state_dict(), expected)
    dino = save(tmp_path / "dino.pth", {"student": state, "teacher": state})
    with pytest.raises(ValueError, match=r"weights '.*dino.pth' hold no state dict but the keys student, teacher; exp"):
        build_backbone("resnet18", weights=dino)
    moco = {f"{name}.{key}": value for name in ("encoder_q", "encoder_k") for key, value in state.items()}
    with pytest.raises(ValueError, match=r"weights '.*moco.pth' holds several networks, encoder_k\. and encoder_q\."):
        build_backbone("resnet18", weights=save(tmp_path / "moco.pth", moco))


def save(path, content):
    torch.save(content, path)
    return path
