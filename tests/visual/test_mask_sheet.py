"""Sheets of masks: what of a name is shown. The sheet itself: tests/apps/test_review.py."""

from __future__ import annotations

from hdmnet.visual import mask_sheet


def test_names_that_are_too_long_lose_their_middle():
    assert mask_sheet._cut("short.png", 13, 200) == "short.png"
    cut = mask_sheet._cut("a" * 80 + "_0001.png", 13, 200)
    assert (cut[:3], cut[-9:], "…" in cut) == ("aaa", "_0001.png", True)
