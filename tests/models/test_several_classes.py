"""The joint decision between classes: worked by hand, and one class alone as ever."""

from __future__ import annotations

import pytest
import torch

from hdmnet.models.hsnet.model import vote
from hdmnet.models.method import Segmentation, foreground_probability
from hdmnet.models.several_classes import are_shown, decide_together, likeness_of, log_odds
from hdmnet.tasks.feature_store import at_size

# Background and foreground of four pixels in a row.
CAT = torch.tensor([[[0.0, 0.0, 3.0, 9.0]], [[1.0, 2.0, 1.0, 8.0]]])
DOG = torch.tensor([[[5.0, 0.0, 0.0, 0.0]], [[7.0, 1.0, -1.0, 0.0]]])


def said(*several, is_probability=False):
    return [(one[1] > one[0], log_odds(one, is_probability=is_probability)) for one in several]


def test_the_class_furthest_ahead_of_the_background_wins():
    # Ahead by: cat 1, 2, -2, -1; dog 2, 1, -1, 0. The last two pixels are ahead in none: background.
    assert decide_together(said(CAT, DOG)).tolist() == [[2, 1, 0, 0]]
    assert decide_together(said(DOG, CAT)).tolist() == [[1, 2, 0, 0]]
    joint = torch.stack([torch.zeros(1, 4), CAT[1] - CAT[0], DOG[1] - DOG[0]]).softmax(0)
    assert decide_together(said(CAT, DOG)).equal(joint.argmax(0).to(torch.uint8))


def test_probabilities_are_compared_by_their_ratio():
    """A fused map need not add up to 1: what counts is how often foreground outweighs background."""
    cat = torch.tensor([[[0.2, 0.3, 0.5]], [[0.6, 0.4, 0.4]]])  # 3, 1.33, 0.8
    dog = torch.tensor([[[0.1, 0.1, 0.4]], [[0.2, 0.3, 0.5]]])  # 2, 3, 1.25
    assert decide_together(said(cat, dog, is_probability=True)).tolist() == [[1, 2, 2]]
    both = torch.tensor([[[-0.1]], [[0.0]]])  # a "probability" may be below 0
    assert log_odds(both, is_probability=True).isfinite().all()


@pytest.mark.parametrize("is_probability", [False, True])
def test_one_class_is_decided_as_ever(is_probability):
    scores = torch.randn(2, 30, 30, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    scores = scores.softmax(0) if is_probability else scores
    alone = decide_together(said(scores, is_probability=is_probability))
    assert (scores[1] == scores[0]).any()
    assert alone.equal((scores[1] > scores[0]).to(torch.uint8))
    assert alone.equal(scores.argmax(0).to(torch.uint8))
    odds = log_odds(scores, is_probability=is_probability)
    torch.testing.assert_close(odds.sigmoid(), foreground_probability(scores, is_probability=is_probability))


def test_where_a_probability_is_rounded_to_1_the_scores_still_tell():
    sure, surer = torch.tensor([[[0.0]], [[20.0]]]), torch.tensor([[[0.0]], [[30.0]]])
    assert foreground_probability(sure, is_probability=False) == foreground_probability(surer, is_probability=False)
    assert decide_together(said(sure, surer)).item() == 2


def test_equal_classes_are_the_first():
    assert decide_together(said(CAT, CAT, CAT)).tolist() == [[1, 1, 0, 0]]


def test_a_methods_own_rule_stands_and_votes_rank_the_classes():
    """HSNet with four supports. Votes of cat: 1 2 4 0, at least half of the most: 0 1 1 0. Of dog: 1 1 1 1: all."""

    def answers(votes):
        scores = [torch.tensor([[[[0.0] * 4], [[1.0 if vote > k else -1.0 for vote in votes]]]]) for k in range(4)]
        return vote([Segmentation(one, (1, 4)) for one in scores])

    cat, dog = answers([1, 2, 4, 0]), answers([1, 1, 1, 1])
    assert (cat.decided.tolist(), dog.decided.tolist()) == ([[[0, 1, 1, 0]]], [[[1, 1, 1, 1]]])
    classes = []
    for output in (cat, dog):
        scores, foreground = at_size(output, 0, torch.Size((1, 4)))
        classes.append((foreground, log_odds(scores, is_probability=True)))
    # The first pixel is dog's though cat has as many votes there: cat's rule says background.
    assert decide_together(classes).tolist() == [[2, 1, 1, 2]]


def test_there_must_be_a_class():
    with pytest.raises(ValueError, match=r"^no class to decide between"):
        decide_together([])


def test_classes_far_less_like_their_supports_than_another_are_not_shown():
    told = [torch.tensor(value) for value in (0.3, 0.29, 0.2)]
    assert are_shown(told) == [True, True, False]
    assert are_shown([*told, None]) == [True] * 4
    assert are_shown([torch.tensor(-0.5)]) == [True]
    assert decide_together(said(CAT, DOG), [told[0], told[1]]).tolist() == [[2, 1, 0, 0]]
    assert decide_together(said(CAT, DOG), [told[0], told[2]]).tolist() == [[1, 1, 0, 0]]
    assert decide_together(said(CAT, DOG), [None, told[2]]).tolist() == [[2, 1, 0, 0]]


def test_what_a_batch_tells_of_an_item():
    scores = torch.zeros(2, 2, 1, 4)
    outputs = [Segmentation(scores, (1, 4), likeness=torch.tensor([0.1, 0.2])), Segmentation(scores, (1, 4))]
    first, second = likeness_of(outputs, 1)
    assert first == torch.tensor(0.2)
    assert second is None
