"""Value for value the official release: cases a (1 shot, 2 episodes), b (5 shots), c (Swin-B at 192), parts."""

from __future__ import annotations

import functools
from functools import partial

import pytest
import torch

from hdmnet.models.dcama.attention import position_code
from hdmnet.models.dcama.official import build_official, load_official_checkpoint, official_key
from tests.helpers import release_recipe as recipe
from tests.helpers.release_cases import (
    Case,
    check_inputs,
    check_keys,
    check_state,
    check_training,
    close,
    fill,
    make_small_state,
    refused,
    save,
    share_of_other_pixels,
    without_dropout,
)

LOGITS, MASKS = 1e-4, 1e-5  # what float32 noise allows
CASES = {"a": ("resnet50", 1, 2, 104), "b": ("resnet50", 5, 1, 109), "c": ("swin_b_384", 1, 1, 192)}
RECORDED_AS = {"resnet50": "resnet50", "swin_b_384": "swin"}


@functools.cache
def build_filled(backbone):
    """The release's model with the recipe's weights; Swin-B for 192 pixels."""
    options = {"image_size": 192} if backbone.startswith("swin") else {}
    model = build_official("coco", backbone, **options)
    fill(model, recipe.DCAMA.fill, partial(official_key, backbone=backbone))
    return model


@pytest.fixture(scope="module", params=CASES)
def case(request, facts):
    backbone, shots, batch, size = CASES[request.param]
    inputs = recipe.make_inputs(facts[request.param]["name"], shots, batch, size)
    return Case(request.param, build_filled(backbone), inputs, backbone)


@pytest.mark.long
def test_evaluation(case, arrays, facts):
    recorded = case.own(arrays)
    check_inputs(case.inputs, facts[case.letter])
    model, seen = case.model.eval(), []
    hook = model.decoder.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    with torch.no_grad():
        out = model(*case.episode)
    hook.remove()
    for name, masks in zip(("masks_conv3", "masks_conv2", "masks_conv1"), seen[0], strict=True):
        close(masks.flatten()[: len(recorded[name])], recorded[name], MASKS)
    close(out.logits[..., ::4, ::4], recorded["step4"], LOGITS)
    if "raw_step4" in recorded:
        assert out.scores.shape[2:] == (112, 112)
        close(out.scores[..., ::4, ::4], recorded["raw_step4"], LOGITS)
    assert share_of_other_pixels(out.prediction, recorded["pred"]) <= 1e-3


@pytest.mark.parametrize("case", ["a", pytest.param("c", marks=pytest.mark.slow)], indirect=True)
def test_training(case, facts):
    options = {"image_size": 192} if case.letter == "c" else {}
    model = build_official("pascal", case.backbone, **options)
    model.load_state_dict(case.model.state_dict())
    check_training(
        without_dropout(model),
        case.episode,
        case.target,
        facts[case.letter]["train"],
        official_key=partial(official_key, backbone=case.backbone),
        optimizer=partial(torch.optim.SGD, momentum=0.9, nesterov=True, weight_decay=1e-4),
        norms=1e-3,
        per_parameter=1e-2,
    )
    before = case.model.trunk.state_dict()
    assert all(torch.equal(value, before[key]) for key, value in model.trunk.state_dict().items())


@pytest.mark.parametrize("channels", [32, 512, 2048])
def test_position_code(channels, arrays):
    rows = [0, 1, 2, 7, 47, 48, 143, 575, 576, 2303, 9999]
    half = channels // 2
    columns = [0, 1, 2, 3, half, half + 1, channels - 2, channels - 1]
    close(position_code(10_000, channels)[rows][:, columns], arrays[f"unit.pe{channels}"], 1e-5)


# ------------------------------------------------------------------------------------------------- keys and files


@pytest.mark.long
@pytest.mark.parametrize(
    ("backbone", "learnable"), [("resnet50", 14_215_394), ("resnet101", 14_222_194), ("swin_b_384", 5_073_394)]
)
def test_keys_shapes_and_counts(backbone, learnable, facts):
    recorded = facts["keys"].get(RECORDED_AS.get(backbone, backbone))
    with torch.device("meta"):
        model = build_official("coco", backbone)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == recorded["learnable_params"] == learnable
    if "state_dict" not in recorded:
        return
    unused = ("feature_extractor.fc.", "feature_extractor.head.", "feature_extractor.norm.", "model.pe.")
    computed = (".attn_mask", ".relative_position_index")
    check_keys(
        model,
        partial(official_key, backbone=backbone),
        recorded["state_dict"],
        recorded["learnable"],
        left_out=lambda key: key.startswith(unused) or key.endswith(computed),
    )


@pytest.mark.parametrize("backbone", ["resnet50", pytest.param("swin_b_384", marks=pytest.mark.slow)])
def test_a_file_is_read(backbone, facts, tmp_path):
    """With its position codes and what Swin computes, and without."""
    state = make_small_state(facts["keys"][RECORDED_AS[backbone]]["state_dict"])
    path = save({f"module.{key}": value for key, value in state.items()}, tmp_path / "official.pth")
    model = load_official_checkpoint(path, "coco", backbone, 5)
    check_state(model, partial(official_key, backbone=backbone), state)
    if backbone.startswith("swin"):
        computed = [value for name, value in model.named_buffers() if name.endswith("relative_position_index")]
        assert all(value.max() == 22 * 24 for value in computed if len(value) == 144)  # no memory that nobody filled
        assert len(computed) == 24


@pytest.mark.long
def test_what_does_not_fit_is_refused_in_one_line(facts, tmp_path):
    path = tmp_path / "official.pth"
    state = make_small_state(facts["keys"]["swin"]["state_dict"])

    def refuse(match, backbone="swin_b_384", **settings):
        refused(lambda file: load_official_checkpoint(file, "coco", backbone, 1, **settings), state, path, match)

    refuse(r"does not fit DCAMA dataset=coco backbone=resnet50 .*looks like backbone=swin_b_384$", "resnet50")
    refuse(r"misshapen: .*layers\.3\.blocks.*\(529, 32\) instead of \(121, 32\)", image_size=192)
    refuse(r"backbone='vgg16': the release has only resnet50, resnet101, swin_b_384", "vgg16")
