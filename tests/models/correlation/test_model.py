from __future__ import annotations

import pytest
import torch

from hdmnet.models.correlation.model import Correlation
from hdmnet.models.losses import SegmentationLoss
from hdmnet.models.prototype.model import Prototype
from tests.helpers.coloured import Colours, episode, iou


def fit(method, given, truth, steps):
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(method.train().parameter_groups(3e-3))
    loss = SegmentationLoss()
    for _ in range(steps):
        terms = loss(method(*given), truth)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
    return {name: float(value.detach()) for name, value in terms.items()}


def test_trained_on_red_things_it_finds_green_ones():
    """What it learns is how correlations look, not what its classes look like."""
    torch.manual_seed(0)
    method = Correlation(encoder=Colours(), width=8)
    given, truth = episode(of=0)
    terms = fit(method, given, truth[None], 80)
    assert set(terms) == {"loss", "final", "first"}
    assert terms["loss"] == pytest.approx(terms["final"] + terms["first"], rel=1e-5)
    given, truth = episode(of=1)
    with torch.no_grad():
        out = method.eval()(*given)
    assert iou(out.prediction[0], truth) > 0.6
    assert iou(out.prediction[0], episode(of=0)[1]) == 0
    assert len(out.maps["prior"]) == 2


@pytest.mark.parametrize("shots", [1, 3])
def test_before_training_it_answers_as_the_prototypes_do(shots):
    given, _ = episode(shots)
    untrained = Correlation(encoder=Colours()).eval()(*given)
    prototype = Prototype(encoder=Colours(), threshold_weight=1e9).eval()(*given)
    assert torch.equal(untrained.prediction, prototype.prediction)


def test_the_untrained_answer_counts_half():
    method = Correlation(encoder=Colours(), width=8)
    fit(method, *[one if isinstance(one, tuple) else one[None] for one in episode()], 5)
    given, _ = episode()
    with torch.no_grad():
        both, alone = method.eval()(*given), Prototype(encoder=Colours(), threshold_weight=1e9).eval()(*given)
        method.untrained_share = 0.0
        trained = method(*given)
    expected = (trained.scores.softmax(1) + alone.scores.softmax(1)) / 2
    torch.testing.assert_close(both.scores, expected.log(), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(trained.scores, alone.scores, atol=0.1)


def test_the_first_head_learns_from_its_own_prediction_alone():
    method = Correlation(encoder=Colours(), width=8)
    given, _ = episode()
    out = method.eval()(*given)
    out.scores.sum().backward()
    assert all(p.grad is None for p in method.first.parameters())
    assert all(p.grad is not None for p in method.second.parameters())


def test_without_the_second_head_the_first_ones_prediction_is_final():
    method = Correlation(encoder=Colours(), width=8, self_support=False)
    given, truth = episode()
    assert method.second is None
    assert method(*given).auxiliary == {}
    assert set(fit(method, given, truth[None], 1)) == {"loss", "final"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 6}, r"^model\.width=6: expected a multiple of 4$"),
        ({"width": 0}, r"^model\.width=0: expected an integer of 4 to 1024$"),
        ({"map_dropout": 1.0}, r"^model\.map_dropout=1\.0: expected a number in \[0, 1\)$"),
        ({"training_cache_gb": -1}, r"^model\.training_cache_gb=-1: expected a number of at least 0$"),
        ({"untrained_share": 1.0}, r"^model\.untrained_share=1\.0: expected a number in \[0, 1\)$"),
        ({"self_support": 1}, r"^model\.self_support=1: expected true or false$"),
    ],
)
def test_values_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        Correlation(encoder=Colours(), **options)
