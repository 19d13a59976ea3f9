"""Deterministic weights and inputs under which outputs of BAM's release were recorded; NumPy only.

As in `official_recipe`, whose draws it shares: one Philox stream per tensor, keyed by its name. Do not change a draw.
"""

from __future__ import annotations

import numpy as np

from tests.helpers import pfenet_recipe
from tests.helpers.official_recipe import _ellipse, blob_mask, rng_for
from tests.helpers.release_recipe import Recipe

RESNET = Recipe(
    gains=(
        (r"^layer[1-4]\.\d+\.conv3\.weight$", 0.5),
        (r"^(learner_base\.1|cls)\.0\.weight$", 0.1),
        (r"^(learner_base\.1|cls)\.4\.weight$", 0.5),
        (r"^(res2_meta\.2|cls_meta\.3)\.weight$", 0.5),
        (r"^down_", 0.1),
    ),
    apart=("cls_meta.3.bias", (-1.0, 1.0)),
    zeros="(?!)",
)
# The weights of the shots must differ clearly from shot to shot.
KSHOT_GAIN = {"kshot_rw.0.weight": 30.0, "kshot_rw.0.bias": 0.5, "kshot_rw.2.weight": 1.0, "kshot_rw.2.bias": 1.0}
UNIT_SHOTS = 3


def fill_state_dict(shapes):
    """Arrays by official key, of a BAM or a PSPNet on a ResNet, given all keys with their shapes."""
    state = RESNET.fill(shapes)
    for key in state:
        shape = tuple(shapes[key])
        if key in KSHOT_GAIN:
            values = KSHOT_GAIN[key] * rng_for(key).standard_normal(shape)
        elif key in ("gram_merge.weight", "cls_merge.weight"):
            values = np.array([1.0, 0.0]).reshape(shape) + 0.2 * rng_for(key).standard_normal(shape)
        elif key in ("learner_base.1.4.bias", "cls.4.bias"):
            values = 0.02 * rng_for(key).standard_normal(shape)
            values[0] += np.log(shape[0] - 1.0)  # the background about as likely as all classes together
        else:
            continue
        state[key] = values.astype(np.float32)
    return state


def make_inputs(name, shots, batch, size, num_base):
    """As `pfenet_recipe.make_inputs`, with base labels y_b (B, S, S) and the episodes' classes cat_idx (B,)."""
    g = rng_for(f"{name}/s_y")
    s_y = np.stack([np.stack([blob_mask(g, size)[0] for _ in range(shots)]) for _ in range(batch)])
    g = rng_for(f"{name}/y")
    masks, labels, classes = [], [], []
    for _ in range(batch):
        mask = blob_mask(g, size)[0]
        own = int(g.integers(0, num_base))
        other = int((own + 1 + g.integers(0, num_base - 1)) % num_base)
        label = np.zeros((size, size), np.int64)
        label[_ellipse(size, 0.15 * size, 0.8 * size, 0.14 * size, 0.16 * size)[0] <= 1.0] = other + 1
        label[mask == 1] = own + 1
        label[mask == 255] = 255
        masks.append(mask), labels.append(label), classes.append(own)
    y_m = np.stack(masks)
    x = pfenet_recipe.image(f"{name}/x", batch, size)
    s_x = pfenet_recipe.image(f"{name}/s_x", batch * shots, size).reshape(batch, shots, 3, size, size)
    # The object of an episode has a colour of its own, every support a contrast of its own.
    tint = rng_for(f"{name}/tint").standard_normal((batch, 3, 1, 1)).astype(np.float32) * np.float32(1.5)
    x = x + (y_m == 1)[:, None].astype(np.float32) * tint
    s_x = s_x + (s_y == 1)[:, :, None].astype(np.float32) * tint[:, None]
    contrast = np.exp(0.7 * rng_for(f"{name}/contrast").standard_normal((batch, shots, 1, 1, 1))).astype(np.float32)
    made = {"x": x, "s_x": s_x * contrast, "s_y": s_y, "y_m": y_m}
    return made | {"y_b": np.stack(labels), "cat_idx": np.array(classes, np.int64)}


def make_unit_inputs():
    """As PFENet's, of three supports, with base labels and classes."""
    made = pfenet_recipe.make_unit_inputs(UNIT_SHOTS)
    y_m = made["y_m"]
    y_b = np.where(y_m == 1, 4, np.where(y_m == 0, 2, y_m))
    return made | {"y_b": y_b, "cat_idx": np.array([3, 1], np.int64)}


def make_stage1_inputs(batch=4, size=105, num_base=15):
    """Pictures x (B, 3, S, S) and base labels y_b (B, S, S) for the base learner alone."""
    g = rng_for("stage1/y")
    labels = []
    for _ in range(batch):
        mask = blob_mask(g, size)[0]
        label = np.zeros((size, size), np.int64)
        place = _ellipse(size, 0.2 * size, 0.75 * size, 0.16 * size, 0.2 * size)[0] <= 1.0
        label[place] = 1 + int(g.integers(0, num_base))
        label[mask == 1] = 1 + int(g.integers(0, num_base))
        label[mask == 255] = 255
        labels.append(label)
    return {"x": pfenet_recipe.image("stage1/x", batch, size), "y_b": np.stack(labels)}
