from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from lightning.fabric.utilities import move_data_to_device

from hdmnet.data.datamodules.base import default_num_workers
from hdmnet.data.datamodules.few_shot import FewShotDataModule
from hdmnet.data.datasets.base import label_table
from hdmnet.data.episodes.encode_once import FeatureBytes
from hdmnet.data.normalise import normalise
from hdmnet.data.transforms import build_augment
from hdmnet.data.types import Episode, collate_episodes, collate_segmentation
from tests.helpers.datasets import MEAN, STD, MemoryDataset, base_learner, few_shot, on_rank


class SamePicture(MemoryDataset):
    """Every training picture is the same one, so that only the augmentation can tell samples apart."""

    def read_mask(self, image_id):
        return super().read_mask("train0" if "train" in image_id else image_id)

    def read_image(self, image_id):
        return super().read_image("train0" if "train" in image_id else image_id)


class UnevenDataset(MemoryDataset):
    """A mask of another size than its picture, noticed only when both are read."""

    def read_image(self, image_id):
        return super().read_image(image_id)[1:]


def epochs_of(module, num_epochs=2):
    """All batches of some training epochs, walked as Lightning does."""
    loader = module.train_dataloader()
    batches = []
    for epoch in range(num_epochs):
        loader.sampler.set_epoch(epoch)
        batches.append(list(loader))
    return batches


def same(one, two):
    """Whether two batches are equal bit for bit, in every field."""

    def equal(a, b):
        if isinstance(a, list):
            return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
        return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b

    return all(equal(getattr(one, f.name), getattr(two, f.name)) for f in dataclasses.fields(one))


def test_training_episode_has_the_documented_shapes_and_values():
    module = few_shot()
    assert (module.class_split.test, module.novel_names, module.num_base) == ((3, 4), ("c", "d"), 6)
    batch = next(iter(module.train_dataloader()))
    assert batch.query_image.shape == (4, 3, 32, 40)
    assert batch.query_mask.shape == (4, 32, 40)
    assert batch.support_images.shape == (4, 2, 3, 32, 40)
    assert batch.support_masks.shape == (4, 2, 32, 40)
    assert batch.query_image.dtype == batch.query_mask.dtype == batch.support_masks.dtype == torch.uint8
    assert batch.class_index.dtype == batch.index.dtype == torch.int64
    assert batch.index.tolist() == [0, 1, 2, 3]
    assert batch.query_mask_original is None
    for item in range(4):
        assert set(batch.query_mask[item].unique().tolist()) <= {0, 1, 255}
        assert (batch.query_mask[item] == 1).any()
        assert batch.query_id[item] not in batch.support_ids[item]
        assert len(set(batch.support_ids[item])) == 2
        assert (batch.support_masks[item] == 1).flatten(1).any(1).all()


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker")  # on purpose, on few cores too
@pytest.mark.parametrize("stage", ["few_shot", "base_learner"])
def test_batches_are_the_same_for_any_number_of_workers(stage):
    make = {
        "few_shot": lambda workers: few_shot(augment="paper", num_workers=workers),
        "base_learner": lambda workers: base_learner(num_workers=workers, base_samples_per_epoch=12),
    }[stage]
    expected = epochs_of(make(0))
    for workers in (1, 3):
        state = torch.get_rng_state()
        found = epochs_of(make(workers))
        assert torch.equal(state, torch.get_rng_state())  # else dropout would depend on the workers
        assert [len(epoch) for epoch in found] == [len(epoch) for epoch in expected]
        for one, two in zip(expected[0] + expected[1], found[0] + found[1], strict=True):
            assert same(one, two)


