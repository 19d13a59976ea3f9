"""Deterministic weights and inputs under which PFENet's official outputs were recorded (golden/); NumPy only.

As in `official_recipe`, whose draws it shares: one Philox stream per tensor, keyed by its name. Do not change a draw.
"""

from __future__ import annotations

import re

import numpy as np

from tests.helpers.official_recipe import blob_mask, rng_for

# Gain on top of He's sqrt(2 / fan_in); the first match counts.
GAINS = (
    (r"layer[1-4]\.\d+\.conv3\.weight", 0.5),
    (r"beta_conv\.\d+\.2\.weight", 0.5),
    (r"res2\.2\.weight", 0.5),
    (r"alpha_conv\..*", 0.5),
    (r"(cls|inner_cls\.\d+)\.3\.weight", 0.5),
)
# By trunk: gain of the two reductions, and what sets the classifiers' two classes apart, so that both appear.
DOWN_GAIN = {"resnet": 0.1, "vgg": 0.4}
APART = {
    "resnet": {"cls": 1.5, "inner_cls.0": 3.0, "inner_cls.1": -3.0, "inner_cls.2": -2.9, "inner_cls.3": -2.2},
    "vgg": {"cls": 0.6, "inner_cls.0": 1.0, "inner_cls.1": -1.9, "inner_cls.2": -0.8, "inner_cls.3": -0.7},
}


def fill_state_dict(shapes):
    """Arrays by official key, given all keys with their shapes."""
    trunk = "vgg" if shapes["down_query.0.weight"][1] == 768 else "resnet"
    return {key: _fill(key, tuple(shapes[key]), shapes, trunk) for key in sorted(shapes)}


def _fill(key, shape, shapes, trunk):
    module, _, leaf = key.rpartition(".")
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    values = rng_for(key).standard_normal(shape)
    is_norm = len(shapes.get(f"{module}.weight", ())) == 1
    if leaf == "running_mean":
        values = 0.1 * values
    elif leaf == "running_var":
        values = 1.0 + 0.1 * np.abs(values)
    elif leaf == "weight" and is_norm:
        values = 1.0 + 0.1 * values
    elif leaf == "weight":
        gain = next((g for pattern, g in GAINS if re.fullmatch(pattern, key)), 1.0)
        gain = DOWN_GAIN[trunk] if key.startswith("down_") else gain
        values = values * (gain * np.sqrt(2.0 / np.prod(shape[1:])))
    else:
        values = (0.1 if is_norm else 0.02) * values
        apart = APART[trunk].get(module.removesuffix(".3")) if module.endswith(".3") else None
        if apart is not None:
            values = values + np.array([-0.5, 0.5]) * apart
    return values.astype(np.float32)


def image(label, n, size, cell=13):
    """(n, 3, size, size): a blocky field and noise, of a contrast that differs between the 4×4 tiles of a picture."""
    g = rng_for(label)
    side = -(-size // cell)
    coarse = g.standard_normal((n, 3, side, side))
    index = np.arange(size) // cell
    values = 1.5 * coarse[:, :, index][:, :, :, index] + 0.5 * g.standard_normal((n, 3, size, size))
    tile = np.arange(size) * 4 // size
    contrast = np.exp(0.6 * g.standard_normal((n, 1, 4, 4)))[:, :, tile][:, :, :, tile]
    return (values * contrast).astype(np.float32)


def make_inputs(name, shots, batch, size):
    """x (B,3,S,S) and s_x (B,K,3,S,S) float32; s_y (B,K,S,S) and y_m (B,S,S) int64, 0/1/255."""
    x = image(f"{name}/x", batch, size)
    s_x = image(f"{name}/s_x", batch * shots, size).reshape(batch, shots, 3, size, size)
    g = rng_for(f"{name}/s_y")
    s_y = np.stack([np.stack([blob_mask(g, size)[0] for _ in range(shots)]) for _ in range(batch)])
    g = rng_for(f"{name}/y")
    y_m = np.stack([blob_mask(g, size)[0] for _ in range(batch)])
    # The object of an episode has a colour of its own, which supports and query share.
    tint = rng_for(f"{name}/tint").standard_normal((batch, 3, 1, 1)).astype(np.float32) * np.float32(1.5)
    x = x + (y_m == 1)[:, None].astype(np.float32) * tint
    s_x = s_x + (s_y == 1)[:, :, None].astype(np.float32) * tint[:, None]
    return {"x": x, "s_x": s_x, "s_y": s_y, "y_m": y_m}


UNIT_SCALE = 1e-4  # of the unit case's "layer 4", [z, z] of layer 3's z: so small that every eps counts


def make_unit_inputs(shots=2):
    """Features of layers 2 and 3 in place of pictures (B = 2, 13×13), and masks of 105×105.

    Of episode 0 the first support has an object of one pixel, of episode 1 the second support has none.
    """
    batch, size, h = 2, 105, 13
    tile = np.arange(h) * 4 // h

    def features(label, *shape):
        g = rng_for(f"unit/{label}")
        n = int(np.prod(shape[:-1]))
        contrast = np.exp(0.9 * g.standard_normal((n, 1, 4, 4)))[:, :, tile][:, :, :, tile]
        common = np.abs(g.standard_normal((n, shape[-1], 1, 1)))
        noise = np.abs(g.standard_normal((n, shape[-1], h, h)))
        return ((0.5 * noise + 0.5 * common) * (6.0 * contrast)).reshape(*shape, h, h).astype(np.float32)

    g = rng_for("unit/masks")
    s_y = np.stack([np.stack([blob_mask(g, size)[0] for _ in range(shots)]) for _ in range(batch)])
    y_m = np.stack([blob_mask(g, size)[0] for _ in range(batch)])
    s_y[0, 0] = 0
    s_y[0, 0, 44, 60] = 1
    s_y[1, 1][s_y[1, 1] == 1] = 0
    made = {"q2": features("q2", batch, 512), "q3": features("q3", batch, 1024)}
    made |= {"s2": features("s2", batch, shots, 512), "s3": features("s3", batch, shots, 1024)}
    return made | {"s_y": s_y, "y_m": y_m}
