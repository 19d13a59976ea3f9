"""Parts of one picture stretched alike."""

from __future__ import annotations

import threading

import pytest
import torch

from hdmnet.models.prior import SharedRanges, stretch

PARTS = torch.tensor([[[1.0, 3.0]], [[2.0, 9.0]], [[5.0, 5.0]]])  # (parts, 1, N)


@pytest.fixture
def ranges():
    """Of all parts, each of which has another map too."""
    seen = SharedRanges()
    for part in PARTS:
        with seen.part():
            torch.testing.assert_close(stretch(part), stretch_alone(part))
            stretch(-part)
    return seen


def stretch_alone(part):
    return (part - part.min()) / (part.max() - part.min() + 1e-7)


def test_parts_are_stretched_as_the_whole_is(ranges):
    ranges.fix()
    whole = stretch(torch.cat(list(PARTS), dim=1))
    with ranges.part():
        torch.testing.assert_close(stretch(PARTS[1]), whole[:, 2:4])
        torch.testing.assert_close(stretch(-PARTS[1]), 1 - whole[:, 2:4])
    with ranges.part():
        assert stretch(torch.tensor([[0.0, 20.0]])).tolist() == [[0.0, 1.0]], "beyond what was seen"
    torch.testing.assert_close(stretch(PARTS[0]), stretch_alone(PARTS[0]))  # outside of the block: by itself


def test_another_number_of_shots_takes_the_extremes_of_all():
    ranges = SharedRanges()
    with ranges.part():
        stretch(torch.tensor([[0.0, 4.0], [2.0, 8.0]]))
    ranges.fix()
    with ranges.part():
        torch.testing.assert_close(stretch(torch.tensor([[2.0, 4.0]] * 3)), torch.tensor([[0.25, 0.5]] * 3))


def test_ranges_go_through_lists_unchanged(ranges):
    again = SharedRanges()
    assert again.is_empty
    again.see_lists(ranges.to_lists())
    assert again.to_lists() == ranges.to_lists()
    again.fix()
    ranges.fix()
    for one in (again, ranges):
        assert one.is_empty
    with again.part():
        first = stretch(PARTS[0])
    with ranges.part():
        assert (stretch(PARTS[0]) == first).all()


def test_another_thread_is_not_concerned(ranges):
    ranges.fix()
    found = []
    with ranges.part():
        thread = threading.Thread(target=lambda: found.append(stretch(PARTS[0])))
        thread.start()
        thread.join()
    torch.testing.assert_close(found[0], stretch_alone(PARTS[0]))
