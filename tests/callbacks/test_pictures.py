"""Pictures of episodes: what is painted where, which episodes are drawn, and which files a run leaves."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hdmnet.callbacks.pictures import EpisodePictures
from hdmnet.runtime.warnings import silence_known_warnings
from hdmnet.tasks.feature_store import measure_features
from hdmnet.tasks.few_shot import FewShotTask
from hdmnet.visual.colours import PREDICTION, TRUTH
from hdmnet.visual.episode_grid import draw_batch_item, draw_episode, episode_iou, stack_rows
from tests.helpers.datasets import few_shot
from tests.helpers.encode_once import ColourMatcher

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
        "prediction": prediction,
        "class_name": "star",
        "query_id": "q1",
        "support_ids": [f"s{k}" for k in range(shots)],
    }


def _maps() -> dict[str, Any]:
    ramp = np.linspace(-1, 1, 25, dtype=np.float32).reshape(5, 5)
    return {"prior_masks": np.stack([ramp, ramp * 0]), "correlation_maps": [ramp, ramp[:3, :3]]}


def test_episode_iou_leaves_ignored_pixels_out() -> None:
    truth = np.array([[1, 1, 0], [0, 255, 255]])
    assert episode_iou(np.array([[1, 0, 1], [0, 1, 0]]), truth) == pytest.approx(1 / 3)
    assert math.isnan(episode_iou(np.zeros((2, 2)), np.zeros((2, 2))))


def test_row_grows_by_one_panel_for_each_thing_shown() -> None:
    one = draw_episode(**_parts())
    panel = 208  # 200 pixels and a gap; three panels: support, query, final
    assert one.shape == (272, 3 * panel + 8, 3)
    assert one.dtype == np.uint8
    assert draw_episode(**_parts(), meta_prediction=_parts()["prediction"]).shape[1] == 4 * panel + 8
    assert draw_episode(**_parts(), **_maps()).shape[1] == 7 * panel + 8
    assert draw_episode(**_parts(shots=5)).shape[1] == 7 * panel + 8
    assert draw_episode(**_parts(shots=9)).shape[1] == 7 * panel + 8  # five supports at most
    assert draw_episode(**_parts(size=(20, 40))).shape[1] == 3 * 408 + 8  # the aspect ratio is kept
    assert draw_episode(**_parts(size=(473, 473))).shape == one.shape


def test_masks_are_painted_where_they_are() -> None:
    row = draw_episode(**_parts())
    support, query, final = (row[64:264, 8 + 208 * n : 208 + 208 * n] for n in range(3))
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
    query = draw_episode(**parts)[64:264, 216:416]
    assert _count(query, (190, 190, 190)) == pytest.approx(20000, abs=10)  # every other stripe of 200 x 200
    assert _count(query, (190, 190, 190)) + _count(query, (0, 0, 0)) == 40000
    assert _count(query, TRUTH) == 0


def test_heat_maps_run_from_least_to_largest_and_survive_constant_maps_and_nan() -> None:
    row = draw_episode(**_parts(), **_maps())
    prior, flat, fine, coarse = (row[64:264, 8 + 208 * n : 208 + 208 * n] for n in range(3, 7))
    for panel in (prior, fine, coarse):
        assert panel[2, 2].tolist() == [68, 1, 84]  # viridis at 0
        assert panel[197, 197].tolist() == [253, 231, 36]  # viridis at 1
    assert flat[2, 2].tolist() == flat[197, 197].tolist() == [68, 1, 84]
    assert len({tuple(cell) for cell in coarse[33::67, 33::67].reshape(-1, 3)}) == 9  # 3 x 3 cells, not smoothed
    holes = np.full((5, 5), np.nan, dtype=np.float32)
    assert draw_episode(**_parts(), correlation_maps=[holes]).shape[1] == 4 * 208 + 8


def test_stacked_rows_keep_their_order_and_width() -> None:
    red, blue = np.zeros((10, 700, 3), np.uint8), np.zeros((20, 900, 3), np.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    sheet = stack_rows([red, blue], "validation")
    assert sheet.shape == (60, 900, 3)
    assert sheet[35, 5].tolist() == [255, 0, 0]
    assert sheet[35, 800].tolist() == [255, 255, 255]
    assert sheet[45, 5].tolist() == [0, 0, 255]
    assert _count(sheet[:30], TRUTH) > 100  # the legend


class _Episodes(Dataset[int]):
    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> int:
        return index


class _Task(LightningModule):
    """Answers every batch of indices with what the real task returns; test items 3 and 4 belong to test seed 1."""

    image_mean, image_std = MEAN, STD

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def _step(self, batch: Tensor) -> dict[str, Any]:
        size, shots, num = 17, 2, len(batch)
        white = ((torch.ones(3) - torch.tensor(MEAN)) / torch.tensor(STD)).reshape(3, 1, 1)
        mask = torch.zeros(num, size, size, dtype=torch.uint8)
        mask[:, :8] = 1
        episode = SimpleNamespace(
            query_image=white.expand(num, 3, size, size),
            query_mask=mask,
            support_images=white.expand(num, shots, 3, size, size),
            support_masks=mask[:, None].expand(num, shots, size, size),
            class_index=batch % 2,
            query_id=[f"query{index}" for index in batch.tolist()],
            support_ids=[["a", "b"]] * num,
            index=batch % 3,
            seed_index=batch // 3,
        )
        logits = torch.stack([1.0 - 2 * mask.float(), 2 * mask.float() - 1.0], dim=1)
        maps = [torch.rand(num, 3, 3, dtype=torch.float16), torch.rand(num, 2, 2)]
        output = SimpleNamespace(
            final_logits=logits, meta_logits=-logits, correlation_maps=maps, prior_masks=torch.rand(num, 2, 3, 3)
        )
        return {"episode": episode, "output": output, "class_names": ("ring", "star")}

    def training_step(self, batch: Tensor) -> Tensor:
        return self.layer(batch.float()[:, None]).mean()

    def validation_step(self, batch: Tensor) -> dict[str, Any]:
        return self._step(batch)

    def test_step(self, batch: Tensor) -> dict[str, Any]:
        return self._step(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def _trainer(folder: Path, pictures: EpisodePictures, **arguments: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(default_root_dir=folder, callbacks=[pictures], enable_checkpointing=False, **(quiet | arguments))


def test_normalisation_is_undone_and_meta_and_maps_are_optional() -> None:
    outputs = _Task()._step(torch.tensor([0, 1]))
    full = draw_batch_item(outputs, 1, _Task())
    assert full[230, 100].tolist() == [255, 255, 255]  # lower half of the support: white, outside the mask
    assert full[100, 100].tolist() == (0.65 * 255 + 0.35 * np.array(TRUTH)).astype(np.uint8).tolist()
    outputs["output"] = SimpleNamespace(logits=outputs["output"].logits)
    assert draw_batch_item(outputs, 1, _Task()).shape[1] == full.shape[1] - 5 * 208  # meta, 2 priors, 2 maps gone


@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")  # nothing is read from disk
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # Lightning 2.6.6 under torch 2.15
def test_a_run_leaves_a_sheet_per_due_epoch_and_one_of_the_test(tmp_path: Path) -> None:
    pictures = EpisodePictures(num_episodes=2, every_n_epochs=2)
    loader = DataLoader(_Episodes(), batch_size=2)
    trainer = _trainer(tmp_path, pictures, max_epochs=3)
    trainer.fit(_Task(), loader, loader)
    trainer.test(_Task(), loader, verbose=False)
    names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert names == ["test.png", "val_epoch001_step000006.png", "val_epoch002_step000009.png"]
    with Image.open(tmp_path / "pictures" / "test.png") as sheet:
        assert sheet.size == (9 * 208 + 8, 30 + 2 * 272)  # two rows: seed 1's episodes are not drawn over them


class _PictureLogger(DummyLogger):
    """Takes pictures, as W&B's does."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, np.ndarray, int, list[str]]] = []

    def log_image(self, key: str, images: list[Any], step: int, caption: list[str]) -> None:
        self.calls.append((key, images[0], step, caption))


