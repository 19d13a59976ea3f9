"""Deterministic weights and inputs under which the official release's outputs were recorded (golden/); NumPy only.

Any implementation with the release's keys and shapes that is filled by `fill_state_dict` must reproduce those outputs.
One Philox stream per tensor, keyed by its name; drawn in float64, cast to float32 at the end. Do not change a draw.
"""

from __future__ import annotations

import hashlib
import re
import zlib

import numpy as np


def rng_for(label):
    return np.random.Generator(np.random.Philox(key=zlib.crc32(label.encode("utf-8"))))


# multiplicative gain on top of He std sqrt(2/fan_in); first match wins.
GAINS = (
    (r"^layer[1-4]\.\d+\.conv3\.weight$", 0.5),  # ResNet residual branch -> bounded growth
    (r"^cls\.0\.weight$", 0.2),  # base learner: keep the softmax unsaturated
    (r"^base_learnear\.2\.weight$", 0.5),
    (r"\.linear_[qkvo]\.weight$", 0.70710678),  # -> unit gain
    (r"\.ffn\.layers\.4\.weight$", 0.5),  # second FFN projection (residual branch)
    (r"^transformer\.mix_transformer\.parse_layers\.", 0.70710678),  # no nonlinearity inside
    (r"^transformer\.mix_transformer\.cls\.", 0.70710678),
)


def fill_tensor(name, shape, all_shapes):
    """float32 array (int64 0-d for num_batches_tracked) for one state_dict entry."""
    shape = tuple(int(s) for s in shape)
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, dtype=np.int64)
    n = rng_for(name).standard_normal(shape)
    leaf = name.rsplit(".", 1)[-1]
    if name in ("gram_merge.weight", "cls_merge.weight"):
        v = np.array([1.0, 0.0]).reshape(shape) + 0.2 * n  # default [1, 0]
    elif name.startswith("kshot_rw."):
        v = 0.5 * n  # weights and biases alike
    elif leaf == "running_mean":
        v = 0.1 * n
    elif leaf == "running_var":
        v = 1.0 + 0.1 * np.abs(n)
    elif leaf == "weight" and len(shape) == 1:  # BN / LN scale
        v = 1.0 + 0.1 * n
    elif leaf == "weight":
        fan_in = int(np.prod(shape[1:]))
        gain = next((g for pat, g in GAINS if re.search(pat, name)), 1.0)
        v = n * (gain * np.sqrt(2.0 / fan_in))
    elif leaf == "bias":
        sib = all_shapes.get(name[: -len("bias")] + "weight")
        is_norm = sib is not None and len(tuple(sib)) == 1
        v = (0.1 if is_norm else 0.02) * n
        if name == "transformer.mix_transformer.cls.4.bias":  # centre the meta fg/bg logits
            v = v + np.array([-2.0, 2.0])
    else:
        raise KeyError(f"no rule for {name} {shape}")
    return v.astype(np.float32)


def fill_state_dict(shapes):
    """shapes: {key: shape}.  Returns {key: np.ndarray} in sorted-key order."""
    return {k: fill_tensor(k, shapes[k], shapes) for k in sorted(shapes)}


# --------------------------------------------------------------------------------------- inputs
CONFIGS = {
    #  name                     dataset   vgg    shot  B  size
    "a_pascal_r50_1shot_105": dict(data_set="pascal", vgg=False, shot=1, B=2, size=105),
    "b_coco_r50_5shot_105": dict(data_set="coco", vgg=False, shot=5, B=1, size=105),
    "c_pascal_vgg_1shot_105": dict(data_set="pascal", vgg=True, shot=1, B=1, size=105),
    "d_coco_r50_1shot_201": dict(data_set="coco", vgg=False, shot=1, B=1, size=201),
}
BASE_CLASSES = {"pascal": 15, "coco": 60}


