"""Deterministic weights and inputs under which outputs of HSNet's and DCAMA's releases were recorded; NumPy only.

As in `official_recipe`, whose draws it shares: one Philox stream per tensor, keyed by its name. Do not change a draw.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from tests.helpers.official_recipe import _image, blob_mask, rng_for


@dataclass(frozen=True)
class Recipe:
    """What differs between the releases.

    Attributes:
        gains: Patterns of keys, and the gain on top of He's sqrt(2 / fan_in); the first match counts.
        apart: A bias that sets the two classes apart, and by how much.
        zeros: Pattern of keys that are 0: the trunk's classifier, which nothing uses.
        computed: Pattern of keys that the network computes: left out.
    """

    gains: tuple[tuple[str, float], ...]
    apart: tuple[str, tuple[float, float]]
    zeros: str
    computed: str = "(?!)"

    def fill(self, shapes):
        """Arrays by official key, given all keys with their shapes."""
        return {
            key: self._fill(key, tuple(shapes[key]), shapes)
            for key in sorted(shapes)
            if not re.search(self.computed, key)
        }

    def _fill(self, key, shape, shapes):
        module, _, leaf = key.rpartition(".")
        if leaf == "num_batches_tracked":
            return np.zeros(shape, np.int64)
        if re.search(self.zeros, key):
            return np.zeros(shape, np.float32)
        values = rng_for(key).standard_normal(shape)
        if leaf == "running_mean":
            values = 0.1 * values
        elif leaf == "running_var":
            values = 1.0 + 0.1 * np.abs(values)
        elif leaf == "relative_position_bias_table":
            values = 0.5 * values
        elif leaf == "weight" and len(shape) == 1:
            values = 1.0 + 0.1 * values
        elif leaf == "weight":
            gain = next((gain for pattern, gain in self.gains if re.search(pattern, key)), 1.0)
            values = values * (gain * np.sqrt(2.0 / np.prod(shape[1:])))
        else:
            values = (0.1 if len(shapes.get(f"{module}.weight", ())) == 1 else 0.02) * values
        if key == self.apart[0]:
            values = values + np.array(self.apart[1])
        return values.astype(np.float32)


HSNET = Recipe(
    gains=(
        (r"^backbone\.layer[1-4]\.\d+\.conv3\.weight$", 0.5),
        (r"^hpn_learner\.encoder_.*\.conv[12]\.weight$", 0.70710678),
    ),
    apart=("hpn_learner.decoder2.2.bias", (0.45, -0.45)),
    zeros=r"^backbone\.(fc|classifier)\.",
)
DCAMA = Recipe(
    gains=(
        (r"^feature_extractor\.layer[1-4]\.\d+\.conv3\.weight$", 0.25),
        (r"^feature_extractor\.layer[1-4]\.0\.downsample\.0\.weight$", 0.8),
        (r"^feature_extractor\.layers\..*\.(attn\.proj|mlp\.fc2)\.weight$", 0.3),
        (r"^feature_extractor\.layers\..*\.(qkv|reduction)\.weight$", 0.70710678),
        (r"^feature_extractor\.patch_embed\.proj\.weight$", 0.70710678),
        (r"^model\.DCAMA_blocks\.\d\.linears\.[01]\.weight$", 0.70710678),
        (r"^model\.mixer3\.2\.weight$", 0.5),
    ),
    apart=("model.mixer3.2.bias", (-0.65, 0.65)),
    zeros=r"^feature_extractor\.(fc|head)\.",
    computed=r"^model\.pe\.\d\.pe$|\.attn_mask$|\.relative_position_index$",
)


def make_inputs(name, shots, batch, size):
    """Query x (B, 3, H, W), supports s_x (B, K, 3, H, W), masks s_y (B, K, H, W) and y_m (B, H, W) of 0, 1, 255."""
    support_rng, query_rng = rng_for(f"{name}/s_y"), rng_for(f"{name}/y")
    return {
        "x": _image(f"{name}/x", batch, size),
        "s_x": _image(f"{name}/s_x", batch * shots, size).reshape(batch, shots, 3, size, size),
        "s_y": np.stack([np.stack([blob_mask(support_rng, size)[0] for _ in range(shots)]) for _ in range(batch)]),
        "y_m": np.stack([blob_mask(query_rng, size)[0] for _ in range(batch)]),
    }
