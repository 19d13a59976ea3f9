"""The data set of an evaluation with reuse: one planned batch an item."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.utils.data import Dataset

from hdmnet.data.types import EvaluationBatch, FeatureKey

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from hdmnet.data.episodes.encode_once import PlannedBatch
    from hdmnet.data.episodes.samples import EvalEpisodes


class PlannedEvaluation(Dataset[EvaluationBatch]):
    """Decodes what each batch of this process's plan encodes; to be walked in order, by any number of workers.

    Attributes:
        episodes: The same episodes, of all seeds, as whole `Episode`s by their global number.
    """

    def __init__(self, episodes: EvalEpisodes, plan: Sequence[PlannedBatch]) -> None:
        self.episodes = episodes
        self._plan = plan

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._plan)

    def __getitem__(self, index: int) -> EvaluationBatch:
        """Return a batch, its pictures decoded."""
        batch, episodes = self._plan[index], self.episodes
        specs = [episodes.locate(equal[0])[1] for equal in batch.episodes]
        every = [(item, *episodes.locate(number)) for item, equal in enumerate(batch.episodes) for number in equal]
        asked = [(spec.query_id, tuple(value for value, _ in spec.ways)) for spec in specs]
        masks: dict[tuple[str, tuple[int, ...]], Tensor] = {}
        for key in asked:
            if key not in masks:
                masks[key] = episodes.query_mask_original(key[0], *key[1])
        places = {key: place for place, key in enumerate(masks)}
        new_queries = [key for key in batch.encode if not key.class_value]
        new_supports = [key for key in batch.encode if key.class_value]
        supports = [episodes.support_pair(*key) for key in new_supports]
        height, width = episodes.image_size
        no_picture = torch.empty(0, 3, height, width, dtype=torch.uint8)
        return EvaluationBatch(
            drop=list(batch.drop),
            new_queries=new_queries,
            query_images=_stack([episodes.query_picture(key.image_id) for key in new_queries], no_picture),
            new_supports=new_supports,
            support_images=_stack([image for image, _ in supports], no_picture),
            support_masks=_stack([mask for _, mask in supports], no_picture[:, 0]),
            queries=[FeatureKey(spec.query_id) for spec in specs],
            supports=[[FeatureKey(one, value) for value, ids in spec.ways for one in ids] for spec in specs],
            query_masks_original=list(masks.values()),
            mask_index=[places[key] for key in asked],
            class_index=torch.tensor([episodes.class_index(spec.class_value) for spec in specs]),
            ways=[[episodes.class_index(value) for value, _ in spec.ways] for spec in specs],
            item=[item for item, _, _ in every],
            index=torch.tensor([spec.index for _, _, spec in every]),
            seed_index=torch.tensor([seed_index for _, seed_index, _ in every]),
        )


def _stack(items: list[Tensor], empty: Tensor) -> Tensor:
    """Stack tensors, of which there may be none."""
    return torch.stack(items) if items else empty
