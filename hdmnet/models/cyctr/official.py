"""Checkpoints of CyCTR's official release.

Every key has exactly one place in our model: `official_key` gives it.
"""

from __future__ import annotations

import re
from pathlib import Path

from hdmnet.models.backbones.build import build_backbone
from hdmnet.models.cyctr.model import CyCTR
from hdmnet.models.official import check_variant, load_release, translate

IMAGE_SIZES = {"pascal": 473, "coco": 473}  # side of the square, in pixels
BACKBONES = ("resnet50_v2",)

_SELF = {"offsets": "sampling_offsets", "weights": "attention_weights", "value": "value_proj", "output": "output_proj"}
_CROSS = {"query": "q_fc", "key": "k_fc", "value": "v_fc", "output": "proj"}
_PARTS = {"reduce_query": "adjust_feature_qry", "reduce_support": "adjust_feature_supp"}
_PARTS |= {"merge_query": "qry_merge_feat", "merge_support": "supp_merge_feat", "classify": "cls"}
_PARTS |= {"project": "merge_multi_lvl_reduce", "refine": "merge_multi_lvl_sum"}
_PARTS |= {"support_head.project": "pred_supp_qry_proj", "support_head.merge": "supp_init_merge"}
_PARTS |= {"support_head.refine": "supp_beta_conv", "support_head.classify": "supp_cls"}
_PARTS |= {f"trunk.backbone.parts.0.{3 * k}": f"backbone.body.conv{k + 1}" for k in range(3)}
_PARTS |= {f"trunk.backbone.parts.0.{3 * k + 1}": f"backbone.body.bn{k + 1}" for k in range(3)}
_PARTS |= {f"trunk.backbone.parts.{k}": f"backbone.body.layer{k}" for k in range(1, 5)}
for k in (0, 1):
    own, theirs = f"transformer.layers.{k}", "transformer"
    _PARTS |= {f"{own}.self_attention.{a}": f"{theirs}.qry_self_layers.{k}.{b}" for a, b in _SELF.items()}
    _PARTS |= {f"{own}.cross_attention.{a}": f"{theirs}.cross_layers.{k}.{b}" for a, b in _CROSS.items()}
    # Counted over both layers, in the order of their use.
    _PARTS |= {f"{own}.norm{i + 1}": f"{theirs}.layer_norms.{4 * k + i}" for i in range(4)}
    _PARTS |= {f"{own}.feed_forward{i + 1}.0": f"{theirs}.ffns.{2 * k + i}.layers.0.0" for i in (0, 1)}
    _PARTS |= {f"{own}.feed_forward{i + 1}.3": f"{theirs}.ffns.{2 * k + i}.layers.1" for i in (0, 1)}
# Our key → the official one.
_RULES = (
    (r"transformer\.level", r"transformer.level_embed"),
    *((rf"{re.escape(own)}\.(.*)", rf"{theirs}.\1") for own, theirs in _PARTS.items()),
)
_UNUSED = r"addtional_proj\..*"  # in every file, and in no computation


def official_key(key: str) -> str:
    """The official name of a parameter or buffer of `CyCTR`; KeyError if the release has none."""
    return translate(key, _RULES)


def build_official(dataset: str, backbone: str, shot: int = 1, *, flags: str = "release") -> CyCTR:
    """An untrained CyCTR with exactly the release's switches, in eval mode; as `load_official_checkpoint`."""
    check_variant(dataset, backbone, shot, backbones=BACKBONES)
    return CyCTR(encoder=build_backbone(backbone, dilation="torchvision"), num_shots=shot, flags=flags).eval()


def load_official_checkpoint(
    path: str | Path, dataset: str, backbone: str, shot: int, *, flags: str = "release"
) -> CyCTR:
    """Read an official CyCTR checkpoint, as `load_release` says.

    The network is the same for every data set and any `shot`; `backbone` is "resnet50_v2" (deep stem).
    """
    asked = {"dataset": dataset, "backbone": backbone, "shot": shot, "flags": flags}
    return load_release(path, build_official, official_key, _UNUSED, kind="CyCTR", **asked)
