"""`hdmnet.Segmenter`: the evaluator's predictions from one's own pictures, in whatever form they come."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

import hdmnet
from hdmnet import Segmenter
from hdmnet.data.io.user_pictures import read_user_picture
from hdmnet.data.types import collate_episodes
from hdmnet.metrics import FewShotIoU
from hdmnet.run import build
from hdmnet.tasks.feature_store import resize
from tests.helpers import commands

# Pictures of another size than the network's square, so that predictions are resized back.
EVALUATION = ("dataset.picture_size=81", "trainer=cpu", "num_workers=0", "reuse=false", "batch_size=1")


@pytest.fixture(scope="module")
def episodes(start):
    """The test data of the tiny run, on pictures of 81x81, as the evaluator sets it up."""
    cfg = OmegaConf.create(commands.load(start)["hdmnet"]["config"])
    cfg.dataset.picture_size = 81
    data = build.build_few_shot_data(cfg, build.build_dataset(cfg))
    data.setup("test")
    return data


@pytest.fixture(scope="module")
def pairs(episodes):
    """Two pictures of one novel class, each with its mask 0/1/255, and a third picture."""
    spec = episodes.test_manifests[0][0]
    return [episode_pair(episodes, spec.class_value, name) for name in (*spec.support_ids, spec.query_id)]


def episode_pair(data, class_value, image_id):
    return data.dataset.read_image(image_id), data.dataset.read_class_mask(image_id, class_value)


@pytest.fixture(scope="module")
def fitted(start, pairs):
    return Segmenter.from_checkpoint(start, device="cpu").fit(*pairs[0])


def same(one, other):
    return (one.mask == other.mask).all() and (one.probability == other.probability).all()


@pytest.mark.long
def test_the_masks_are_the_evaluators_and_so_is_the_miou(start, episodes, tmp_path):
    segmenter = Segmenter.from_checkpoint(start, device="cpu")
    dataset = episodes.test_dataloader().dataset
    metrics = [FewShotIoU(len(episodes.novel_names)) for _ in episodes.test_manifests]
    shares = []
    for number in range(len(dataset)):
        seed, spec = dataset.locate(number)
        query, truth = episode_pair(episodes, spec.class_value, spec.query_id)
        supports = [episode_pair(episodes, spec.class_value, name) for name in spec.support_ids]
        files = []
        for k, (image, mask) in enumerate(supports):
            files.append((tmp_path / f"{k}.png", tmp_path / f"{k}_mask.png"))
            Image.fromarray(image).save(files[-1][0])
            Image.fromarray(mask).save(files[-1][1])
        prediction = segmenter.fit(*zip(*files, strict=True)).predict(query)

        batch = episodes.on_after_batch_transfer(collate_episodes([dataset[number]]), 0)
        with torch.no_grad():
            output = segmenter.model(batch.query_image, batch.support_images, batch.support_masks)
            logits = resize(output.logits, torch.Size(truth.shape))[0]
        assert prediction.mask.shape == (81, 81)
        assert (prediction.mask == logits.argmax(0).numpy()).all()
        shares.append(prediction.mask.mean())
        target, class_index = torch.from_numpy(truth)[None], batch.class_index
        metrics[seed].update(torch.from_numpy(prediction.mask)[None], target, class_index)
    assert 0.1 < np.mean(shares) < 0.9  # mixed
    evaluated = commands.run("evaluate", tmp_path, f"ckpt={start}", *EVALUATION).result
    assert evaluated["test"]["miou_per_seed"] == pytest.approx([float(m.compute()["miou"]) for m in metrics], abs=1e-4)


@pytest.mark.long
def test_paths_pil_arrays_and_tensors_give_the_same(fitted, start, pairs, tmp_path):
    image, mask = pairs[0]
    query = pairs[1][0]
    expected = fitted.predict(query)
    Image.fromarray(query).save(tmp_path / "q.png")
    Image.fromarray(mask).save(tmp_path / "m.png")
    tensor = torch.from_numpy(query.copy()).permute(2, 0, 1)
    for form in (tmp_path / "q.png", str(tmp_path / "q.png"), Image.fromarray(query), tensor, tensor.float() / 255):
        assert same(fitted.predict(form), expected)
    other = Segmenter.from_checkpoint(start, device="cpu")
    for images, masks in (
        (Image.fromarray(image), tmp_path / "m.png"),
        ([torch.from_numpy(image.copy()).permute(2, 0, 1)], torch.from_numpy(mask)[None]),
        (image[None], mask[None]),
    ):
        assert same(other.fit(images, masks).predict(query), expected)


def test_one_gives_one_and_several_give_a_list_in_any_batches(fitted, pairs):
    pictures = [image for image, _ in pairs] + [np.zeros((20, 90, 3), np.uint8)]
    singly = [fitted.predict(picture) for picture in pictures]
    for batch_size in (1, 2):
        together = fitted.predict(pictures, batch_size=batch_size)
        assert [one.mask.shape for one in together] == [picture.shape[:2] for picture in pictures]
        for one, other in zip(together, singly, strict=True):
            np.testing.assert_allclose(one.probability, other.probability, atol=1e-4)
    stacked = np.stack(pictures[:2])
    assert len(fitted.predict(stacked)) == len(fitted.predict(torch.from_numpy(stacked).permute(0, 3, 1, 2))) == 2
    assert fitted.predict([]) == []


def test_the_documented_arrays(fitted, pairs):
    prediction = fitted.predict(pairs[1][0], maps=True)
    assert prediction.mask.dtype == np.uint8
    assert set(np.unique(prediction.mask)) == {0, 1}
    assert prediction.probability.dtype == np.float32
    assert 0 <= prediction.probability.min() < 0.5 < prediction.probability.max() <= 1
    assert ((prediction.probability > 0.5) == (prediction.mask == 1)).mean() > 0.999
    maps = prediction.maps["object"]
    assert {name: [values.shape for values in several] for name, several in maps.items()} == {
        "prior": [(9, 9), (9, 9)],
        "correlation": [(9, 9), (5, 5), (3, 3)],
    }
    assert fitted.predict(pairs[1][0]).maps == {}


@pytest.mark.parametrize("size", [(200, 900), (97, 97), (7, 5)])
def test_sizes_and_grey(fitted, pairs, size):
    picture = np.asarray(Image.fromarray(pairs[1][0]).resize(size[::-1]))
    assert fitted.predict(picture).mask.shape == size
    grey = np.asarray(Image.fromarray(picture).convert("L"))
    assert same(fitted.predict(grey), fitted.predict(np.dstack([grey] * 3)))


def test_a_turned_picture_is_segmented_as_shown(fitted, pairs, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.fromarray(pairs[1][0]).resize((60, 40))
    picture.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    upright = np.rot90(np.asarray(Image.open(tmp_path / "turned.jpg")), -1)
    prediction = fitted.predict(tmp_path / "turned.jpg")
    assert prediction.mask.shape == (60, 40)
    assert same(prediction, fitted.predict(upright.copy()))
    assert (read_user_picture(tmp_path / "turned.jpg")[0] == upright).all()


def test_several_classes_make_an_index_mask(start, pairs):
    segmenter = Segmenter.from_checkpoint(start, device="cpu")
    (first, first_mask), (second, second_mask), *_ = pairs
    query, classes = pairs[-1][0], {"a": (first, first_mask), "b": ([second, first], [second_mask, (5, 5, 70, 60)])}
    alone = [segmenter.fit(*pair).predict(query) for pair in classes.values()]
    prediction = segmenter.fit(classes).predict(query)
    assert segmenter.classes == prediction.classes == ("a", "b")
    for name, one in zip("ab", alone, strict=True):
        assert (prediction.probabilities[name] == one.probability).all()
    assert ((prediction.mask > 0) == ((alone[0].mask | alone[1].mask) > 0)).all()
    both = (alone[0].mask & alone[1].mask) > 0
    likelier = 1 + (alone[1].probability > alone[0].probability)
    assert both.any()
    assert (prediction.mask[both] == likelier[both]).all()
    only = (alone[1].mask > 0) & (alone[0].mask == 0)
    assert (prediction.mask[only] == 2).all()


def test_a_mask_of_another_scale_does_the_same(start, pairs):
    image, mask = pairs[0]
    segmenter = Segmenter.from_checkpoint(start, device="cpu")
    expected = segmenter.fit(image, mask).predict(image)
    assert same(segmenter.fit(image, mask.repeat(3, 0).repeat(3, 1)).predict(image), expected)


@pytest.mark.long
def test_threads_predict_the_same(start, pairs, tmp_path):
    Segmenter.from_checkpoint(start, device="cpu").fit(*pairs[0]).save(tmp_path / "fitted.pt")
    segmenter = Segmenter.from_checkpoint(tmp_path / "fitted.pt", device="cpu")  # has never predicted
    pictures = [np.roll(image, shift, 1) for image, _ in pairs for shift in (0, 20, 40, 60)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(segmenter.predict, pictures))
    assert all(same(one, segmenter.predict(picture)) for one, picture in zip(together, pictures, strict=True))


@pytest.mark.long
def test_a_fitted_one_is_saved_and_read(fitted, pairs, tmp_path):
    fitted.save(tmp_path / "fitted.pt")
    again = Segmenter.from_checkpoint(tmp_path / "fitted.pt", device="cpu")
    assert again.classes == fitted.classes
    assert same(again.predict(pairs[1][0]), fitted.predict(pairs[1][0]))
    content = torch.load(tmp_path / "fitted.pt", weights_only=True)
    del content["hdmnet_segmenter"]["supports"][0]["features"]["stages"]
    torch.save(content, tmp_path / "broken.pt")
    with pytest.raises(ValueError, match="lacks parts of its supports"):
        Segmenter.from_checkpoint(tmp_path / "broken.pt", device="cpu")
    with pytest.raises(ValueError, match="was fitted at"):
        Segmenter.from_checkpoint(tmp_path / "fitted.pt", device="cpu", image_size=97)
    content["hdmnet_segmenter"]["recipe"]["facts"]["num_base"] = "many"
    torch.save(content, tmp_path / "broken.pt")
    with pytest.raises(
        ValueError, match=r"broken.pt' tells of 'many' base classes and 1 shots; expected whole numbers"
    ):
        Segmenter.from_checkpoint(tmp_path / "broken.pt", device="cpu")
    content["hdmnet_segmenter"]["recipe"]["image_size"] = [65, "wide"]
    torch.save(content, tmp_path / "broken.pt")
    with pytest.raises(ValueError, match=r"broken.pt': image_size=\[65, 'wide'\]: expected an integer of at least 1"):
        Segmenter.from_checkpoint(tmp_path / "broken.pt", device="cpu")


def test_another_input_size_is_used(start, pairs):
    segmenter = Segmenter.from_checkpoint(start, device="cpu", image_size=[97, 81]).fit(*pairs[0])
    assert segmenter.image_size == (97, 81)
    maps = segmenter.predict(pairs[1][0], maps=True).maps["object"]
    assert maps["correlation"][0].shape == (13, 11)


def test_refusals_are_one_line_and_keep_the_supports(start, first_run, pairs, tmp_path):
    segmenter = Segmenter.from_checkpoint(start, device="cpu")
    image, mask = pairs[0]
    for action in (lambda: segmenter.predict(image), lambda: segmenter.save(tmp_path / "x.pt")):
        with pytest.raises(ValueError, match="has no supports yet"):
            action()
    segmenter.fit(image, mask)
    speck = np.zeros((4000, 4000), np.uint8)
    speck[3, 3] = 1
    for images, masks, message in (
        ([image, image], [mask], "2 pictures and 1 masks"),
        ([], [], "0 pictures and 0 masks"),
        (image, mask * 0, "mask 1 of class 'object' is empty"),
        (image, speck, "vanish at the network's 65x65"),
        (image, None, "is a NoneType"),
        ({}, None, "0 classes"),
        ({"a": image}, None, r"class 'a': expected \(images, masks\)"),
        ({"a": (image, mask)}, mask, "mapping and masks"),
        ({1: (image, mask), "1": (image, mask)}, None, r"two classes of one name .* among \[1, '1'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            segmenter.fit(images, masks)
    assert segmenter.classes == ("object",)
    with pytest.raises(ValueError, match="batch_size is 0"):
        segmenter.predict(image, batch_size=0)
    with pytest.raises(ValueError, match="is a base learner"):
        Segmenter.from_checkpoint(first_run.folder / "base_learner.pt")
    with pytest.raises(ValueError, match="device=gpu: expected auto"):
        Segmenter.from_checkpoint(start, device="gpu")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="is not of an hdmnet run"):
        Segmenter.from_checkpoint(tmp_path / "other.pth")


def test_the_package_has_no_other_lazy_name():
    assert hdmnet.Segmenter is Segmenter
    with pytest.raises(AttributeError, match="no attribute 'Segmentor'"):
        _ = hdmnet.Segmentor