def test_workers_epochs_roles_and_seeds_augment_differently():
    module = few_shot(SamePicture(), batch_size=1, num_workers=2, episodes_per_epoch=4)
    batches = [batch for epoch in epochs_of(module) for batch in epoch]
    images = [image for batch in batches for image in (batch.query_image[0], *batch.support_images[0])]
    assert len(images) == 24  # 2 epochs, 4 episodes, query and 2 supports each
    # Two small pictures may by chance be scaled to the same size and not rotated; a shared seed would leave 12 at most.
    assert len({image.numpy().tobytes() for image in images}) >= 20
    other = next(iter(few_shot(SamePicture(), batch_size=1, seed=1).train_dataloader()))
    assert not torch.equal(other.query_image[0], images[0])


def test_ranks_share_an_epoch_out():
    whole = epochs_of(few_shot(batch_size=1))
    for rank in range(3):
        parts = epochs_of(on_rank(few_shot(batch_size=1), rank, 3))
        for epoch in range(2):
            assert [int(batch.index) for batch in parts[epoch]] == [10 * epoch + rank + 3 * step for step in range(3)]
            assert all(same(batch, whole[epoch][rank + 3 * step]) for step, batch in enumerate(parts[epoch]))
    seen = [on_rank(few_shot(), rank, 2).val_dataloader() for rank in range(2)]
    indices = [[index for batch in loader for index in batch.index.tolist()] for loader in seen]
    assert indices == [[0, 2, 4, 6], [1, 3, 5]]


def test_training_filters_novel_images_and_counts_an_epoch_by_them():
    masks = [MemoryDataset().read_mask(one) for one in MemoryDataset().ids("train")]
    clean = sum(not np.isin(mask, (3, 4)).any() for mask in masks)
    based = sum(np.isin(mask, (1, 2, 5, 6, 7, 8)).any() for mask in masks)
    assert 0 < clean < based
    assert few_shot(episodes_per_epoch=None).episodes_per_epoch == clean
    assert few_shot(episodes_per_epoch=None, filter_novel=False).episodes_per_epoch == based


def test_classes_with_too_few_images_are_left_out_and_named_once(caplog):
    class Rare(MemoryDataset):
        """In one picture of each list class c (novel in fold 1) and class g (base) stand alone; none holds class h."""

        def read_mask(self, image_id):
            mask = super().read_mask(image_id)
            mask[np.isin(mask, (3, 7, 8))] = 0
            if image_id in ("train5", "val5"):
                mask[25:35, 2:12] = 3 if image_id == "val5" else 7
            return mask

    module = few_shot(Rare(), shot=1, setup=None)
    with caplog.at_level("WARNING"):
        module.setup()
    assert module.too_few_images() == {"train": {"g": 1, "h": 0}, "val": {"c": 1}}
    told = [record.message for record in caplog.records]
    assert [line.partition(" and are left out of the episodes: ")[2] for line in told] == [
        "g (1), h (0); add images to have them",
        "c (1); add images to have them",
    ]
    assert {spec.class_value for spec in module.test_manifests[0]} == {4}
    assert {module.train_manifest[index].class_value for index in range(200)} == {1, 2, 5, 6}
    assert module.num_base == 6  # class_index and the base learner's labels stay
    assert module.result_facts()["too_few_images"] == module.too_few_images()


def test_where_every_image_holds_every_class_the_filter_leaves_none_and_says_what_to_do():
    class Street(MemoryDataset):
        def read_mask(self, image_id):
            mask = np.full((40, 50), 255, np.uint8)
            mask[4:36, 1:49] = np.repeat(np.arange(1, 9, dtype=np.uint8), 6)
            return mask

    message = (
        r"^all 48 training images of memory fold 1 hold a novel class \(c, d\), and dataset.filter_novel=true leaves "
        "such images out: set dataset.novel_pixels=ignore"
    )
    for make in (few_shot, base_learner):
        with pytest.raises(ValueError, match=message):
            make(Street())
    module = few_shot(Street(), novel_pixels="ignore", augment="none", image_size=(40, 50))
    episode = module.train_dataloader().dataset[0]
    for mask in (episode.query_mask, *episode.support_masks):
        assert (mask[20, 13:25] == 255).all()
        assert mask[20, 1:13].unique().tolist() in ([0], [0, 1])