@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
def test_the_last_epoch_is_due_where_steps_end_it_and_loggers_get_the_same_picture(tmp_path: Path) -> None:
    pictures, logger = EpisodePictures(num_episodes=1, every_n_epochs=2), _PictureLogger()
    loader = DataLoader(_Episodes(), batch_size=2)
    trainer = _trainer(tmp_path, pictures, max_epochs=-1, max_steps=9, log_every_n_steps=1, logger=[logger])
    trainer.fit(_Task(), loader, loader)
    trainer.test(_Task(), loader, verbose=False)
    assert [(key, step) for key, _, step, _ in logger.calls] == [
        ("episodes/val", 6),
        ("episodes/val", 9),
        ("episodes/test", 9),
    ]
    assert logger.calls[1][3] == ["validation, epoch 2, step 9"]
    with Image.open(tmp_path / "pictures" / "val_epoch002_step000009.png") as sheet:
        assert np.array_equal(np.asarray(sheet), logger.calls[1][1])


def test_rows_of_all_processes_meet_on_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = EpisodePictures(num_episodes=4, directory=tmp_path / "there")
    pictures._collect(_Task()._step(torch.tensor([0, 2])), _Task())
    other = {1: pictures._rows[0]}

    def gather(parts: list[object], mine: object) -> None:
        parts[:] = [mine, other]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    trainer: Any = SimpleNamespace(world_size=2, is_global_zero=True, default_root_dir=str(tmp_path), loggers=[])
    pictures.on_test_epoch_end(trainer, _Task())
    with Image.open(tmp_path / "there" / "test.png") as sheet:
        assert sheet.size[1] == 30 + 3 * 272
    assert pictures._rows == {}


def test_an_evaluation_with_reuse_draws_the_same_sheet(tmp_path: Path) -> None:
    sheets = []
    for memory in (None, 1.0):
        pictures = EpisodePictures(num_episodes=3, directory=tmp_path / str(memory))
        model = ColourMatcher()
        module = few_shot(setup=None, num_val_episodes=9, reuse_memory_gb=memory, eval_batch_size=2)
        module.measure_features = partial(measure_features, model, module.image_size)
        task = FewShotTask(model=model, class_names=module.novel_names, num_test_seeds=3)
        trainer = _trainer(tmp_path, pictures, use_distributed_sampler=False)
        silence_known_warnings()
        trainer.test(task, datamodule=module, verbose=False)
        with Image.open(tmp_path / str(memory) / "test.png") as sheet:
            sheets.append(np.asarray(sheet).copy())
    assert sheets[0].shape[0] == 30 + 3 * 272
    assert np.array_equal(*sheets)


def test_no_pictures_when_switched_off_or_when_the_step_returns_none(tmp_path: Path) -> None:
    trainer: Any = SimpleNamespace(
        world_size=1, is_global_zero=True, default_root_dir=str(tmp_path), test_dataloaders=None
    )
    for pictures, outputs in ((EpisodePictures(0), _Task()._step(torch.tensor([0]))), (EpisodePictures(2), None)):
        pictures.on_test_batch_end(trainer, _Task(), outputs, None, 0)
        pictures.on_test_epoch_end(trainer, _Task())
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="num_episodes is -1"):
        EpisodePictures(-1)
    with pytest.raises(ValueError, match="every_n_epochs is 0"):
        EpisodePictures(1, 0)
