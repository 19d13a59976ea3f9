"""Tables of episodes that never ran."""

from __future__ import annotations

import numpy as np

from hdmnet.tasks.episode_table import EpisodeTable

OUTSIDE = 50  # pixels of the background


def table(names=("a", "b"), **by_name):
    """Of each prediction rows (index, class, query, pixels that truth and prediction share, pixels of either).

    Of what the prediction misses of the union everything is truth. With `seed` in a row's sixth place.
    """
    keys = sorted({(row[5] if len(row) > 5 else 0, *row[:3]) for several in by_name.values() for row in several})
    place = {(seed, index): number for number, (seed, index, *_) in enumerate(keys)}
    pixels = {name: np.full((len(keys), 2, 2), -1) for name in by_name}
    for name, several in by_name.items():
        for index, _, _, shared, either, *seed in several:
            pixels[name][place[seed[0] if seed else 0, index]] = [[OUTSIDE, 0], [either - shared, shared]]
    columns = list(zip(*keys, strict=True)) or [()] * 4
    seeds, indices, classes = (np.array(column, dtype=np.int64) for column in columns[:3])
    return EpisodeTable(tuple(names), seeds, indices, classes, tuple(map(str, columns[3])), pixels)
