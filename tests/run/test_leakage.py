"""No pixel of a novel class may teach either stage: whole train lists of every data set, through the real DataModules.

With the novel-class filter no training picture holds such a pixel. Without it, such pixels are background, as in the
older protocol: what reaches the task is then the same, bit for bit, as if nobody had ever labelled a novel class. With
`dataset.novel_pixels=ignore` they are 255, which no loss counts.
"""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from hdmnet.config.paths import make_paths_absolute
from hdmnet.data.datamodules.few_shot import FewShotDataModule
from hdmnet.data.datasets.files import refuse_shared_ids
from hdmnet.data.datasets.pascal import PascalDataset
from hdmnet.models.hdmnet.loss import HDMNetLoss
from hdmnet.models.method import Segmentation
from hdmnet.run import build, stage1
from hdmnet.tasks.base_learner import BaseLearnerTask, BaseOptimiserSettings
from tests.helpers.commands import REAL, SHAPES, call
from tests.helpers.datasets import MemoryDataset, few_shot
from tests.helpers.folder_trees import shapes_content, write

SIDE = 65
WORDS = {
    "pascal": (*REAL, "dataset=pascal", "dataset.train_list=voc", "augment=none", "optim.base.augment=none"),
    "coco": (*REAL, "dataset=coco", "augment=none", "optim.base.augment=none"),
    "shapes": (*SHAPES, "augment=none", "dataset.base_image_size=65", "optim.base.augment=none"),
    "folder": (
        *REAL,
        "dataset=folder",
        "dataset.num_folds=2",
        "dataset.num_val_episodes=2",
        "augment=none",
        "optim.base.augment=none",
    ),
}


@pytest.fixture(scope="module")
def trees(data_dir, tmp_path_factory):
    """Folder of each data set; the folder one has a list of training pictures, which also hold novel classes."""
    root = tmp_path_factory.mktemp("folder")
    content = shapes_content(num_pictures=30, one_class=False, side=SIDE)
    for layout in ("index", "binary", "coco"):
        write(layout, root / layout, content)
        (root / layout / "val.txt").write_text("".join(f"{name}\n" for name in list(content[0])[::3]))
    return {"pascal": data_dir / "pascal", "coco": data_dir / "coco", "content": content[0], "root": root}


def modules(compose_config, trees, tmp_path, name, *words, erase=False):
    """The DataModules of both stages as the train door builds them, set up; erase: novel labels become background."""
    layout = name.partition("/")[2] or "index"
    name = name.partition("/")[0]
    if name == "folder":
        words = (*words, f"dataset.root={trees['root'] / layout}", "dataset.val_list=val.txt")
    elif name != "shapes":
        words = (*words, f"paths.data_dir={trees[name].parent}")
    cfg = compose_config("train", *WORDS[name], *words, f"paths.output_dir={tmp_path / str(erase)}")
    make_paths_absolute(cfg, tmp_path / "run")
    dataset = build.build_dataset(cfg)
    if erase:
        _erase_novel_labels(dataset, dataset.class_split(cfg.fold).novel)
    both = build.build_few_shot_data(cfg, dataset), stage1.build_base_data(cfg, dataset)
    for module in both:
        module.setup("fit")
    return both


def _erase_novel_labels(dataset, novel):
    """Of the training pictures; those that are tested keep theirs."""
    train = {*dataset.ids("train")}

    read_class, read_all, areas = dataset.read_class_mask, dataset.read_label_map, dataset.class_areas
    held_out = lambda one, value: one in train and value in novel  # noqa: E731
    dataset.read_class_mask = lambda one, value: read_class(one, value) * np.uint8(not held_out(one, value))
    dataset.class_areas = lambda one: {v: area for v, area in areas(one).items() if not held_out(one, v)}

    def read_label_map(image_id, classes):
        labels, whole = read_all(image_id, classes), read_all(image_id)
        return np.where(np.isin(whole, novel), 0, labels).astype(np.uint8) if image_id in train else labels

    dataset.read_label_map = read_label_map


def truth(trees, dataset, image_id):
    """The labels of a picture, (H0, W0), as they lie on the disk: read by nothing of hdmnet."""
    if dataset.name in ("pascal", "coco"):
        return np.asarray(Image.open(dataset.mask_path(image_id)))
    return dataset.sample(image_id).mask if dataset.name == "shapes" else trees["content"][image_id].mask


