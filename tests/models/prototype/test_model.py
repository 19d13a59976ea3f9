from __future__ import annotations

import pytest
import torch

from hdmnet.models import thresholds
from hdmnet.models.prototype.model import Prototype
from tests.helpers.coloured import Colours, episode, iou


@pytest.mark.parametrize("of", [0, 1])
@pytest.mark.parametrize("shots", [1, 3])
def test_it_finds_what_is_marked_and_nothing_else(of, shots):
    given, truth = episode(shots, of)
    out = Prototype(encoder=Colours()).eval()(*given)
    assert iou(out.prediction[0], truth) > 0.7
    assert iou(out.prediction[0], episode(shots, 1 - of)[1]) == 0
    prior = out.maps["prior"][0]
    assert (float(prior.min()), float(prior.max())) == pytest.approx((0, 1), abs=1e-5)


def test_probabilities_cross_a_half_at_the_threshold():
    given, _ = episode()
    method = Prototype(encoder=Colours(), threshold=0.6, threshold_weight=1e6).eval()
    out = method(*given)
    difference = out.scores[:, 1] - out.scores[:, 0]
    torch.testing.assert_close(difference, 20 * (out.maps["prior"][0] - 0.6), rtol=1e-4, atol=1e-3)


def test_the_threshold_is_found_on_supports_that_the_others_segment(monkeypatch):
    """Of two supports with unlike objects each is segmented by the other's prototype, not by its own."""
    seen = []

    def choose(maps, foreground, **options):
        seen.append(maps)
        return thresholds.choose_thresholds(maps, foreground, **options)

    monkeypatch.setattr("hdmnet.models.prototype.model.choose_thresholds", choose)
    (query, pictures, masks), _ = episode(2)
    other = episode(2, of=1)[0][2]
    method = Prototype(encoder=Colours(), spread_steps=0).eval()
    method(query, pictures, torch.stack([masks[0, 0], other[0, 1]])[None])
    (maps,) = seen
    cells = torch.nn.functional.avg_pool2d(torch.stack([masks[0], other[0]]).float(), 4)  # (red/green, support, h, w)
    assert maps[0][cells[1, 0] == 1].mean() > 0.9  # green, as the second support marks
    assert maps[0][cells[0, 0] == 1].mean() < 0.5
    assert maps[1][cells[0, 1] == 1].mean() > 0.9
    method(query, pictures[:, :1], masks[:, :1])
    assert seen[1][0][cells[0, 0] == 1].mean() > 0.9  # a single one by itself


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.0}, r"^model\.threshold=1\.0: expected a number in \[0, 1\)$"),
        ({"threshold_weight": 0}, r"^model\.threshold_weight=0: expected a number above 0$"),
        ({"spread_steps": -1}, r"^model\.spread_steps=-1: expected an integer"),
        ({"spread_scale": 0.0}, r"^model\.spread_scale=0\.0: expected a number above 0$"),
    ],
)
def test_values_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        Prototype(encoder=Colours(), **options)
