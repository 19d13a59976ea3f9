"""HSNet's learner (paper Sec. 3.3 and 3.4): 4-D pyramid encoder and 2-D decoder.

Dimension letters: B episodes, C channels, L levels of a stage, h w query's and m n support's size at a stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from hdmnet.models.center_pivot import center_pivot_block, over_query
from hdmnet.models.decoding import conv_stack
from hdmnet.models.method import upsample

# Of a stage at a stride in input pixels: kernels, and strides that thin out the support's positions to 256 pixels.
SQUEEZE = {8: ((5, 5, 3), (4, 4, 2)), 16: ((5, 3, 3), (4, 2, 2)), 32: ((3, 3, 3), (2, 2, 2))}
WIDTHS = (16, 64, 128)


class CorrelationLearner(nn.Module):
    """From the correlations of all stages to background and foreground.

    Args:
        stages: Levels and stride in input pixels of each, finest first; a stride between those of `SQUEEZE` is taken
            for the nearest.
    """

    def __init__(self, stages: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        shapes = [SQUEEZE[min(SQUEEZE, key=lambda known: abs(known - stride))] for _, stride in stages]
        self.strides = [strides for _, strides in shapes]
        self.squeeze = nn.ModuleList(
            center_pivot_block((depth, *WIDTHS), *shape) for (depth, _), shape in zip(stages, shapes, strict=True)
        )
        width = WIDTHS[-1]
        self.mix = nn.ModuleList(center_pivot_block((width,) * 4, (3,) * 3, (1,) * 3) for _ in stages[1:])
        self.decode_coarse = conv_stack(width, width, width // 2)
        self.decode_fine = conv_stack(width // 2, width // 2, 2, last_relu=False)

    def check_sizes(self, sizes: Sequence[tuple[int, ...]]) -> None:
        """Raise ValueError unless stages of these sizes (m, n), finest first, are left with as many support cells."""
        cells = []
        for strides, size in zip(self.strides, sizes, strict=True):
            for stride in strides:
                size = tuple(-(-side // stride) for side in size)
            cells.append(size)
        if len(set(cells)) > 1:
            raise ValueError(
                f"dataset.image_size: of features of {_join(sizes)} HSNet keeps {_join(cells)} support cells, finest "
                "first; expected as many of each: take sides of at most 256 or at least 32 above a multiple of 256"
            )

    def forward(self, correlations: Sequence[Tensor]) -> Tensor:
        """Correlations (B, L, h, w, m, n) of each stage, finest first, to logits (B, 2, 2·h, 2·w) of the finest."""
        squeezed = [block(stage) for block, stage in zip(self.squeeze, correlations, strict=True)]
        x = squeezed.pop()
        for mix in reversed(self.mix):  # from coarse to fine
            finer = squeezed.pop()
            size = (finer.shape[2], finer.shape[3])
            x = mix(finer + over_query(partial(upsample, size=size), x))
        x = self.decode_coarse(x.mean((4, 5)))
        logits: Tensor = self.decode_fine(upsample(x, (2 * x.shape[2], 2 * x.shape[3])))
        return logits


def _join(sizes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join(f"{height}x{width}" for height, width in sizes)
