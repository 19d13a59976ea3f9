"""What lies between a config and a run: how long epochs are, which base learner and checkpoint are taken."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf, open_dict

from hdmnet.config.paths import make_paths_absolute
from hdmnet.config.values import image_size
from hdmnet.data.episodes.manifest import EpisodeSpec
from hdmnet.run import pipeline, stage1
from hdmnet.run.build import build_dataset, build_few_shot_data, epoch_length, num_processes
from tests.helpers.commands import SHAPES, call, load, run, same_weights


def config(compose_config, tmp_path, *words):
    cfg = compose_config("train", *SHAPES, f"paths.output_dir={tmp_path}", *words)
    make_paths_absolute(cfg, tmp_path / "run")
    return cfg


# ------------------------------------------------------------------------------------------------------------ epochs


@pytest.mark.parametrize(
    ("samples", "batch_size", "max_steps", "processes", "expected"),
    [
        (3000, 8, -1, 1, 3000),  # no limit of steps
        (None, 8, 500, 1, None),
        (3000, 8, 375, 1, 3000),  # one epoch
        (3000, 8, 750, 1, 3000),  # two
        (3000, 8, 4, 1, 32),  # less than an epoch: it ends with the training
        (3000, 8, 4, 2, 64),
        (3000, 8, 500, 1, 2000),  # 375 and 125 become 250 twice
        (3000, 8, 501, 1, 2000),  # the last step is not worth an epoch
    ],
)
def test_training_ends_with_an_epoch(samples, batch_size, max_steps, processes, expected):
    cfg = OmegaConf.create({"trainer": {"devices": processes, "num_nodes": 1, "accumulate_grad_batches": 1}})
    assert epoch_length(cfg, samples, batch_size, max_steps) == expected


@pytest.mark.parametrize(("samples", "processes"), [(4, 1), (15, 2)])
def test_an_epoch_that_fills_no_batch_is_refused_before_stage_1(samples, processes):
    cfg = OmegaConf.create({"trainer": {"devices": processes, "num_nodes": 1, "accumulate_grad_batches": 1}})
    with pytest.raises(ValueError, match=rf"^{samples} training samples an epoch on {processes} process.* of 8; lower"):
        epoch_length(cfg, samples, 8, -1)


def test_epochs_count_optimiser_steps():
    cfg = OmegaConf.create({"trainer": {"devices": 1, "num_nodes": 1, "accumulate_grad_batches": 4}})
    assert epoch_length(cfg, 3000, 8, 2) == 64


@pytest.mark.parametrize(
    ("devices", "nodes", "gpus", "accelerator", "expected"),
    [
        (1, 1, 0, "auto", 1),
        (2, 3, 0, "cpu", 6),
        ("4", 1, 4, "gpu", 4),
        ([0, 2], 1, 4, "gpu", 2),
        ("1,3", 2, 4, "gpu", 4),
        ("auto", 2, 0, "auto", 2),
        ("auto", 1, 4, "gpu", 4),
        ("auto", 1, 4, "cpu", 1),
        (-1, 1, 4, "gpu", 4),
    ],
)
def test_number_of_processes(monkeypatch, devices, nodes, gpus, accelerator, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    cfg = OmegaConf.create({"trainer": {"devices": devices, "num_nodes": nodes, "accelerator": accelerator}})
    assert num_processes(cfg) == expected


# -------------------------------------------------------------------------------------------------- the base learner


@pytest.mark.parametrize(
    ("size", "part"), [("129", (97, 97)), ("65", (49, 49)), ("[257,129]", (193, 97)), ("5", (9, 9))]
)
def test_on_shapes_stage_1_crops_three_quarters(compose_config, size, part):
    assert image_size(compose_config("train", f"dataset.image_size={size}").dataset.base_image_size) == part


@pytest.mark.parametrize(("augment", "seen"), [("crop", (65, 65)), ("flip", (49, 49))])
def test_who_learns_from_crops_is_validated_on_whole_pictures(compose_config, tmp_path, augment, seen):
    words = ("dataset.image_size=65", "dataset.base_image_size=49", f"optim.base.augment={augment}")
    cfg = config(compose_config, tmp_path, *words)
    data = stage1.build_base_data(cfg, build_dataset(cfg))
    data.setup("fit")
    assert next(iter(data.train_dataloader())).image.shape[2:] == (49, 49)
    assert next(iter(data.val_dataloader())).image.shape[2:] == seen


def kept_at(compose_config, tmp_path, word, data):
    """The file of a changed config; `data` are those of the config without the change."""
    cfg = config(compose_config, tmp_path, word)
    if word.startswith(("dataset.", "fold", "seed", "optim.base")):
        data = stage1.build_base_data(cfg, build_dataset(cfg))
        data.setup("fit")
    return stage1.base_learner_path(cfg, data)


@pytest.mark.long
def test_the_kept_base_learner_is_that_of_the_same_settings_only(compose_config, tmp_path):
    cfg = config(compose_config, tmp_path)
    data = stage1.build_base_data(cfg, build_dataset(cfg))
    data.setup("fit")
    first = stage1.base_learner_path(cfg, data)
    assert first.parent == tmp_path / "cache" / "base_learners"
    assert first.name.startswith("shapes_fold0_resnet_narrow_seed0_")
    # Stage 2, the test and the machine do not matter …
    for word in (
        *("shot=5", "optim.lr=1", "loss.temperature=2", "model.num_stages=2", "num_workers=3", "batch_size=3"),
        *(
            "dataset.num_test_episodes=9",
            "dataset.episodes_per_epoch=8",
            "dataset.controls=true",
            "trainer.accelerator=auto",
        ),
    ):
        assert kept_at(compose_config, tmp_path, word, data) == first, word
    # … all that stage 1 depends on does.
    others = {
        kept_at(compose_config, tmp_path, word, data)
        for word in (
            *("fold=1", "seed=1", "optim.base.lr=1", "optim.base.max_steps=5", "trainer.max_steps=2"),
            *("dataset.num_train=39", "dataset.generator_seed=1", "dataset.filter_novel=false"),
            *(
                "dataset.base_image_size=57",
                "backbone.feature_channels=32",
                "backbone.dilation=null",
                "trainer.limit_train_batches=2",
            ),
            *("trainer.fast_dev_run=true", "trainer.precision=bf16-mixed", "optim.base.augment=bam"),
            "optim.base.images=all",
        )
    }
    assert len(others) == 16
    assert first not in others
    # One that was trained before there was a key is that of its default.
    OmegaConf.set_struct(cfg, False)
    del cfg.optim.base["images"]
    assert stage1.base_learner_path(cfg, data) == first


def test_other_data_under_the_same_name_is_told_apart(compose_config, tmp_path):
    cfg = config(compose_config, tmp_path)
    data = stage1.build_base_data(cfg, build_dataset(cfg))
    data.setup("fit")
    first = stage1.base_learner_path(cfg, data)
    data._catalogs["train"].area[0] += 1
    assert stage1.base_learner_path(cfg, data) != first


@pytest.mark.long
def test_a_second_run_takes_the_base_learner_that_the_first_has_trained(first_run, compose_config, tmp_path):
    output = first_run.folder.parents[2]
    again = run("train", output, *SHAPES, "shot=2", "trainer.limit_test_batches=1")
    assert "training it (stage 1)" not in again.out
    (kept,) = (output / "cache" / "base_learners").glob("*.pt")
    assert f"base learner: {kept}" in again.out
    assert same_weights(kept, first_run.folder / "base_learner.pt")
    trunk = load(again.folder / "checkpoints" / "last.ckpt")["state_dict"]
    for key, value in load(kept)["state_dict"].items():
        assert torch.equal(trunk[f"model.trunk.base_learner.{key}"], value), key


@pytest.mark.long
def test_a_given_base_learner_is_used(first_run, tmp_path):
    given = first_run.folder / "base_learner.pt"
    answer = run("train", tmp_path, *SHAPES, f"base_ckpt={given}", "seed=3", "trainer.limit_test_batches=1")
    assert "training it (stage 1)" not in answer.out
    assert not (tmp_path / "cache" / "base_learners").exists()
    trunk = load(answer.folder / "checkpoints" / "last.ckpt")["state_dict"]
    key = "backbone.parts.0.0.weight"
    assert torch.equal(trunk[f"model.trunk.base_learner.{key}"], load(given)["state_dict"][key])


@pytest.mark.long
def test_a_base_learner_that_saw_the_novel_classes_is_refused(first_run, tmp_path):
    line = call("train", tmp_path, *SHAPES, "fold=1", f"base_ckpt={first_run.folder / 'base_learner.pt'}").refusal()
    assert "was trained with fold=0, this run has fold=1" in line


# ------------------------------------------------------------------------------------------------- which checkpoint


@pytest.mark.long
def test_the_last_weights_are_tested_when_asked_for(start, tmp_path):
    answer = run("train", tmp_path, *SHAPES, f"ckpt={start}", "selection=last", "trainer.limit_test_batches=1")
    result = answer.result
    assert result["selection"] == "last"
    assert result["checkpoint"] == str(answer.folder / "checkpoints" / "last.ckpt")
    assert "LAST" not in answer.out


@pytest.mark.long
def test_lightnings_trial_run_has_no_checkpoint_and_tests_what_it_has(start, tmp_path):
    answer = run("train", tmp_path, *SHAPES, f"ckpt={start}", "trainer.fast_dev_run=true")
    assert answer.result["checkpoint"] is None
    assert answer.result["test"]["num_episodes"] == 2  # one batch


@pytest.mark.long
def test_going_on_from_a_run_that_saw_the_novel_classes_is_refused(start, tmp_path):
    line = call("train", tmp_path, *SHAPES, "fold=1", f"ckpt={start}").refusal()
    assert line.startswith("fold=1: its novel classes were base classes of ckpt=")


def test_a_run_that_would_keep_no_checkpoint_is_refused(start, tmp_path):
    line = call("train", tmp_path, *SHAPES, f"ckpt={start}", "trainer.enable_checkpointing=false").refusal()
    assert "enable_checkpointing=False" in line


# ---------------------------------------------------------------------------------------------------------- controls


class Pictures:
    """Two pictures of two novel classes, 3 and 4, and base class 1; 255 is ignored."""

    def class_areas(self, image_id):
        return {"a": {1: 1, 3: 2}, "b": {3: 1, 4: 1}}[image_id]

    def read_class_mask(self, image_id, class_value):
        mask = np.array({"a": [[3, 3, 1, 0]], "b": [[3, 4, 255, 0]]}[image_id])
        return np.where(mask == 255, 255, mask == class_value).astype(np.uint8)


def test_every_object_called_foreground():
    asked = [("a", 3), ("b", 3), ("b", 4)]
    episodes = [EpisodeSpec(index, query, value, ("s",)) for index, (query, value) in enumerate(asked)]
    data = SimpleNamespace(
        dataset=Pictures(),
        novel_names=("three", "four"),
        class_split=SimpleNamespace(test=(3, 4)),
        test_manifests=[episodes],
    )
    # Class 3: 2 of 3 pixels in a, 1 of 2 in b; class 4: 1 of 2.
    assert pipeline.every_object_foreground(data) == pytest.approx((3 / 5 + 1 / 2) / 2)


def test_it_is_the_same_on_real_episodes(compose_config, tmp_path):
    cfg = config(compose_config, tmp_path)
    data = build_few_shot_data(cfg, build_dataset(cfg))
    data.setup("test")
    hits, covered = np.zeros(5), np.zeros(5)
    for episode in data.test_manifests[0]:
        mask = data.dataset.read_mask(episode.query_id)
        row = data.class_split.test.index(episode.class_value)
        hits[row] += (mask == episode.class_value).sum()
        covered[row] += ((mask > 0) & (mask < 255)).sum()
    seen = covered > 0
    assert pipeline.every_object_foreground(data) == pytest.approx((hits[seen] / covered[seen]).mean())


def test_timer_adds_up():
    timer = pipeline.Timer()
    for _ in range(2):
        with timer("a"):
            pass
    assert list(timer.seconds) == ["a"]
    assert timer.seconds["a"] >= 0


@pytest.mark.long
def test_a_run_needs_no_progress_bar(start, tmp_path):
    answer = run(
        "evaluate", tmp_path, f"ckpt={start}", "trainer=cpu", "num_workers=0", "trainer.enable_progress_bar=false"
    )
    assert "it/s" not in answer.out
    assert Path(answer.folder, "result.json").is_file()


@pytest.mark.long
def test_a_data_set_takes_its_rules(compose_config, tmp_path):
    cfg = config(compose_config, tmp_path, "dataset.min_area=77")
    assert build_dataset(cfg).min_area == 77
    with open_dict(cfg):
        cfg.dataset.min_area = None
    assert build_dataset(cfg).min_area == 65 * 65 // 100


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.*could not find the monitored key")  # Lightning's words for the same
def test_that_no_validation_ran_is_said_where_the_best_was_asked_for(start, tmp_path):
    words = ("trainer.limit_val_batches=0", "dataset.num_test_seeds=1")
    answer = run("train", tmp_path, *SHAPES, f"ckpt={start}", *words)
    assert "selection=best, but there is no best checkpoint, as no validation ran: the LAST one is tested" in answer.out
    assert answer.result["checkpoint"].endswith("last.ckpt")
    assert answer.result["val_miou"] is None


# ------------------------------------------------------------------------------------- selection on base classes


@pytest.mark.long
def test_a_run_that_is_selected_on_base_classes_looks_at_no_novel_one_before_its_test(tmp_path):
    words = ("selection=base", "dataset.base_val_share=0.5", "dataset.num_train=80", "model.ensemble=true")
    answer = run("train", tmp_path, *SHAPES, *words, "trainer.limit_test_batches=2")
    result = answer.result
    assert result["selection"] == "base"
    assert result["checkpoint"].endswith("best.ckpt")
    assert (
        result["val_miou"]
        == load(answer.folder / "checkpoints" / "best.ckpt")["callbacks"]["RunCheckpoint"]["best_model_score"]
    )
    cfg = OmegaConf.create(result["config"])
    data = build_few_shot_data(cfg, build_dataset(cfg))
    data.setup("fit")
    assert set(data.val_names).isdisjoint(data.novel_names)
    assert not set(data.val_manifest.view.ids) & set(data.train_manifest.view.ids)