def test_evaluation_resizes_to_the_square_and_keeps_the_original_mask():
    module = few_shot(setup="test")
    episodes = [e for batch in module.test_dataloader() for e in zip(*fields_of(batch), strict=True)]
    assert [(int(e["seed_index"]), int(e["index"])) for e in map(dict, episodes)] == [
        (seed, index) for seed in range(3) for index in range(5)
    ]
    dataset = MemoryDataset()
    for episode in map(dict, episodes):
        value = module.class_split.test[int(episode["class_index"])]
        mask = dataset.read_mask(episode["query_id"])
        binary = np.where(mask == 255, 255, mask == value)
        assert np.array_equal(episode["query_mask_original"], binary)
        rows = np.arange(32) * mask.shape[0] // 32  # nearest, as OpenCV: the floor of the scaled position
        columns = np.arange(40) * mask.shape[1] // 40
        assert np.array_equal(episode["query_mask"], binary[np.ix_(rows, columns)])
        assert (episode["support_masks"] == 1).flatten(1).any(1).all()


def fields_of(batch):
    """For each field that is there its name with each item's value."""
    for field in dataclasses.fields(batch):
        values = getattr(batch, field.name)
        if values is not None:
            yield [(field.name, value) for value in values]


def test_evaluation_does_not_depend_on_batch_size_workers_or_the_runs_seed():
    reference = few_shot(setup="test", eval_batch_size=1)
    other = few_shot(setup="test", eval_batch_size=4, num_workers=2, seed=9, batch_size=3)
    singles = list(reference.test_dataloader())
    batches = list(other.test_dataloader())
    assert [len(batch.query_id) for batch in batches] == [4, 4, 4, 3]
    items = [image for batch in batches for image in batch.support_images]
    assert all(torch.equal(single.support_images[0], item) for single, item in zip(singles, items, strict=True))
    seeds = [manifest.sha256() for manifest in reference.test_manifests]
    assert seeds == [manifest.sha256() for manifest in other.test_manifests]
    assert len({*seeds, few_shot().val_manifest.sha256()}) == 4


def test_support_mask_ones_changes_only_evaluation_supports():
    given, ones = (few_shot(setup=None, support_mask=mode) for mode in ("given", "ones"))
    for module in (given, ones):
        module.setup()
    one, two = next(iter(given.test_dataloader())), next(iter(ones.test_dataloader()))
    assert (two.support_masks == 1).all()
    assert not (one.support_masks == 1).all()
    assert same(dataclasses.replace(two, support_masks=one.support_masks), one)
    assert same(next(iter(given.train_dataloader())), next(iter(ones.train_dataloader())))


