"""Parameters of a run's model, counted on a model without memory (torch's meta device)."""

from __future__ import annotations

from dataclasses import dataclass

from hdmnet.reporting.collect import Run

_TRANSFORMER = ("meta_learner.pyramid.", "meta_learner.matching.", "meta_learner.decoder.")


@dataclass(frozen=True)
class Costs:
    """Millions of parameters."""

    learnable: float  # all that are trained in stage 2 (the paper's Table 3)
    transformer: float  # of these the feature pyramid, the matching and the decoder (Table 7)


def count_parameters(run: Run) -> Costs:
    """Count the model of a run's config and classes; no checkpoint is read.

    Raises:
        ValueError: This version of the code cannot build the model.
    """
    import torch

    from hdmnet.config.stored import stored_config
    from hdmnet.run.build import build_untrained

    cfg = stored_config(run.config, str(run.path))
    num_folds = cfg.dataset.get("num_folds")
    num_base = len(run.result["test"]["iou_per_class"]) * (3 if num_folds is None else max(int(num_folds) - 1, 1))
    with torch.device("meta"):
        model = build_untrained(cfg, num_base)
    trained = [(name, parameter.numel()) for name, parameter in model.named_parameters() if parameter.requires_grad]
    transformer = sum(count for name, count in trained if name.startswith(_TRANSFORMER))
    return Costs(sum(count for _, count in trained) / 1e6, transformer / 1e6)
