"""Which episodes are drawn, and which files a run leaves."""

from __future__ import annotations

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
from hdmnet.models.method import Segmentation
from hdmnet.runtime.warnings import silence_known_warnings
from hdmnet.tasks.feature_store import measure_features
from hdmnet.tasks.few_shot import FewShotTask
from tests.helpers.datasets import few_shot
from tests.helpers.encode_once import ColourMatcher

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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
        self.model = SimpleNamespace(reported=("final", "meta"))

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
        maps = {"prior": [torch.rand(num, 3, 3)] * 2, "correlation": maps}
        output = Segmentation(logits, (size, size), auxiliary={"meta": -logits}, maps=maps)
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
    bare = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(default_root_dir=folder, callbacks=[pictures], enable_checkpointing=False, **(bare | arguments))


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
        assert sheet.size == (9 * 208 + 8, 40 + 2 * 288)  # two rows: seed 1's episodes are not drawn over them


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
    pictures.describe_run({"title": "shapes, fold 0, 1-shot, hdmnet"})
    loader = DataLoader(_Episodes(), batch_size=2)
    trainer = _trainer(tmp_path, pictures, max_epochs=-1, max_steps=9, log_every_n_steps=1, logger=[logger])
    trainer.fit(_Task(), loader, loader)
    trainer.test(_Task(), loader, verbose=False)
    assert [(key, step) for key, _, step, _ in logger.calls] == [
        ("episodes/val", 6),
        ("episodes/val", 9),
        ("episodes/test", 9),
    ]
    assert logger.calls[1][3] == ["shapes, fold 0, 1-shot, hdmnet: validation, epoch 2, step 9"]
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
        assert sheet.size[1] == 40 + 3 * 288
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
    assert sheets[0].shape[0] == 40 + 3 * 288
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
