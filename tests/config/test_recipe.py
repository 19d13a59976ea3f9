"""Recipes: what each paper does in training, and what is the same for all."""

from __future__ import annotations

import pytest

from hdmnet.config.checks import validate
from hdmnet.config.paths import conf_dir
from hdmnet.config.values import to_plain
from tests.helpers.commands import ROOT

# Size of the pictures on PASCAL-5i and COCO-20i, augmentation, whether images with novel classes are left out.
PUBLISHED = {
    "hdmnet": (473, 633, "official", True),
    "baseline": (473, 633, "official", True),
    "bam": (473, 641, "pfenet", True),
    "pfenet": (473, 641, "pfenet", False),
    "cyctr": (473, 473, "pfenet", False),
    "hsnet": (400, 400, "none", False),
    "dcama": (384, 384, "none", False),
    "ssp": (473, 473, "crop", False),
    "panet": (417, 417, "flip", False),
}
METHODS = sorted(file.stem for file in (conf_dir() / "model").glob("*.yaml"))
HERE = [method for method in PUBLISHED if method in METHODS]
OF_A_RELEASE = {file.parent.name for file in (ROOT / "hdmnet" / "models").glob("*/official.py")}


def composed(compose_config, method, dataset, recipe):
    cfg = compose_config("train", f"model={method}", f"dataset={dataset}", f"recipe={recipe}")
    validate(cfg)
    return to_plain(cfg)


def test_every_method_of_a_release_has_a_published_recipe():
    assert PUBLISHED.keys() >= OF_A_RELEASE
    files = {file.stem for file in (conf_dir() / "recipe_on_dataset").glob("*.yaml")}
    assert files == {f"published_{method}_{dataset}" for method in PUBLISHED for dataset in ("pascal", "coco")}


@pytest.mark.long
@pytest.mark.parametrize("method", HERE)
def test_published_is_what_the_paper_does(compose_config, method):
    pascal, coco = (composed(compose_config, method, dataset, "published") for dataset in ("pascal", "coco"))
    found = (pascal["dataset"]["image_size"], coco["dataset"]["image_size"])
    assert (*found, pascal["augment"]["name"], pascal["dataset"]["filter_novel"]) == PUBLISHED[method]
    assert coco["augment"]["name"] == pascal["augment"]["name"]
    plain = composed(compose_config, method, "pascal", "default")
    stages = [{key: one["optim"][key] for key in one["optim"] if key != "base"} for one in (pascal, plain)]
    assert stages[0] == stages[1]  # conf/optim holds the paper's
    if method in ("hdmnet", "bam"):  # stage 1 as BAM's release has it
        base = pascal["optim"]["base"]
        assert (base["images"], base["augment"], base["lr"], base["head_lr_factor"]) == (
            "all",
            "bam_release",
            2.5e-4,
            10,
        )
        assert coco["optim"]["base"]["lr"] * coco["optim"]["base"]["head_lr_factor"] == 2.5e-3
        assert coco["optim"]["base"]["lr"] == 2.5e-3
    assert pascal["recipe"] == "published"
    assert pascal["protocol"] == plain["protocol"]


def test_panets_own(compose_config):
    found = composed(compose_config, "panet", "coco", "published")
    assert (found["backbone"]["name"], found["selection"], found["dataset"]["split_rule"]) == (
        "vgg16_plain", "last", "contiguous"
    )  # fmt: skip


@pytest.mark.parametrize("words", [("model=hsnet",), ("model=prototype", "dataset=pascal")])
def test_what_no_paper_trains_is_refused(compose_config, words):
    with pytest.raises(ValueError, match=r"^recipe=unpublished: expected default or common: no paper trains"):
        validate(compose_config("train", "recipe=published", *words))


def _told_apart(plain, method):
    """All that may differ between methods of the common recipe, taken out."""
    for key in ("model", "loss"):
        plain.pop(key)
    plain["optim"].pop("lr"), plain["optim"].pop("groups")
    plain["backbone"].pop("dilation")
    return plain


@pytest.mark.long
@pytest.mark.parametrize("dataset", ["shapes", "pascal", "coco"])
def test_common_is_the_same_for_all_but_the_method_and_its_rate(compose_config, dataset):
    several = {method: composed(compose_config, method, dataset, "common") for method in METHODS}
    assert {plain["model"]["encoder"] for plain in several.values()} == {"base_learner"}
    assert {plain["augment"]["name"] for plain in several.values()} == {several["hdmnet"]["dataset"]["augment"]}
    assert all(1e-4 <= plain["optim"]["lr"] <= 1e-3 for plain in several.values())
    first, *others = (_told_apart(plain, method) for method, plain in several.items())
    assert all(other == first for other in others)


def test_the_command_line_wins_over_a_recipe(compose_config):
    found = to_plain(compose_config("train", "recipe=common", "model=panet", "optim.lr=5", "optim.max_steps=7"))
    assert (found["optim"]["lr"], found["optim"]["max_steps"]) == (5, 7)
