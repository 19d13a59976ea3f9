"""Which controls a config asks for, why one is missing, and the one warning."""

from __future__ import annotations

import math

import pytest
import torch
from omegaconf import OmegaConf

from hdmnet.models.correlation.model import Correlation
from hdmnet.models.prototype.model import Prototype
from hdmnet.run.baselines import build_controls, describe_baselines
from hdmnet.tasks.controls import ONES, UNTRAINED, Controls
from hdmnet.tasks.episode_table import join_tables
from tests.helpers.coloured import Colours
from tests.helpers.episode_tables import table
from tests.helpers.toy_method import Painter


class Odd(Painter):
    """Keeps a backbone that gives less than it says."""

    def __init__(self):
        super().__init__()
        self.backbone = Colours()
        self.backbone.forward = lambda images: (images,)


def config(**changes):
    keys = {
        "baseline_episodes": 5,
        "support_mask": "given",
        "model": {"name": "mine"},
        "dataset": {"controls": False, "image_size": [48, 64]},
    }
    return OmegaConf.create(keys | changes)


def test_what_is_asked_for():
    method = Correlation(encoder=Colours())
    controls = build_controls(config(), method)
    assert (controls.names, controls.limit, controls.missing) == ((UNTRAINED, ONES), 5, {})
    assert build_controls(config(), method, everything=True).limit is None
    whole = {"controls": True, "image_size": 48}
    assert build_controls(config(dataset=whole), method).limit is None
    alone = build_controls(config(baseline_episodes=0, dataset=whole), method)
    assert alone.names == (ONES,)
    assert alone.missing == {UNTRAINED: "not asked for (baseline_episodes=0)"}
    assert build_controls(config(baseline_episodes=0), method) is None
    assert build_controls(config(support_mask="ones"), method) is None


@pytest.mark.parametrize(
    ("method", "why"),
    [
        (Prototype(encoder=Colours()), "this is the untrained prototype"),
        (Painter(), "model=mine: it keeps no backbone that gives features of levels"),
        (Odd(), "model=mine: "),
    ],
)
def test_why_there_is_no_prototype(method, why):
    controls = build_controls(config(), method)
    assert controls.names == (ONES,)
    assert controls.missing[UNTRAINED].startswith(why)
    assert "\n" not in controls.missing[UNTRAINED]


def describe(final, untrained, ones, learns=True):
    """The entry of 20 episodes of two classes with these shares of 100 pixels found, each a little different."""
    shares = {"final": final, UNTRAINED: untrained, ONES: ones}
    episodes = table(
        **{name: [(i, i % 2, i, share + (i * 7) % 5, 100) for i in range(20)] for name, share in shares.items()}
    )
    method = Painter() if learns else Painter().requires_grad_(False)
    controls = Controls(method, untrained=Prototype(encoder=Colours()))
    return describe_baselines(controls, episodes)


def test_a_method_that_is_better_than_both_is_not_warned_of():
    entry = describe(50, 40, 30)
    assert entry["warning"] is None
    assert (entry["num_episodes"], entry["miou"]) == (20, pytest.approx(0.52))
    assert entry[UNTRAINED]["difference"] == pytest.approx(0.1)
    assert entry[UNTRAINED]["is_above"] is True
    assert entry[ONES]["interval"] == pytest.approx([0.2, 0.2])


def test_one_that_is_not_is():
    warning = describe(40, 50, 45)["warning"]
    assert warning.startswith("the trained model does not use its support: with support masks of ones it reaches 47.0")
    assert "; it does no better than a method without training" in warning
    assert "model=correlation" in warning
    only = describe(60, 62, 20)["warning"]
    assert only.startswith("the trained model does no better than a method without training: ")
    assert "does not use its support" not in only


def test_a_method_without_training_need_not_be_better_than_another():
    assert describe(40, 50, 30, learns=False)["warning"] is None
    assert describe(40, 50, 45, learns=False)["warning"].startswith("the method does not use its support: ")


def test_where_nothing_tells_nothing_is_warned_of():
    episodes = table(**{"final": [(0, 0, "q", 1, 10)], ONES: [(0, 0, "q", 5, 10)]})
    controls = Controls(Painter(), untrained=Prototype(encoder=Colours()))
    controls.missing[UNTRAINED] = "out of memory"
    entry = describe_baselines(controls, episodes)
    assert entry[ONES]["is_above"] is None
    assert entry[ONES]["interval"] == [-math.inf, math.inf]
    assert entry["missing"] == {UNTRAINED: "out of memory"}
    assert entry["warning"] is None
    nothing = describe_baselines(Controls(Painter(), untrained=None), join_tables([], ()))
    assert nothing["missing"] == {ONES: "no episode to count"}
    assert torch.tensor(nothing["miou"]).isnan()
