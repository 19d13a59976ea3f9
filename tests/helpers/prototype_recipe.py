"""Deterministic weights and inputs under which PANet's and SSP's official outputs were recorded (golden/); NumPy only.

As in `official_recipe`, whose draws it shares: one Philox stream per tensor, keyed by its name. Do not change a draw.
"""

from __future__ import annotations

import re

import numpy as np

from tests.helpers.official_recipe import rng_for

# Gain on top of He's sqrt(2 / fan_in); the first match counts.
GAINS = (
    (r"layer3\.(5|22)\.conv3\.weight", 2.0),
    (r"layer[1-4]\.\d+\.conv3\.weight", 0.5),
    (r".*\.features\.8\.4\.weight", 0.70710678),
)
# How much of a picture is left where its object is, and how much of the object's texture is added.
MIX = {"panet": (0.5, 1.0), "ssp": (0.3, 1.2)}


def fill_state_dict(shapes, gains=GAINS, scales=()):
    """Arrays by official key, given all keys with their shapes; what is in `scales` is drawn with that deviation."""
    return {key: _fill(key, tuple(shapes[key]), shapes, gains, scales) for key in sorted(shapes)}


def _fill(key, shape, shapes, gains, scales):
    module, _, leaf = key.rpartition(".")
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    values = rng_for(key).standard_normal(shape)
    scale = next((s for pattern, s in scales if re.fullmatch(pattern, key)), None)
    is_norm = len(shapes.get(f"{module}.weight", ())) == 1
    if scale is not None:
        values = scale * values
    elif leaf == "running_mean":
        values = 0.1 * values
    elif leaf == "running_var":
        values = 1.0 + 0.1 * np.abs(values)
    elif leaf == "weight" and is_norm:
        values = 1.0 + 0.1 * values
    elif leaf == "weight":
        # Filters of mean 0: a random ReLU network maps everything to one direction otherwise.
        values = values - values.mean(axis=tuple(range(1, values.ndim)), keepdims=True)
        gain = next((g for pattern, g in gains if re.fullmatch(pattern, key)), 1.0)
        values = values * (gain * np.sqrt(2.0 / np.prod(shape[1:])))
    else:
        values = (0.1 if is_norm else 0.02) * values
    return values.astype(np.float32)


def images(label, n, h, w, cell=13):
    """(n, 3, h, w): a blocky field and noise."""
    g = rng_for(label)
    coarse = g.standard_normal((n, 3, -(-h // cell), -(-w // cell)))
    field = coarse[:, :, np.arange(h) // cell][:, :, :, np.arange(w) // cell]
    return 1.2 * field + 0.4 * g.standard_normal((n, 3, h, w))


def _mask(g, h, w, low=0.18, high=0.34):
    """(h, w): 1 in an ellipse, 255 on the right half of a ring around it and in the top left corner."""
    cy, cx = g.uniform(0.35, 0.65) * h, g.uniform(0.35, 0.65) * w
    ry, rx = g.uniform(low, high) * h, g.uniform(low, high) * w
    y, x = np.mgrid[0:h, 0:w].astype(np.float64)
    radius = ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2
    mask = np.zeros((h, w), np.int64)
    mask[radius <= 1.0] = 1
    mask[(radius > 1.0) & (radius <= 1.25) & (x > cx)] = 255
    corner = min(h, w) // 12
    mask[:corner, :corner] = 255
    return mask


def texture(label, h, w, tile=8):
    """(3, h, w): what query and supports of an episode share."""
    values = rng_for(label).standard_normal((3, tile, tile))
    return values[:, np.arange(h) % tile][:, :, np.arange(w) % tile]


def make_inputs(method, name, shots, batch, size):
    """x (B,3,H,W) and s_x (B,K,3,H,W) float32; s_y (B,K,H,W) and y_m (B,H,W) int64, 0/1/255."""
    h, w = size
    x = images(f"{name}/x", batch, h, w)
    s_x = images(f"{name}/s_x", batch * shots, h, w).reshape(batch, shots, 3, h, w)
    g = rng_for(f"{name}/s_y")
    s_y = np.stack([np.stack([_mask(g, h, w) for _ in range(shots)]) for _ in range(batch)])
    g = rng_for(f"{name}/y")
    y_m = np.stack([_mask(g, h, w) if b == 0 else _mask(g, h, w, 0.10, 0.15) for b in range(batch)])
    kept, added = MIX[method]
    for b in range(batch):
        both = texture(f"{name}/texture{b}", h, w)
        x[b] = np.where(y_m[b] == 1, kept * x[b] + added * both, x[b])
        for k in range(shots):
            s_x[b, k] = np.where(s_y[b, k] == 1, kept * s_x[b, k] + added * both, s_x[b, k])
    return {"x": x.astype(np.float32), "s_x": s_x.astype(np.float32), "s_y": s_y, "y_m": y_m}


def make_pool_inputs(columns):
    """Features (4,8,5,6) float32 and masks (4,33,columns), 0/1: a pixel, nothing, everything, a block."""
    features = rng_for("unit/pool").standard_normal((4, 8, 5, 6)).astype(np.float32)
    masks = np.zeros((4, 33, columns), np.int64)
    row, column = (16, 32) if columns == 42 else (20, 7)
    masks[0, row, column] = 1
    masks[2] = 1
    masks[3, 4:15, 9:30] = 1
    return features, masks


def make_self_support_inputs():
    """Features (4,1024,9,11) and logits (4,2,9,11) float32: sure of both classes, of one only (twice), of neither."""
    h, w = 9, 11
    g = rng_for("unit/feature")
    features = g.standard_normal((4, 1024, h, w)) + 0.7 * g.standard_normal((4, 1024, 1, 1))
    ranges = ((-3.0, 3.0), (-2.5, 0.70), (-0.30, 2.5), (-0.38, 0.38))  # of foreground less background
    u = rng_for("unit/logits").uniform(0.0, 1.0, (4, h, w))
    ahead = np.stack([low + (high - low) * u[k] for k, (low, high) in enumerate(ranges)])
    base = rng_for("unit/base").uniform(-1.0, 1.0, (4, h, w))
    return features.astype(np.float32), np.stack([base, base + ahead], 1).astype(np.float32)