def test_images_are_normalised_after_the_transfer():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    found = normalise(images, MEAN, STD).flatten()
    expected = [-0.485 / 0.229, (0.2 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    assert found.tolist() == pytest.approx(expected, rel=1e-5)
    module = few_shot()
    batch = next(iter(module.train_dataloader()))
    done = module.on_after_batch_transfer(batch, 0)
    assert done.query_image.dtype == done.support_images.dtype == torch.float32
    assert torch.equal(done.support_images[1], normalise(batch.support_images[1], MEAN, STD))
    assert done.query_mask is batch.query_mask
    assert batch.query_image.dtype == torch.uint8


def test_batches_move_to_a_device_with_all_their_tensors():
    for batch in (next(iter(few_shot().train_dataloader())), next(iter(few_shot().val_dataloader()))):
        moved = move_data_to_device(batch, torch.device("meta"))
        tensors = [value for value in vars(moved).values() if isinstance(value, torch.Tensor)]
        tensors += moved.query_mask_original or []
        assert all(tensor.is_meta for tensor in tensors)
        assert len(tensors) == (7 if batch.query_mask_original is None else 11)
        assert (moved.query_id, moved.support_ids) == (batch.query_id, batch.support_ids)


def test_what_the_host_reads_stays_on_the_cpu():
    data = few_shot()
    batch = next(iter(data.train_dataloader()))
    for keeps in (False, True):
        data.keeps_masks = keeps
        moved = data.transfer_batch_to_device(batch, torch.device("meta"), 0)
        on_cpu = {name for name, value in vars(moved).items() if isinstance(value, torch.Tensor) and value.is_cpu}
        assert on_cpu == {"index", "seed_index"} | ({"support_masks"} if keeps else set())
        assert moved.support_ids == batch.support_ids


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs a GPU")
def test_loader_pins_memory():
    batch = next(iter(few_shot().val_dataloader()))
    assert batch.query_image.is_pinned()
    assert batch.query_mask_original[0].is_pinned()


class Recorder(L.LightningModule):
    """Notes the episodes that it is given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.trained, self.validated = [], []

    def training_step(self, batch, batch_idx):
        assert isinstance(batch, Episode)
        assert batch.query_image.dtype == torch.float32
        self.trained += batch.index.tolist()
        return self.weight * batch.query_image.mean()

    def validation_step(self, batch, batch_idx):
        self.validated += batch.index.tolist()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")  # none are wanted here
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # Lightning 2.6.6 with torch 2.15
def test_lightning_walks_new_episodes_each_epoch_and_after_a_resume(tmp_path):
    def fit(epochs, checkpoint=None):
        trainer = L.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            log_every_n_steps=1,
        )
        model = Recorder()
        trainer.fit(model, datamodule=few_shot(setup=None), ckpt_path=checkpoint, weights_only=True)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        return model

    model = fit(2)
    assert model.trained == [*range(8), *range(10, 18)]  # 10 an epoch, batches of 4, the tail dropped
    assert model.validated == [*range(7)] * 2
    assert fit(3, tmp_path / "last.ckpt").trained == [*range(20, 28)]


def test_base_learner_passes_over_all_images_and_hides_novel_classes():
    module = base_learner(batch_size=1)
    first, second = ([sample.id[0] for sample in epoch] for epoch in epochs_of(module))
    assert sorted(first) == sorted(second) == sorted(module.train_ids)
    assert first != second
    assert sorted(first) != first
    loose = base_learner(filter_novel=False, batch_size=8)
    assert len(loose.train_ids) > len(module.train_ids)
    for sample in next(iter(loose.train_dataloader())).mask:
        assert set(sample.unique().tolist()) <= {*range(7), 255}
    normalised = module.on_after_batch_transfer(next(iter(module.train_dataloader())), 0)
    assert normalised.image.dtype == torch.float32


def test_base_learner_on_the_whole_list():
    """As in BAM's release: neither novel classes nor small objects keep an image out, held-out images do."""
    module = base_learner(all_images=True)
    assert module.train_ids == MemoryDataset().ids("train")
    assert set(module.train_ids) > set(base_learner(filter_novel=False).train_ids)
    assert module.digest() != base_learner(filter_novel=False).digest()
    for sample in next(iter(module.train_dataloader())).mask:
        assert set(sample.unique().tolist()) <= {*range(7), 255}
    held_out = base_learner(all_images=True, base_val_share=0.3)
    validated = set(few_shot(base_val_share=0.3).val_manifest.view.ids.tolist())
    assert validated
    assert set(held_out.train_ids) == set(module.train_ids) - validated


def test_base_learner_short_epochs_walk_on_without_repeats():
    module = base_learner(batch_size=1, base_samples_per_epoch=5)
    length = len(module.train_ids)
    seen = [sample.id[0] for epoch in epochs_of(module, length // 5 + 1) for sample in epoch]
    assert sorted(seen[:length]) == sorted(module.train_ids)


def test_base_learner_validates_on_all_images_or_a_fixed_choice():
    batches = list(base_learner(setup="validate").val_dataloader())
    assert [one for batch in batches for one in batch.id] == MemoryDataset().ids("val")
    mask = MemoryDataset().read_mask("val2")
    expected = label_table(8, (1, 2, 5, 6, 7, 8))[mask]
    rows, columns = np.arange(32) * mask.shape[0] // 32, np.arange(32) * mask.shape[1] // 32
    assert (mask == 3).any()
    assert np.array_equal(batches[0].mask[2], expected[np.ix_(rows, columns)])
    some = [base_learner(setup="validate", num_val_samples=6, seed=seed).val_ids for seed in range(2)]
    assert some[0] == some[1]
    assert len(set(some[0])) == 6


def test_only_needed_catalogs_are_built(monkeypatch):
    loaded = []
    module = few_shot(setup=None)
    monkeypatch.setattr(module, "_catalog", loaded.append)
    for stage in ("fit", "validate", "test"):
        module.trainer = SimpleNamespace(state=SimpleNamespace(fn=stage))
        module.prepare_data()
    assert loaded == ["train", "val", "val", "val"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fold": 7}, r"fold=7 .* 0\.\.3"),
        ({"shot": 0}, "shot=0; expected at least 1"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"num_workers": -1}, "num_workers=-1"),
        ({"num_test_seeds": 0}, "num_test_seeds=0"),
        ({"support_mask": "one"}, "support_mask='one'; expected one of given, ones"),
        ({"std": (0.2, 0.0, 0.2)}, "std above 0"),
        ({"shot": 40}, "none of the 2 classes of .* has the 41 images that shot=40 needs"),
    ],
)
def test_wrong_arguments_are_named_before_training(changes, message):
    with pytest.raises(ValueError, match=message):
        few_shot(setup="test", **changes)


def test_mismatches_are_named():
    augment = build_augment("none", image_size=(8, 8), scale=(1, 1), mean=MEAN)
    with pytest.raises(ValueError, match=r"makes \(8, 8\) but image_size is \(32, 40\)"):
        FewShotDataModule(
            MemoryDataset(), fold=0, shot=1, image_size=(32, 40), augment=augment, batch_size=1, mean=MEAN, std=STD,
            cache_dir=None,
        )  # fmt: skip
    with pytest.raises(ValueError, match=r"10 training samples an epoch on 1 process.* fill no batch of 11"):
        few_shot(batch_size=11).train_dataloader()
    with pytest.raises(ValueError, match=r"val.* is 4.x.* but its picture is .* expected the same size"):
        next(iter(few_shot(UnevenDataset(), setup="validate").val_dataloader()))
    with pytest.raises(ValueError, match="base_samples_per_epoch=0"):
        base_learner(base_samples_per_epoch=0)


def test_collation_refuses_nothing_and_mixtures():
    train, val = few_shot().train_dataloader().dataset[0], few_shot().val_dataloader().dataset[0]
    with pytest.raises(ValueError, match="1 of 2 episodes hold query_mask_original"):
        collate_episodes([train, val])
    for collate in (collate_episodes, collate_segmentation):
        with pytest.raises(ValueError, match="empty list"):
            collate([])


def test_default_number_of_workers_leaves_a_core_to_each_process(monkeypatch):
    for cores, processes, expected in ((1, 1, 0), (2, 1, 1), (16, 1, 8), (16, 4, 3), (2, 4, 0)):
        monkeypatch.setattr("hdmnet.data.datamodules.base.available_cpus", lambda cores=cores: cores)
        assert default_num_workers(processes) == expected


# ------------------------------------------------------------------------------------- validation on base classes


def test_base_classes_are_validated_on_training_pictures_that_nothing_is_trained_on():
    plain, module = few_shot(), few_shot(base_val_share=0.3)
    assert plain.val_names == plain.novel_names
    assert (module.val_names, module.val_classes) == (module.base_names, module.class_split.train)
    trained, validated = set(module.train_manifest.view.ids.tolist()), set(module.val_manifest.view.ids.tolist())
    everything = set(plain.train_manifest.view.ids.tolist())
    assert trained | validated == everything
    assert not trained & validated
    assert 0.1 * len(everything) < len(validated) < 0.3 * len(everything) + 1
    for value in module.class_split.train:  # of no class more than its share
        count = len(plain.train_manifest.view.images_of(value))
        assert len(module.train_manifest.view.images_of(value)) >= 0.7 * count
    assert module.val_manifest.header["num_episodes"] == 7
    batch = next(iter(module.val_dataloader()))
    for item in range(len(batch.query_mask)):
        value = module.class_split.train[batch.class_index[item]]
        mask = module.dataset.read_class_mask(batch.query_id[item], value)
        assert (batch.query_mask_original[item].numpy() == mask).all()
        assert {batch.query_id[item], *batch.support_ids[item]} <= validated
    # The same whatever the run's seed, and the tests are those of other runs.
    other = few_shot(base_val_share=0.3, seed=5)
    assert other.val_manifest.sha256() == module.val_manifest.sha256()
    for one in (plain, module):
        one.setup("test")
    assert [m.sha256() for m in module.test_manifests] == [m.sha256() for m in plain.test_manifests]


def test_both_stages_leave_the_same_pictures_out():
    module, stage1 = few_shot(base_val_share=0.3), base_learner(base_val_share=0.3)
    assert stage1.train_ids == module.train_manifest.view.ids.tolist()
    assert stage1.digest() != base_learner().digest()


def test_reused_features_are_those_of_the_training_pictures():
    module = few_shot(base_val_share=0.3, reuse_memory_gb=1)
    module.measure_features = lambda: FeatureBytes(100, 100, 100)
    keys = {key.image_id for batch in module.val_dataloader() for key in (*batch.new_queries, *batch.new_supports)}
    assert keys <= set(module.val_manifest.view.ids.tolist())


def test_a_share_that_leaves_no_two_pictures_of_a_class():
    with pytest.raises(ValueError, match=r"^selection=base: 0\.01 of the training images, held out to validate on"):
        few_shot(base_val_share=0.01)


def test_whether_the_features_of_a_test_fit_into_the_memory():
    module = few_shot(num_test_episodes=9, num_test_seeds=2, reuse_memory_gb=1)
    module.setup("test")
    specs = [spec for manifest in module.test_manifests for spec in manifest]
    pairs = {(one, spec.class_value) for spec in specs for one in spec.support_ids}
    needed = 100 * len({spec.query_id for spec in specs}) + 300 * len(pairs)
    for memory, fits in ((needed, True), (needed - 1, False)):
        module.reuse_memory_gb = memory / 1e9
        assert module.fits(lambda: FeatureBytes(100, 300, 300)) is fits
    module.measure_features = lambda: FeatureBytes(100, 200, 300)
    assert module.episode_bytes() == 100 + 300 * module.shot


@pytest.mark.parametrize("augment", ["official", "paper", "crop", "none"])
def test_padding_of_a_training_query_is_told_apart_from_its_ignored_labels(augment):
    """The pictures' own 255 is a stripe at the top; what is told changes nothing else."""
    size = (48, 60)  # larger than most pictures
    plain, module = (few_shot(augment=augment, image_size=size) for _ in range(2))
    module.marks_padding = True
    padded = own = 0
    for one, two in zip(plain.train_dataloader(), module.train_dataloader(), strict=True):
        assert one.query_padding is None
        assert same(one, dataclasses.replace(two, query_padding=None))
        assert two.query_padding.dtype == torch.uint8
        assert two.query_padding.shape == two.query_mask.shape
        ignored = two.query_mask == 255
        assert (ignored | (two.query_padding == 0)).all()
        padded += int((two.query_padding == 255).sum())
        own += int((ignored & (two.query_padding == 0)).sum())
    assert own
    assert (padded > 0) is (augment != "none")
