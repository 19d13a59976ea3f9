"""Deterministic weights and inputs under which CyCTR's official outputs were recorded (golden/); NumPy only.

As in `official_recipe` and `prototype_recipe`, whose draws it shares: one Philox stream per tensor, keyed by its name.
Do not change a draw.
"""

from __future__ import annotations

import numpy as np

from tests.helpers import prototype_recipe
from tests.helpers.official_recipe import rng_for
from tests.helpers.prototype_recipe import images, texture

# Gain on top of He's sqrt(2 / fan_in); the first match counts.
GAINS = (
    (r".*\.layer[1-4]\.\d+\.conv3\.weight", 0.5),
    (r".*\.cross_layers\.\d\.[qk]_fc\.weight", 1.5),
    (r".*\.(v_fc|proj|value_proj|output_proj)\.weight", 0.70710678),
    (r".*\.ffns\.\d\.layers\.1\.weight", 0.5),
    (r"(supp_)?cls\.3\.weight", 0.70710678),
)
# Of the deformable attention and of the level's vector, which have scales of their own.
SCALES = (
    (r".*\.level_embed", 0.5),
    (r".*\.(sampling_offsets|attention_weights)\.weight", 0.05),
    (r".*\.sampling_offsets\.bias", 2.0),
    (r".*\.attention_weights\.bias", 0.2),
)
BLACK = -np.array([0.485, 0.456, 0.406]) / np.array([0.229, 0.224, 0.225])  # normalised


def fill_state_dict(shapes):
    """Arrays by official key, given all keys with their shapes."""
    return prototype_recipe.fill_state_dict(shapes, GAINS, SCALES)


def _mask(g, size, low=0.18, high=0.34):
    """(size, size): 1 in an ellipse, 255 on the right half of a ring around it."""
    cy, cx = g.uniform(0.35, 0.60, 2) * size
    ry, rx = g.uniform(low, high, 2) * size
    y, x = np.mgrid[0:size, 0:size].astype(np.float64)
    radius = ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2
    mask = np.zeros((size, size), np.int64)
    mask[radius <= 1.0] = 1
    mask[(radius > 1.0) & (radius <= 1.25) & (x > cx)] = 255
    return mask


def _pad(image, mask, rows, columns):
    """Black, and 255 in the mask, at the bottom or at the right; returns the padding, 0 or 255."""
    size = len(mask)
    padding = np.zeros_like(mask)
    padding[size - rows :] = 255
    padding[:, size - columns :] = 255
    image[:, padding == 255] = BLACK[:, None]
    mask[padding == 255] = 255
    return padding


def make_inputs(name, shots, batch, size):
    """Inputs of a case, by the name of its draws.

    Returns:
        x (B,3,H,W) and s_x (B,K,3,H,W) float32; s_y (B,K,H,W) and y_m (B,H,W) int64, 0/1/255; padding_mask (B,H,W) and
        s_padding_mask (B,K,H,W) int64, 0/255, the latter with the mask's own 255.
    """
    x = images(f"{name}/x", batch, size, size)
    s_x = images(f"{name}/s_x", batch * shots, size, size).reshape(batch, shots, 3, size, size)
    of_supports, of_queries, of_padding = (rng_for(f"{name}/{what}") for what in ("s_y", "y", "padding"))
    s_y = np.stack([np.stack([_mask(of_supports, size) for _ in range(shots)]) for _ in range(batch)])
    ranges = [() if b == 0 else (0.10, 0.15) for b in range(batch)]
    y_m = np.stack([_mask(of_queries, size, *own) for own in ranges])
    padding, s_padding = np.zeros_like(y_m), np.zeros_like(s_y)
    for b in range(batch):
        both = texture(f"{name}/texture{b}", size, size)
        x[b] = np.where(y_m[b] == 1, 0.3 * x[b] + 1.2 * both, x[b])
        width = int(of_padding.integers(size // 8, size // 4))
        padding[b] = _pad(x[b], y_m[b], *((width, 0) if b % 2 == 0 else (0, width)))
        for k in range(shots):
            s_x[b, k] = np.where(s_y[b, k] == 1, 0.3 * s_x[b, k] + 1.2 * both, s_x[b, k])
            width = int(of_padding.integers(0, size // 4))
            s_padding[b, k] = _pad(s_x[b, k], s_y[b, k], *((width, 0) if of_padding.integers(0, 2) else (0, width)))
            s_padding[b, k][s_y[b, k] == 255] = 255
    return {
        "x": x.astype(np.float32),
        "s_x": s_x.astype(np.float32),
        "s_y": s_y,
        "y_m": y_m,
        "padding_mask": padding,
        "s_padding_mask": s_padding,
    }


def make_sampling_inputs(case, num_objects):
    """900 positions: features (1,900,8) float32, objects and invalid ones (1,900) bool."""
    g = rng_for(f"unit/{case}")
    is_object = np.zeros((1, 900), bool)
    is_object[:, g.permutation(900)[:num_objects]] = True
    return g.standard_normal((1, 900, 8)).astype(np.float32), is_object, g.uniform(size=(1, 900)) < 0.2


def make_pool_inputs():
    """Features (4,8,5,6) and soft masks (4,1,5,6) float32: a little, nothing, everything, random."""
    g = rng_for("unit/pool")
    features = g.standard_normal((4, 8, 5, 6)).astype(np.float32)
    masks = np.zeros((4, 1, 5, 6))
    masks[0, 0, 2, 3] = 0.02
    masks[2] = 1
    masks[3] = g.uniform(size=(1, 5, 6))
    return features, masks.astype(np.float32)
