"""Checkpoints of BAM's official release.

Every key has exactly one place in our model: `official_key` gives it.
"""

from __future__ import annotations

import re
from pathlib import Path

from hdmnet.models.bam.model import BAM
from hdmnet.models.official import ENSEMBLE, OFFICIAL_BACKBONES, check_variant, load_release, translate
from hdmnet.models.official_base_learner import build_official_base_learner, official_base_learner_key

BACKBONES = OFFICIAL_BACKBONES
IMAGE_SIZES = {"pascal": 473, "coco": 641}  # side of the square, in pixels

# Our key → the official one.
_RULES = (
    (r"down_query\.(.*)", r"down_query.\1"),
    (r"down_support\.(.*)", r"down_supp.\1"),
    (r"merge\.(.*)", r"init_merge.\1"),
    (r"aspp\.branches\.(.*)", r"ASPP_meta.layer6_\1"),
    (r"reduce\.(.*)", r"res1_meta.\1"),
    (r"refine\.(.*)", r"res2_meta.\1"),
    (r"classify\.(.*)", r"cls_meta.\1"),
    *((rf"ensemble\.{ours}", theirs) for ours, theirs in ENSEMBLE),
)


def official_key(key: str) -> str:
    """The official name of a parameter or buffer of `BAM`; KeyError if the release has none."""
    if not key.startswith("trunk."):
        return translate(key, _RULES)
    # The base learner (PSPNet) is whole in it, its two parts numbered.
    name = official_base_learner_key(key.removeprefix("trunk.base_learner."))
    return re.sub(r"^(ppm|cls)\.", lambda match: f"learner_base.{('ppm', 'cls').index(match[1])}.", name)


def build_official(dataset: str, backbone: str, shot: int = 1) -> BAM:
    """An untrained BAM with exactly the release's switches, in eval mode; as `load_official_checkpoint`."""
    check_variant(dataset, backbone, shot)
    return BAM(encoder=build_official_base_learner(dataset, backbone), num_shots=shot).eval()


def load_official_checkpoint(path: str | Path, dataset: str, backbone: str, shot: int) -> BAM:
    """Read an official BAM checkpoint, as `load_release` says; its backbone is "resnet50_v2" or "vgg16" (BN).

    Every `shot` has weights of its own: a 1-shot file is none for five supports.
    """
    asked = {"dataset": dataset, "backbone": backbone, "shot": shot}
    return load_release(path, build_official, official_key, kind="BAM", **asked)