def shrink(mask):
    """To the network's square."""
    return cv2.resize(mask, (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)


def check_whole_lists(trees, few, base, *, filtered, novel_label=0):
    """Walk all training pictures through both stages' data sets; returns the number of novel pixels met.

    `novel_label` is what they are to be.
    """
    dataset, split, met = few.dataset, few.class_split, 0
    assert not set(split.train) & set(split.novel)
    names = [str(image_id) for image_id in few.train_manifest.view.ids]
    assert sorted(base.train_ids) == sorted(names)
    assert not {*names} & {*map(str, few.val_manifest.view.ids)}
    episodes, samples = few.train_dataloader().dataset, base.train_dataloader().dataset
    seen = set()
    for index in range(len(names)):
        episode, sample = episodes[index], samples[index]
        seen.add((episode.query_id, sample.id))
        class_value = split.train[int(episode.class_index)]
        masks = [(episode.query_id, episode.query_mask, {class_value: 1})]
        masks += [
            (one, mask, {class_value: 1}) for one, mask in zip(episode.support_ids, episode.support_masks, strict=True)
        ]
        numbers = {value: number for number, value in enumerate(split.train, start=1)}
        masks += [(sample.id, sample.mask, numbers)]
        for image_id, target, wanted in masks:
            labels = truth(trees, dataset, image_id)
            if filtered:
                assert not np.isin(labels, split.novel).any(), image_id
            labels = shrink(labels)
            expected = np.zeros_like(labels)
            expected[np.isin(labels, split.novel)] = novel_label
            for value, number in wanted.items():
                expected[labels == value] = number
            expected[labels == 255] = 255
            assert (target.numpy() == expected).all(), image_id
            met += int(np.isin(labels, split.novel).sum())
    assert {query for query, _ in seen} == {image for _, image in seen} == set(names)  # the whole list, twice
    return met


DATASETS = [
    *(("pascal", 0), ("pascal", 3), ("coco", 2), ("shapes", 1)),
    *(("folder/index", 0), ("folder/binary", 1), ("folder/coco", 0)),
]


@pytest.mark.long
@pytest.mark.parametrize(("dataset", "fold"), DATASETS)
def test_no_training_picture_holds_a_novel_pixel(compose_config, trees, tmp_path, dataset, fold):
    both = modules(compose_config, trees, tmp_path, dataset, f"fold={fold}")
    assert check_whole_lists(trees, *both, filtered=True) == 0


@pytest.mark.long
@pytest.mark.parametrize(("dataset", "fold"), [one for one in DATASETS if one[0] != "shapes"])
def test_without_the_filter_novel_pixels_are_background(compose_config, trees, tmp_path, dataset, fold):
    """SHAPES draws no novel object into a training picture in the first place."""
    both = modules(compose_config, trees, tmp_path, dataset, f"fold={fold}", "dataset.filter_novel=false")
    assert check_whole_lists(trees, *both, filtered=False) > 1000


@pytest.mark.long
@pytest.mark.parametrize(("dataset", "fold"), [one for one in DATASETS if one[0] != "shapes"])
@pytest.mark.parametrize(("choice", "label"), [("ignore", 255), ("background", 0)])
def test_novel_pixels_that_training_keeps_are_what_was_chosen(
    compose_config, trees, tmp_path, dataset, fold, choice, label
):
    both = modules(compose_config, trees, tmp_path, dataset, f"fold={fold}", f"dataset.novel_pixels={choice}")
    assert check_whole_lists(trees, *both, filtered=False, novel_label=label) > 1000
    validation = both[1].val_dataloader().dataset
    met = 0
    for sample in (validation[index] for index in range(len(validation))):
        labels = shrink(truth(trees, both[1].dataset, sample.id))
        novel = np.isin(labels, both[1].class_split.novel)
        assert (sample.mask.numpy()[novel] == label).all()
        met += int(novel.sum())
    assert met > 100


@pytest.mark.long
@pytest.mark.parametrize(("augment", "base"), [("official", "bam"), ("paper", "official"), ("flip", "flip")])
@pytest.mark.parametrize("dataset", ["pascal", "folder/coco"])
def test_training_sees_the_same_bits_where_novel_labels_are_erased(
    compose_config, trees, tmp_path, dataset, augment, base
):
    words = ("fold=0", "dataset.filter_novel=false", f"augment={augment}", f"optim.base.augment={base}", "shot=2")
    pairs = [modules(compose_config, trees, tmp_path, dataset, *words, erase=erase) for erase in (False, True)]
    for labelled, erased in zip(*pairs, strict=True):
        ids = getattr(labelled, "train_ids", None) or labelled.train_manifest.view.ids
        one, other = labelled.train_dataloader().dataset, erased.train_dataloader().dataset
        for index in range(len(ids)):
            a, b = one[index], other[index]
            for field in dataclasses.fields(a):
                x, y = getattr(a, field.name), getattr(b, field.name)
                assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y, (index, field.name)


@pytest.mark.parametrize("leak", ["base learner", "meta learner", "filter"])
def test_these_checks_find_a_leak(compose_config, trees, tmp_path, monkeypatch, leak):
    read_labels, read_class = PascalDataset.read_label_map, PascalDataset.read_class_mask
    if leak == "base learner":
        with_novel = lambda dataset, one, classes=None: read_labels(dataset, one, [*classes, *range(1, 6)])  # noqa: E731
        monkeypatch.setattr(PascalDataset, "read_label_map", with_novel)
    elif leak == "meta learner":

        def all_classes(dataset, image_id, value):
            return np.maximum(dataset.read_mask(image_id) > 0, read_class(dataset, image_id, value))

        monkeypatch.setattr(PascalDataset, "read_class_mask", all_classes)
    both = modules(compose_config, trees, tmp_path, "pascal", "dataset.filter_novel=false")
    with pytest.raises(AssertionError, match=r"20|test-|val-|train"):
        check_whole_lists(trees, *both, filtered=leak == "filter")


# ---------------------------------------------------------------------------------------------------- the gradient


def novel_batch(compose_config, trees, tmp_path, stage):
    """All training samples of PASCAL's fold 0 with a novel pixel, as one batch, and where these pixels are."""
    both = modules(compose_config, trees, tmp_path, "pascal", "dataset.filter_novel=false")
    module = both[stage]
    loader = module.train_dataloader()
    chosen, where = [], []
    for index in range(len(both[1].train_ids)):
        sample = loader.dataset[index]
        labels = shrink(truth(trees, module.dataset, sample.query_id if stage == 0 else sample.id))
        novel = np.isin(labels, module.class_split.novel)
        if novel.any():
            chosen.append(sample)
            where.append(torch.from_numpy(novel))
    assert len(chosen) > 5
    return loader.collate_fn(chosen), torch.stack(where)


def test_the_losses_of_stage_2_push_novel_pixels_towards_background(compose_config, trees, tmp_path):
    batch, novel = novel_batch(compose_config, trees, tmp_path, 0)
    shape = (len(novel), 2, SIDE, SIDE)
    final, meta = (torch.randn(shape, generator=torch.Generator().manual_seed(i)).requires_grad_() for i in (0, 1))
    finest = torch.randn(len(novel), SIDE, SIDE, generator=torch.Generator().manual_seed(2)).requires_grad_()
    output = Segmentation(final, (SIDE, SIDE), auxiliary={"meta": meta}, maps={"correlation": [finest]})
    loss = HDMNetLoss()(output, batch.query_mask)["loss"]
    loss.backward()
    for logits in (final, meta):
        background, foreground = logits.grad.unbind(1)
        assert (foreground[novel] > 0).all()  # descending lowers it
        assert (background[novel] < 0).all()
    has_object = (batch.query_mask == 1).flatten(1).any(1)
    assert (finest.grad[has_object][novel[has_object]] >= 0).all()  # the teacher gives these positions nothing
    assert (finest.grad[batch.query_mask == 1] < 0).any()


def test_the_loss_of_stage_1_pushes_novel_pixels_towards_background(compose_config, trees, tmp_path):
    batch, novel = novel_batch(compose_config, trees, tmp_path, 1)

    class Logits(torch.nn.Module):
        num_base = 15

        def forward(self, image):
            self.out = torch.randn(len(image), 16, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
            return self.out.requires_grad_()

    model = Logits()
    task = BaseLearnerTask(model=model, optimiser=BaseOptimiserSettings())
    task.log = lambda *_, **__: None
    task.training_step(batch, 0).backward()
    gradient = model.out.grad.movedim(1, -1)[novel]  # (P, 16)
    assert (gradient[:, 0] < 0).all()
    assert (gradient[:, 1:] > 0).all()


# ------------------------------------------------------------------------------------------------- lists that overlap


@pytest.mark.long
@pytest.mark.parametrize("dataset", ["pascal", "coco", "folder"])
def test_lists_that_share_pictures_are_refused_before_any_training(trees, tmp_path, dataset):
    train, val = tmp_path / "train.txt", tmp_path / "val.txt"
    if dataset == "folder":
        ids = sorted(trees["content"])
        place = f"dataset.root={trees['root'] / 'index'}"
    elif dataset == "pascal":
        ids = sorted(path.stem for path in (trees["pascal"] / "SegmentationClass").glob("*.png"))
        place = f"paths.data_dir={trees['pascal'].parent}"
    else:
        ids = sorted(f"train2014/{path.stem}" for path in (trees["coco"] / "masks" / "train2014").glob("*.png"))
        place = f"paths.data_dir={trees['coco'].parent}"
    train.write_text("\n".join(ids[:20]))
    val.write_text("\n".join(ids[16:]))
    lists = (f"dataset.train_list={train}", f"dataset.val_list={val}")
    answer = call("train", tmp_path / "out", *WORDS[dataset], *lists, place)
    assert answer.refusal() == (
        f"4 ids are in the train list and in the val list: {ids[16]!r}, {ids[17]!r}, {ids[18]!r} and 1 more: "
        "take them off one of them"
    )


def test_any_data_sets_training_pictures_that_are_tested_are_refused():
    class Careless(MemoryDataset):
        def ids(self, split):
            return [f"train{number}" for number in (range(40) if split == "train" else range(16, 48))]

    with pytest.raises(ValueError, match=r"ids are in the train list and in the val list: 'train\d+', "):
        few_shot(Careless(), shot=1, filter_novel=False)
    # The filter keeps every picture with a novel pixel out of training, so that none can be shared.
    module = few_shot(Careless(), shot=1, allow_repeats=True)
    assert isinstance(module, FewShotDataModule)
    assert not {*module.train_manifest.view.ids} & {*module.val_manifest.view.ids}


def test_few_shared_ids_are_all_named():
    with pytest.raises(
        ValueError, match=r"^1 id is in the train list and in the val list: 'b': take it off one of them$"
    ):
        refuse_shared_ids(["a", "b"], ["b", "c"])
    refuse_shared_ids(["a"], ["b"])
