"""Pictures of episodes: what is painted where."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from hdmnet.models.method import Segmentation
from hdmnet.visual.colours import PREDICTION, TRUTH
from hdmnet.visual.episode_grid import draw_batch_item, draw_episode, episode_iou, save_sheet, stack_rows

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _count(picture: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((picture == np.array(colour)).all(axis=-1).sum())


def _parts(size: tuple[int, int] = (33, 33), shots: int = 1) -> dict[str, Any]:
    """Black images whose query truth is the left half and whose prediction is the top half."""
    height, width = size
    truth = np.zeros(size, dtype=np.uint8)
    truth[:, : width // 2] = 1
    prediction = np.zeros(size, dtype=np.int64)
    prediction[: height // 2] = 1
    return {
        "query_image": np.zeros((height, width, 3), dtype=np.uint8),
        "query_mask": truth,
        "support_images": np.zeros((shots, height, width, 3), dtype=np.uint8),
        "support_masks": np.repeat(truth[None], shots, axis=0),
        "predictions": {"final": prediction},
        "class_name": "star",
        "query_id": "q1",
        "support_ids": [f"s{k}" for k in range(shots)],
    }


def _maps() -> dict[str, Any]:
    ramp = np.linspace(-1, 1, 25, dtype=np.float32).reshape(5, 5)
    return {"maps": {"prior": [ramp, ramp * 0], "correlation": [ramp, ramp[:3, :3]]}}


def test_episode_iou_leaves_ignored_pixels_out() -> None:
    truth = np.array([[1, 1, 0], [0, 255, 255]])
    assert episode_iou(np.array([[1, 0, 1], [0, 1, 0]]), truth) == pytest.approx(1 / 3)
    assert math.isnan(episode_iou(np.zeros((2, 2)), np.zeros((2, 2))))


def test_row_grows_by_one_panel_for_each_thing_shown() -> None:
    one = draw_episode(**_parts())
    panel = 208  # 200 pixels and a gap; three panels: support, query, final
    assert one.shape == (288, 3 * panel + 8, 3)
    assert one.dtype == np.uint8
    two = {"predictions": dict.fromkeys(("final", "meta"), _parts()["predictions"]["final"])}
    assert draw_episode(**(_parts() | two)).shape[1] == 4 * panel + 8
    assert draw_episode(**_parts(), **_maps()).shape[1] == 7 * panel + 8
    assert draw_episode(**_parts(shots=5)).shape[1] == 7 * panel + 8
    assert draw_episode(**_parts(shots=9)).shape[1] == 7 * panel + 8  # five supports at most
    assert draw_episode(**_parts(size=(20, 40))).shape[1] == 3 * 408 + 8  # the aspect ratio is kept
    assert draw_episode(**_parts(size=(473, 473))).shape == one.shape


def test_masks_are_painted_where_they_are() -> None:
    row = draw_episode(**_parts())
    support, query, final = (row[80:280, 8 + 208 * n : 208 + 208 * n] for n in range(3))
    tint = (0.35 * np.array(TRUTH)).astype(np.uint8)
    for panel in (support, query):
        assert panel[100, 50].tolist() == tint.tolist()
        assert panel[100, 150].tolist() == [0, 0, 0]
        assert _count(panel, TRUTH) > 300  # the outline
        assert _count(panel, PREDICTION) == 0
    assert final[50, 150].tolist() == (0.35 * np.array(PREDICTION)).astype(np.uint8).tolist()
    assert final[150, 50].tolist() == [0, 0, 0]
    assert _count(final, TRUTH) == 0


def test_ignored_pixels_are_hatched_and_hold_no_truth() -> None:
    parts = _parts()
    parts["query_mask"] = np.full((33, 33), 255, dtype=np.uint8)
    query = draw_episode(**parts)[80:280, 216:416]
    assert _count(query, (190, 190, 190)) == pytest.approx(20000, abs=10)  # every other stripe of 200 x 200
    assert _count(query, (190, 190, 190)) + _count(query, (0, 0, 0)) == 40000
    assert _count(query, TRUTH) == 0


def test_heat_maps_run_from_least_to_largest_and_survive_constant_maps_and_nan() -> None:
    row = draw_episode(**_parts(), **_maps())
    prior, flat, fine, coarse = (row[80:280, 8 + 208 * n : 208 + 208 * n] for n in range(3, 7))
    for panel in (prior, fine, coarse):
        assert panel[2, 2].tolist() == [68, 1, 84]  # viridis at 0
        assert panel[197, 197].tolist() == [253, 231, 36]  # viridis at 1
    assert flat[2, 2].tolist() == flat[197, 197].tolist() == [68, 1, 84]
    assert len({tuple(cell) for cell in coarse[33::67, 33::67].reshape(-1, 3)}) == 9  # 3 x 3 cells, not smoothed
    holes = np.full((5, 5), np.nan, dtype=np.float32)
    assert draw_episode(**_parts(), maps={"correlation": [holes]}).shape[1] == 4 * 208 + 8


def test_stacked_rows_keep_their_order_and_width() -> None:
    red, blue = np.zeros((10, 700, 3), np.uint8), np.zeros((20, 900, 3), np.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    sheet = stack_rows([red, blue], "validation")
    assert sheet.shape == (70, 900, 3)
    assert sheet[45, 5].tolist() == [255, 0, 0]
    assert sheet[45, 800].tolist() == [255, 255, 255]
    assert sheet[55, 5].tolist() == [0, 0, 255]
    assert _count(sheet[:40], TRUTH) > 100  # the legend


def test_what_a_method_reports_and_every_map_is_drawn_with_the_normalisation_undone(tmp_path) -> None:
    white = ((torch.ones(3) - torch.tensor(MEAN)) / torch.tensor(STD)).reshape(3, 1, 1)
    mask = torch.zeros(2, 17, 17, dtype=torch.uint8)
    mask[:, :8] = 1
    episode = SimpleNamespace(
        query_image=white.expand(2, 3, 17, 17),
        query_mask=mask,
        support_images=white.expand(2, 2, 3, 17, 17),
        support_masks=mask[:, None].expand(2, 2, 17, 17),
        class_index=torch.tensor([0, 1]),
        query_id=["q0", "q1"],
        support_ids=[["a", "b"]] * 2,
    )
    logits = torch.stack([1.0 - 2 * mask.float(), 2 * mask.float() - 1.0], dim=1)
    maps = {"prior": [torch.rand(2, 3, 3)], "correlation": [torch.rand(2, 3, 3, dtype=torch.float16)] * 2}
    output = Segmentation(logits, (17, 17), auxiliary={"coarse": -logits[:, :, ::4, ::4]}, maps=maps)
    outputs = {"episode": episode, "output": output, "class_names": ("ring", "star")}
    alone = draw_batch_item(outputs, 1, mean=MEAN, std=STD)
    assert alone.shape[1] == 7 * 208 + 8  # two supports, query, final and three maps
    assert alone[246, 100].tolist() == [255, 255, 255]  # lower half of the support: white, outside the mask
    assert alone[116, 100].tolist() == (0.65 * 255 + 0.35 * np.array(TRUTH)).astype(np.uint8).tolist()
    both = draw_batch_item(outputs, 1, mean=MEAN, std=STD, reported=("final", "coarse"))
    assert both.shape[1] == alone.shape[1] + 208
    assert _count(both[80:280, 8 + 4 * 208 + 2 :][:60, :198], PREDICTION) == 0  # the coarse one is the lower half
    output.decided = 1 - mask  # a rule of the method's own: HSNet's vote
    own = draw_batch_item(outputs, 1, mean=MEAN, std=STD)
    assert _count(own[80:170, 8 + 3 * 208 + 2 :][:, :190], PREDICTION) == 0
    assert np.array_equal(save_sheet([own], tmp_path / "deep" / "sheet.png"), stack_rows([own]))
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["sheet.png"]
