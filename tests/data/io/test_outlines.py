"""Polygons along the edges of pixels: what other programs draw of them, and how far simplifying may go."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw

from hdmnet.data.io.outlines import LEAST_IOU, draw_outline, fill_polygon, find_parts, has_holes
from tests.helpers.random_masks import random_masks


def by_opencv(polygon, size):
    drawn = np.zeros(size, dtype=np.uint8)
    cv2.fillPoly(drawn, [polygon.astype(np.int32)], 1)
    return drawn.astype(bool)


def by_pillow(polygon, size):
    drawn = Image.fromarray(np.zeros(size, dtype=np.uint8))
    ImageDraw.Draw(drawn).polygon([tuple(point) for point in polygon.tolist()], outline=1, fill=1)
    return np.asarray(drawn).astype(bool)


def iou(one, other):
    return (one & other).sum() / (one | other).sum()


def test_parts_are_joined_by_edges_and_make_up_the_mask():
    for mask in random_masks(40):
        whole = np.zeros(mask.shape, dtype=int)
        for x, y, part in find_parts(mask > 0):
            whole[y : y + part.shape[0], x : x + part.shape[1]] += part
        assert (whole == mask).all()
    assert len(find_parts(np.eye(3, dtype=bool))) == 3
    assert find_parts(np.zeros((3, 3), dtype=bool)) == []


def test_a_pixel_is_a_square_and_a_hole_is_cut_open():
    square = draw_outline(np.ones((1, 1), dtype=bool), 1.0)
    assert sorted(np.round(square).tolist()) == [[0, 0], [0, 1], [1, 0], [1, 1]]
    np.testing.assert_allclose(square, np.round(square), atol=0.011)
    ring = np.ones((3, 3), dtype=bool)
    assert not has_holes(ring)
    ring[1, 1] = False
    assert has_holes(ring)
    outline = draw_outline(ring, 0)
    assert len(outline) == 4 + 4 + 4  # the corners of both, and the cut's two ends, twice each
    assert (fill_polygon(outline, 3, 3) == ring).all()


def test_outlines_are_drawn_as_the_mask_by_the_three_ways_of_drawing():
    for mask in random_masks(200, seed=1):
        for _, _, part in find_parts(mask > 0):
            polygon = draw_outline(part, 0)
            assert (fill_polygon(polygon, *part.shape) == part).all()
            assert (by_opencv(polygon, part.shape) == part).all()
            if not has_holes(part):  # Pillow's are of one ring
                assert (by_pillow(polygon, part.shape) == part).all()


@pytest.mark.parametrize("tolerance", [1.0, 4.0])
def test_simplified_outlines_keep_to_the_stated_overlap(tolerance):
    corners = {0: 0, tolerance: 0}
    for mask in random_masks(24, seed=2):
        for _, _, part in find_parts(cv2.resize(mask, None, fx=4, fy=4, interpolation=cv2.INTER_LINEAR) > 0):
            polygon = draw_outline(part, tolerance)
            assert iou(fill_polygon(polygon, *part.shape), part) >= LEAST_IOU
            assert iou(by_opencv(polygon, part.shape), part) >= LEAST_IOU
            for one in corners:
                corners[one] += len(draw_outline(part, one))
    assert corners[tolerance] < 0.8 * corners[0]
