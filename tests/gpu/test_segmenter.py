"""`Segmenter` on a GPU: the CPU's masks but for a few pixels, from several threads and after a save too."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from omegaconf import OmegaConf

from hdmnet import Segmenter
from hdmnet.run import build
from tests.helpers import commands

pytestmark = pytest.mark.gpu

CHANGED = 1e-3  # of the pixels at most: those whose two logits are equal up to rounding


@pytest.fixture(scope="module")
def pictures(device, start):
    """Validation pictures of one class with their masks, of another size than the network's."""
    cfg = OmegaConf.create(commands.load(start)["hdmnet"]["config"])
    cfg.dataset.picture_size = 161
    data = build.build_few_shot_data(cfg, build.build_dataset(cfg))
    data.setup("test")
    value = data.test_manifests[0][0].class_value
    ids = [image_id for image_id in data.dataset.ids("val") if value in data.dataset.class_areas(image_id)]
    return [(data.dataset.read_image(image_id), data.dataset.read_class_mask(image_id, value)) for image_id in ids]


@pytest.fixture(scope="module")
def fitted(device, start, pictures):
    """The same network on the CPU and on the device, fitted on two supports."""
    supports = list(zip(*pictures[:2], strict=True))
    return {name: Segmenter.from_checkpoint(start, device=name).fit(*supports) for name in ("cpu", device)}


def changed(one, other):
    """Share of the pixels that differ."""
    return float(np.mean([(a.mask != b.mask).mean() for a, b in zip(one, other, strict=True)]))


def test_cpu_and_device_differ_in_few_pixels(device, fitted, pictures, record_property):
    queries = [image for image, _ in pictures]
    cpu, found = (fitted[name].predict(queries, batch_size=4) for name in ("cpu", device))
    share = float(np.mean([one.mask.mean() for one in cpu]))
    record_property("pixels", len(queries) * 161 * 161)
    record_property("share_of_pixels_changed", changed(cpu, found))
    largest = max(np.abs(a.probability - b.probability).max() for a, b in zip(cpu, found, strict=True))
    record_property("largest_probability_difference", float(largest))
    assert 0.05 < share < 0.95  # mixed
    assert changed(cpu, found) <= CHANGED
    assert largest < 1e-3


def test_threads_predict_the_same(device, fitted, pictures):
    queries = [np.roll(image, shift, 1) for image, _ in pictures[:4] for shift in (0, 40, 80)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(fitted[device].predict, queries))
    alone = [fitted[device].predict(query) for query in queries]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one.probability, other.probability, rtol=0, atol=1e-5)
    assert changed(together, alone) <= CHANGED


def test_what_was_fitted_on_the_device_is_read_on_the_cpu(device, fitted, pictures, tmp_path):
    fitted[device].save(tmp_path / "fitted.pt")
    queries = [image for image, _ in pictures[:4]]
    for name in ("cpu", device):
        again = Segmenter.from_checkpoint(tmp_path / "fitted.pt", device=name)
        assert changed(again.predict(queries), fitted["cpu"].predict(queries)) <= CHANGED
