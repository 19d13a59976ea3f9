"""What a run's model costs: parameters, counted without memory, and on demand operations and time of an episode."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hdmnet.reporting.collect import Run

if TYPE_CHECKING:
    from omegaconf import DictConfig

_TRANSFORMER = ("meta_learner.pyramid.", "meta_learner.matching.", "meta_learner.decoder.")
_REPEATS = 3


@dataclass(frozen=True)
class Costs:
    """Millions of parameters; of an episode, beyond what its backbone takes, processor time and operations."""

    learnable: float  # all that are trained in stage 2 (the paper's Table 3)
    transformer: float  # HDMNet's feature pyramid, matching and decoder (Table 7)
    milliseconds: float | None = None
    operations: float | None = None  # in 10^9, a multiplication with its addition as one

    @property
    def decoder(self) -> float:
        """Millions of parameters of what Table 7 calls the decoder; of other methods than HDMNet all that learns."""
        return self.transformer or self.learnable


def count_parameters(run: Run) -> Costs:
    """Count the model of a run's config and classes; no checkpoint is read.

    Raises:
        ValueError: This version of the code cannot build the model.
    """
    import torch

    from hdmnet.run.build import build_untrained

    cfg, num_base = _described(run)
    with torch.device("meta"):
        model = build_untrained(cfg, num_base)
    trained = [(name, parameter.numel()) for name, parameter in model.named_parameters() if parameter.requires_grad]
    transformer = sum(count for name, count in trained if name.startswith(_TRANSFORMER))
    return Costs(sum(count for _, count in trained) / 1e6, transformer / 1e6)


def measure_costs(run: Run) -> Costs:
    """`count_parameters`, with an episode's time and operations, measured on a CPU with weights of no meaning.

    The query and its supports go through the method, a quarter of each support foreground; what the backbone alone
    takes for these pictures is subtracted.

    Raises:
        ValueError: This version of the code cannot build the model.
    """
    import torch

    from hdmnet.config.values import image_size
    from hdmnet.models.backbones.base import encode
    from hdmnet.models.base_learner import BaseLearner
    from hdmnet.run.build import build_encoder, build_model

    cfg, num_base = _described(run)
    torch.manual_seed(0)
    encoder = build_encoder(cfg, num_base, weights=None)
    backbone: Any = encoder.backbone if isinstance(encoder, BaseLearner) else encoder
    model, backbone = build_model(cfg, encoder).eval(), backbone.eval()
    (height, width), shots = image_size(cfg.dataset.image_size), int(run.result["shot"])
    pictures = torch.randn(1 + shots, 3, height, width)
    masks = torch.zeros(1, shots, height, width)
    masks[..., height // 4 : height * 3 // 4, width // 4 : width * 3 // 4] = 1
    whole = _measure(lambda: model(pictures[:1], pictures[None, 1:], masks).logits)
    alone = _measure(lambda: encode(backbone, pictures))
    milliseconds, operations = (max(0.0, ours - its) for ours, its in zip(whole, alone, strict=True))
    return replace(count_parameters(run), milliseconds=milliseconds, operations=operations)


def _measure(call: Callable[[], Any]) -> tuple[float, float]:
    """Median processor milliseconds of a call, and its operations in 10^9."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            call()
        times = []
        for _ in range(_REPEATS):
            start = time.process_time()
            call()
            times.append(time.process_time() - start)
    return 1e3 * statistics.median(times), counter.get_total_flops() / 2e9


def _described(run: Run) -> tuple[DictConfig, int]:
    """The config of a run's model, and how many base classes it has."""
    from hdmnet.config.stored import stored_config

    num_folds = run.config["dataset"].get("num_folds")
    novel = len(run.result["test"]["iou_per_class"])
    return stored_config(run.config, str(run.path)), novel * (3 if num_folds is None else max(int(num_folds) - 1, 1))
