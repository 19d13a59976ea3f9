"""Samplers that hold no random state: what a rank draws is a function of (epoch, position) alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.utils.data import SequentialSampler

from hdmnet.runtime.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Iterator


def _check_rank(rank: int, world_size: int) -> None:
    """Raise ValueError unless 0 <= rank < world_size."""
    if not 0 <= rank < world_size:
        raise DatasetError(f"rank is {rank} of {world_size}; expected 0 <= rank < world size")


class EpochSampler(SequentialSampler):
    """Training: yields global indices `epoch * num_samples + position`, positions strided over the ranks.

    The data set maps a global index to its sample, and so neither workers nor GPUs nor a resume change what is seen.
    Lightning calls `set_epoch` on it before each epoch; it replaces samplers of other classes where it overfits.

    Args:
        num_samples: Samples an epoch, over all ranks.
        rank: This process.
        world_size: Number of processes; each gets `num_samples // world_size`, the rest of the epoch is dropped.
        start: Where a resumed training goes on: epoch, and number of its samples that all ranks together have seen.
        repeat: Yield the first epoch's samples in every epoch.

    Raises:
        ValueError: If a rank would get no sample, or the rank is out of range.
    """

    def __init__(
        self,
        num_samples: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        start: tuple[int, int] = (0, 0),
        repeat: bool = False,
    ) -> None:
        _check_rank(rank, world_size)
        if num_samples < world_size:
            raise DatasetError(f"{num_samples} samples an epoch for {world_size} processes; expected one each at least")
        self.num_samples = num_samples
        self.rank = rank
        self.world_size = world_size
        self.start = start
        self.repeat = repeat
        self.epoch = start[0]

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration walks."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Number of samples of this rank in a whole epoch, also where the first one is resumed: Lightning counts on."""
        return self.num_samples // self.world_size

    def __iter__(self) -> Iterator[int]:
        """Yield this rank's global indices in order; of a resumed epoch those that are left."""
        seen = self.start[1] if self.epoch == self.start[0] else 0
        first = seen if self.repeat else self.epoch * self.num_samples + seen
        share = (self.num_samples - seen) // self.world_size
        return (first + self.rank + step * self.world_size for step in range(share))


class EvalSampler(SequentialSampler):
    """Evaluation: yields `rank, rank + world_size, ...` and repeats nothing, so that every sample counts once.

    The later processes may get one sample less. Raises ValueError if the rank is out of range.
    """

    def __init__(self, num_samples: int, *, rank: int = 0, world_size: int = 1) -> None:
        _check_rank(rank, world_size)
        self._indices = range(rank, num_samples, world_size)

    def __len__(self) -> int:
        """Number of samples of this rank."""
        return len(self._indices)

    def __iter__(self) -> Iterator[int]:
        """Yield this rank's indices in order."""
        return iter(self._indices)