def _image(label, n, size, cell=13):
    """(n,3,size,size): blocky low-frequency field (cell px) * 1.5 + white noise * 0.5."""
    g = rng_for(label)
    m = -(-size // cell)
    coarse = g.standard_normal((n, 3, m, m))
    idx = np.arange(size) // cell
    low = coarse[:, :, idx][:, :, :, idx]
    return (1.5 * low + 0.5 * g.standard_normal((n, 3, size, size))).astype(np.float32)


def _ellipse(size, cy, cx, ry, rx):
    yy, xx = np.mgrid[0:size, 0:size].astype(np.float64)
    return ((yy - cy) / ry) ** 2 + ((xx - cx) / rx) ** 2, xx


def blob_mask(g, size, rmin=0.18, rmax=0.34):
    """int64 (size,size): 1 inside a random ellipse, 255 on the right half of a ring around it and in
    a small square in the top-left corner, 0 elsewhere.  Returns mask, ellipse 'radius^2' field."""
    cy, cx = g.uniform(0.35, 0.65, 2) * size
    ry, rx = g.uniform(rmin, rmax, 2) * size
    r2, xx = _ellipse(size, cy, cx, ry, rx)
    m = np.zeros((size, size), np.int64)
    m[r2 <= 1.0] = 1
    m[(r2 > 1.0) & (r2 <= 1.25) & (xx > cx)] = 255
    k = size // 12
    m[:k, :k] = 255
    return m, r2


def make_inputs(name):
    """dict: x (B,3,h,w) f32, s_x (B,shot,3,h,w) f32, s_y (B,shot,h,w) i64 {0,1,255},
    y_m (B,h,w) i64 {0,1,255}, y_b (B,h,w) i64 {0..base,255}, cat_idx (B,) i64 in [0,base)."""
    c = CONFIGS[name]
    B, S, size, base = c["B"], c["shot"], c["size"], BASE_CLASSES[c["data_set"]]
    x = _image(name + "/x", B, size)
    s_x = _image(name + "/s_x", B * S, size).reshape(B, S, 3, size, size)
    g = rng_for(name + "/s_y")
    s_y = np.stack([np.stack([blob_mask(g, size)[0] for _ in range(S)]) for _ in range(B)])
    g = rng_for(name + "/y")
    y_m, y_b, cat = [], [], []
    for b in range(B):
        # the second sample of a batch gets a tiny object: exercises the coarse -1e9 teacher
        m, _ = blob_mask(g, size) if b == 0 else blob_mask(g, size, 0.04, 0.06)
        ci = int(g.integers(0, base))
        lb = np.zeros((size, size), np.int64)
        other = int((ci + 1 + g.integers(0, base - 1)) % base)  # != ci
        r2o, _ = _ellipse(size, 0.15 * size, 0.8 * size, 0.14 * size, 0.16 * size)
        lb[r2o <= 1.0] = other + 1
        lb[m == 1] = ci + 1
        lb[m == 255] = 255
        y_m.append(m)
        y_b.append(lb)
        cat.append(ci)
    return dict(x=x, s_x=s_x, s_y=s_y, y_m=np.stack(y_m), y_b=np.stack(y_b), cat_idx=np.array(cat, np.int64))


def checksum(a):
    a = np.ascontiguousarray(a)
    return hashlib.sha256(a.tobytes()).hexdigest()[:16]


def transformer_inputs(shot, scale, B=2, h=13, w=17, H=101, W=133):
    """non-square on purpose.  query (B,64,h,w), supp (B*shot,64,h,w), mask (B*shot,1,H,W) 0/1, similarity (B,2,h,w)"""
    t = f"unit_transformer_s{shot}_{scale:g}"
    q = rng_for(t + "/q").standard_normal((B, 64, h, w)) * scale
    s = rng_for(t + "/s").standard_normal((B * shot, 64, h, w)) * scale
    g = rng_for(t + "/mask")
    mask = np.stack([(blob_mask(g, max(H, W))[0] == 1)[:H, :W] for _ in range(B * shot)])[:, None]
    sim = rng_for(t + "/sim").uniform(0, 1, (B, 2, h, w))
    return dict(
        q=q.astype(np.float32), s=s.astype(np.float32), mask=mask.astype(np.float32), sim=sim.astype(np.float32)
    )


def distil_inputs():
    """y_m (8,105,105) in {0,1,255} and student maps w0 (8,4,4), w1 (8,7,7), w2 (8,14,14), coarse first.
    Samples: 0 ordinary, 1 tiny object (touches no coarse sample point), 2 all background, 3 all foreground,
    4 object + large 255 area, 5 only 255 (no foreground), 6 one fg pixel that is 1 of the 4 taps of coarse
    cell (0,0) -> teacher one-hot there, 7 partial taps at (0,0) and, with larger weight, (1,1) -> one-hot (1,1)."""
    g = rng_for("unit_distil/y")
    y = np.zeros((8, 105, 105), np.int64)
    y[0] = blob_mask(g, 105)[0]
    y[1] = blob_mask(g, 105, 0.04, 0.06)[0]
    y[3] = 1
    y[4] = blob_mask(g, 105)[0]
    y[4, 60:] = 255
    y[5, 30:70, 30:70] = 255
    y[6, 13, 13] = 1
    y[7, 13, 13] = 1
    y[7, 39, 39] = 1
    w = [rng_for(f"unit_distil/w{i}").standard_normal((8, n, n)).astype(np.float32) for i, n in enumerate((4, 7, 14))]
    return y, w


def gap_inputs():
    f = rng_for("unit_gap/f").standard_normal((4, 8, 14, 14)).astype(np.float32)
    m = np.zeros((4, 1, 14, 14), np.float32)
    m[0, 0, 3:9, 4:11] = 1
    m[1, 0, 5, 5] = 0.001  # eps matters
    m[3] = rng_for("unit_gap/m").uniform(0, 1, (1, 14, 14))  # soft
    return f, m  # sample 2: empty mask


def similarity_inputs():
    """q,s (4,32,14,14); mask (4,1,105,105) int {0,1,255}: blob / empty / all-fg / blob+255"""
    q = rng_for("unit_sim/q").standard_normal((4, 32, 14, 14)).astype(np.float32)
    s = rng_for("unit_sim/s").standard_normal((4, 32, 14, 14)).astype(np.float32)
    g = rng_for("unit_sim/m")
    m = np.zeros((4, 1, 105, 105), np.int64)
    m[0, 0] = blob_mask(g, 105)[0]
    m[2] = 1
    m[3, 0] = blob_mask(g, 105, 0.05, 0.1)[0]
    m[3, 0, 80:] = 255
    return q, s, m


def metric_inputs():
    out = rng_for("unit_iou/o").integers(0, 2, (1, 40, 52))
    tgt = rng_for("unit_iou/t").integers(0, 2, (1, 40, 52))
    tgt[0, :5] = 255
    outb = rng_for("unit_iou/ob").integers(0, 16, (1, 40, 52))
    tgtb = rng_for("unit_iou/tb").integers(0, 16, (1, 40, 52))
    tgtb[0, :, :7] = 255
    return out, tgt, outb, tgtb
