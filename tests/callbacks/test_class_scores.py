from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from hdmnet.callbacks.class_scores import ClassScores


class _Logger:
    def __init__(self) -> None:
        self.calls: list[Any] = []

    def log_class_scores(self, split: str, scores: Any, step: int) -> None:
        self.calls.append((split, scores, step))


def _seed(*ious: float) -> dict[str, Any]:
    return {"miou": ious[0], "fb_iou": 0.5, "iou_per_class": torch.tensor(ious), "counts": torch.tensor([3, 4])}


def test_scores_go_to_the_loggers_that_take_them_as_the_mean_over_the_seeds():
    logger = _Logger()
    trainer: Any = SimpleNamespace(loggers=[object(), logger], sanity_checking=False, global_step=9)
    names = {"class_names": ("ring", "star"), "val_class_names": ("disc", "bar")}  # of base classes, say
    task: Any = SimpleNamespace(**names, val_results={}, test_results={})
    ClassScores().on_validation_end(trainer, task)
    assert logger.calls == []  # no result yet
    task.val_results = {"final": [_seed(0.25, 0.5)]}
    task.test_results = {"final": [_seed(0.25, 0.5), _seed(0.75, 0.5)], "meta": [_seed(0.0, 0.0)]}
    ClassScores().on_validation_end(trainer, task)
    ClassScores().on_test_end(trainer, task)
    (val, val_scores, _), (test, test_scores, step) = logger.calls
    assert (val, test, step) == ("val", "test", 9)
    assert val_scores["final"]["iou_per_class"] == {"disc": 0.25, "bar": 0.5}
    assert test_scores["final"]["iou_per_class"] == {"ring": 0.5, "star": 0.5}
    assert test_scores["final"]["counts_per_class"] == {"ring": 6, "star": 8}
    assert test_scores["meta"]["miou"] == 0.0


def test_the_sanity_check_is_no_validation():
    logger = _Logger()
    trainer: Any = SimpleNamespace(loggers=[logger], sanity_checking=True, global_step=0)
    task: Any = SimpleNamespace(val_class_names=("ring", "star"), val_results={"final": [_seed(0.1, 0.1)]})
    ClassScores().on_validation_end(trainer, task)
    assert logger.calls == []
