from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from hdmnet.config.checks import validate
from hdmnet.config.instantiate import instantiate
from hdmnet.config.merge import merge_with_checkpoint
from hdmnet.config.paths import conf_dir, make_paths_absolute
from hdmnet.config.schemas import EvaluateSchema, TrainSchema
from hdmnet.config.values import image_size, to_stored
from hdmnet.run.build import build_dataset, common_keys

GROUPS = sorted(folder.name for folder in conf_dir().iterdir() if folder.is_dir() and folder.name != "local")
OPTIONS = [
    f"{group}={file.stem}"
    for group in GROUPS
    for file in sorted((conf_dir() / group).glob("*.yaml"))
    if not file.stem.startswith("_")
]


def targets_in(node):
    if isinstance(node, dict):
        if "_target_" in node:
            yield node
        for value in node.values():
            yield from targets_in(value)


# ------------------------------------------------------------------------------------------------------ composition


@pytest.mark.long
@pytest.mark.parametrize(
    "file", sorted(conf_dir().glob("*/*.yaml")), ids=lambda file: f"{file.parent.name}-{file.stem}"
)
def test_every_target_takes_the_keys_of_its_node(file):
    for node in targets_in(OmegaConf.to_container(OmegaConf.load(file))):
        module, _, name = node["_target_"].rpartition(".")
        function = getattr(importlib.import_module(module), name)
        of_the_run = {"backbone": {"mean", "std", "feature_channels"}, "model": {"name", "encoder", "trunk", "augment"}}
        others = (of_the_run | {"dataset": common_keys() | {"defaults"}}).get(file.parent.name, ())
        arguments = {key: value for key, value in node.items() if key[0] != "_" and key not in others}
        inspect.signature(function).bind_partial(**arguments)


def test_schemas_and_files_agree_on_the_top_level_keys(compose_config):
    assert set(compose_config("train")) == {field.name for field in dataclasses.fields(TrainSchema)}
    assert set(compose_config("evaluate")) == {field.name for field in dataclasses.fields(EvaluateSchema)}


def test_the_groups_and_options_that_users_rely_on_exist():
    promised = {
        "dataset": {"shapes", "pascal", "coco"},
        "backbone": {
            "resnet_narrow",
            "resnet18",
            "resnet50",
            "resnet101",
            "vgg16",
            "vgg16_plain",
            "resnet50_v2",
            "mobilenet_v2",
        },
        "augment": {"official", "paper", "flip", "none"},
        "trainer": {"auto", "cpu", "gpu", "ddp", "ddp_cpu"},
        "logger": {"csv", "wandb"},
        "ablation": {"no_distillation"},
    }
    for group, options in promised.items():
        assert {f"{group}={option}" for option in options} <= set(OPTIONS)


@pytest.mark.parametrize(
    ("dataset", "backbone", "augment", "batch_size", "lr_base", "base_batch", "epochs", "base_epochs"),
    [
        ("pascal", "resnet50", "official", 4, 2.5e-4, 12, 200, 100),
        ("coco", "resnet50", "official", 6, 2.5e-4, 12, 50, 20),
    ],
)
def test_a_dataset_brings_the_settings_of_the_release(
    compose_config, dataset, backbone, augment, batch_size, lr_base, base_batch, epochs, base_epochs
):
    cfg = compose_config("train", f"dataset={dataset}")
    assert cfg.backbone.name == backbone
    assert cfg.augment.name == augment
    assert cfg.batch_size == batch_size
    assert cfg.optim.lr == 1e-4
    assert cfg.optim.weight_decay == 0.01
    assert (cfg.optim.base.lr, cfg.optim.base.batch_size) == (lr_base, base_batch)
    assert (cfg.trainer.max_epochs, cfg.optim.base.max_epochs) == (epochs, base_epochs)
    assert cfg.trainer.max_steps == -1


def test_the_sizes_and_episode_counts_of_the_paper(compose_config):
    pascal, coco = (compose_config("train", f"dataset={name}").dataset for name in ("pascal", "coco"))
    assert (pascal.image_size, coco.image_size) == (473, 633)
    assert (pascal.num_test_episodes, coco.num_test_episodes) == (1000, 10000)
    assert (pascal.split_rule, coco.split_rule) == ("contiguous", "interleaved")
    assert (list(pascal.augment_scale), list(coco.augment_scale)) == ([0.9, 1.1], [0.8, 1.25])
    for dataset in (pascal, coco):
        assert (dataset.min_area, dataset.num_folds, dataset.num_val_episodes) == (2048, 4, 1000)
        assert dataset.filter_novel is True
        assert dataset.num_test_seeds == 10


def test_the_command_line_wins_over_what_a_dataset_brings(compose_config):
    words = ("backbone=vgg16", "optim=pfenet_coco", "augment=none", "optim.power=1")
    cfg = compose_config("train", "dataset=pascal", *words)
    assert (cfg.backbone.name, cfg.augment.name) == ("vgg16", "none")
    assert (cfg.batch_size, cfg.optim.lr, cfg.optim.schedule.power) == (8, 5e-3, 1)


def test_a_method_may_need_an_augmentation_and_the_command_line_wins(compose_config):
    words = ("train", "dataset=pascal", "model=correlation")
    assert compose_config(*words).augment.name == "flip"
    assert compose_config(*words, "augment=paper").augment.name == "paper"
    assert compose_config("train", "dataset=pascal").augment.name == "official"


def test_a_data_set_gets_its_own_keys_and_of_the_runs_those_that_it_names(compose_config, tmp_path):
    cfg = compose_config("train", "dataset=pascal", "dataset.root=/voc", "dataset.train_list=mine.txt")
    found = build_dataset(cfg, check=False)
    assert (found.root, found.lists["train"], found.min_area) == (Path("/voc"), "mine.txt", 2048)
    (tmp_path / "cat").mkdir()
    for name in ("a.jpg", "a.png"):
        (tmp_path / "cat" / name).touch()
    cfg = compose_config("train", "dataset=folder", f"dataset.root={tmp_path}", "dataset.name=cats")
    assert build_dataset(cfg, check=False).name == "cats"


def test_trainer_takes_every_argument_of_lightning(compose_config):
    trainer = importlib.import_module("lightning.pytorch").Trainer
    arguments = set(inspect.signature(trainer.__init__).parameters) - {"self", "logger", "callbacks"}
    assert set(compose_config("train").trainer) - {"_target_"} == arguments


def test_an_ablation_says_its_name_and_changes_only_its_difference(compose_config):
    cfg, default = compose_config("train", "ablation=no_distillation"), compose_config("train")
    assert cfg.ablation == "no_distillation"
    assert cfg.loss.distillation == 0
    cfg.ablation, cfg.loss.distillation = default.ablation, default.loss.distillation
    assert cfg == default


def test_folders_come_from_the_environment(compose_config, monkeypatch):
    monkeypatch.setenv("HDMNET_DATA", "/somewhere")
    assert compose_config("train", "dataset=coco").dataset.root == "/somewhere/coco"
    assert compose_config("train", "dataset=coco", "paths.data_dir=/else").dataset.root == "/else/coco"
    monkeypatch.setenv("HDMNET_WEIGHTS", "/weights")
    monkeypatch.setenv("HDMNET_OUTPUT", "/runs")
    cfg = compose_config("train", "backbone=resnet50")
    assert cfg.backbone.weights_dir == "/weights"
    assert (cfg.paths.output_dir, cfg.paths.cache_dir) == ("/runs", "/runs/cache")


def test_paths_become_absolute(compose_config, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HDMNET_WEIGHTS", "~/weights")
    cfg = compose_config("train")
    make_paths_absolute(cfg, "run")
    assert cfg.paths.data_dir == str(tmp_path / "data")
    assert cfg.paths.weights_dir == str(Path.home() / "weights")
    assert cfg.paths.cache_dir == str(tmp_path / "outputs" / "cache")
    assert cfg.trainer.default_root_dir == str(tmp_path / "run")


# ------------------------------------------------------------------------------------------------------- validation


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("fold=7", "fold=7: expected 0 to 3, shapes has 4 folds"),
        ("fold=-1", "fold=-1: expected 0 to 3, shapes has 4 folds"),
        ("shot=0", "shot=0: expected an integer of at least 1"),
        ("seed=-1", "seed=-1: expected an integer of at least 0"),
        ("batch_size=0", "batch_size=0: expected an integer of at least 1"),
        ("num_workers=-1", "num_workers=-1: expected null or an integer of at least 0"),
        ("dataset.augment_scale=[1.1,0.9]", r"dataset.augment_scale=\[1.1, 0.9\]: expected two numbers above 0"),
        ("optim.base.num_val_samples=0", "optim.base.num_val_samples=0: expected null or an integer of at least 1"),
        ("dataset.image_size=[1,2,3]", r"dataset.image_size=\[1, 2, 3\]: expected an integer of 1 to 4096, or two of"),
        ("dataset.image_size=2.5", r"dataset.image_size=2.5: expected an integer of 1 to 4096, or two of"),
        ("dataset.filter_novel=maybe", "dataset.filter_novel=maybe: expected true or false"),
        ("dataset.num_val_episodes=null", "dataset.num_val_episodes=null: expected an integer of at least 1"),
        ("optim.max_steps=0", r"optim.max_steps=0: expected -1 \(no limit\) or an integer of at least 1"),
        ("selection=bset", "selection=bset: expected best or base or last; did you mean 'best'"),
        ("protocol.queries=x", "protocol.queries=x: expected uniform or official or pairs or classes or turns$"),
        ("protocol.novel_pixels=keep", "protocol.novel_pixels=keep: expected null, removed, background, ignore$"),
        ("protocol.num_test_seeds=0", "protocol.num_test_seeds=0: expected null, an integer of at least 1, or one for"),
        (
            "recipe=published",
            "recipe=unpublished: expected default or common: no paper trains this",
        ),
        ("support_mask=one", "support_mask=one: expected given or ones; did you mean 'ones'"),
        ("compile=fast", "compile=fast: expected null, default, reduce-overhead or max-autotune$"),
        ("keep_features_gb=-1", "keep_features_gb=-1.0: expected a number of at least 0"),
    ],
)
def test_wrong_values_are_refused_on_one_line(compose_config, override, message):
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        validate(compose_config("train", override))
    assert "\n" not in str(caught.value)


def test_image_size_may_be_a_rectangle(compose_config):
    cfg = compose_config("train", "dataset.image_size=[97,129]")
    validate(cfg)
    assert image_size(cfg.dataset.image_size) == (97, 129)
    assert image_size(129) == (129, 129)


# ------------------------------------------------------------------------------------------- evaluating a checkpoint


@pytest.fixture
def stored(compose_config, tmp_path):
    """What a training run on COCO leaves in its checkpoint."""
    (tmp_path / "data").mkdir()
    cfg = compose_config(
        "train", "dataset=coco", "backbone=vgg16", "fold=2", "shot=5", "num_workers=7", "trainer=ddp", "optim.lr=0.5"
    )
    cfg.paths.data_dir = str(tmp_path / "data")
    return to_stored(cfg)


def evaluate(compose_config, stored, *overrides):
    return merge_with_checkpoint(compose_config("evaluate", *overrides), stored, list(overrides))


def test_the_checkpoint_decides_where_the_command_line_is_silent(compose_config, stored, tmp_path):
    cfg = evaluate(compose_config, stored, "ckpt=x")
    assert (cfg.dataset.name, cfg.backbone.name, cfg.fold, cfg.shot, cfg.optim.lr) == ("coco", "vgg16", 2, 5, 0.5)
    assert cfg.dataset.root == f"{tmp_path}/data/coco"
    validate(cfg)


def test_the_machine_and_the_command_are_not_taken_from_the_checkpoint(compose_config, stored):
    cfg = evaluate(compose_config, stored, "ckpt=x")
    assert (cfg.ckpt, cfg.trainer.accelerator, cfg.num_workers, cfg.paths.output_dir) == ("x", "auto", None, "outputs")


def test_the_command_line_replaces_a_key_or_a_group(compose_config, stored):
    one = evaluate(compose_config, stored, "shot=1", "dataset.image_size=97", "backbone.weights=mine.pth")
    assert (one.shot, one.dataset.name, one.dataset.image_size) == (1, "coco", 97)
    assert (one.backbone.name, one.backbone.weights) == ("vgg16", "mine.pth")
    group = evaluate(compose_config, stored, "dataset=pascal", "dataset.image_size=97")
    assert (group.dataset.name, group.dataset.image_size, group.backbone.name) == ("pascal", 97, "vgg16")


def test_another_data_set_does_not_change_the_backbone(compose_config):
    cfg = evaluate(compose_config, to_stored(compose_config("train")), "dataset=pascal")
    assert (cfg.dataset.backbone, cfg.backbone.name) == ("resnet50", "resnet_narrow")


@pytest.mark.parametrize("size", [257, [97, 129]])
def test_another_data_set_is_seen_at_the_size_trained_with(compose_config, stored, size):
    stored["dataset"] |= {"image_size": "${.side}", "side": size}
    cfg = evaluate(compose_config, stored, "dataset=folder", "dataset.root=/mine")
    assert (cfg.dataset.name, cfg.dataset.image_size) == ("folder", size)
    assert evaluate(compose_config, stored, "dataset=folder", "dataset.image_size=33").dataset.image_size == 33


def test_interpolations_follow_the_overriding_key(compose_config, stored):
    cfg = evaluate(compose_config, stored, "dataset.root=/coco", "optim.batch_size=3")
    assert (cfg.dataset.root, cfg.batch_size) == ("/coco", 3)


def test_a_removed_key_stays_removed(compose_config, stored):
    assert "augment_scale" in evaluate(compose_config, stored).dataset
    assert "augment_scale" not in evaluate(compose_config, stored, "~dataset.augment_scale").dataset


def test_the_data_folder_is_the_runs_unless_named_or_gone(compose_config, stored, monkeypatch, tmp_path):
    assert evaluate(compose_config, stored, "paths.data_dir=/mine").paths.data_dir == "/mine"
    monkeypatch.setenv("HDMNET_DATA", "/env")
    assert evaluate(compose_config, stored).paths.data_dir == "/env"
    monkeypatch.delenv("HDMNET_DATA")
    (tmp_path / "data").rmdir()
    assert evaluate(compose_config, stored).paths.data_dir == "data"


def test_merging_leaves_its_arguments_alone(compose_config, stored):
    cfg = compose_config("evaluate", "shot=1")
    before = OmegaConf.to_yaml(cfg)
    merge_with_checkpoint(cfg, stored, ["shot=1"])
    assert OmegaConf.to_yaml(cfg) == before


# ------------------------------------------------------------------------------------------------------ instantiate


def test_instantiate_builds_nested_nodes_and_passes_arguments_through():
    cfg = OmegaConf.create(
        {
            "_target_": "torch.nn.Sequential",
            "_partial_": True,
            "first": {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": "${size}"},
            "sizes": [1, 2],
            "size": 3,
        }
    )
    part = instantiate(cfg, extra=(marker := DictConfig({})))
    assert isinstance(part, functools.partial)
    assert part.keywords["first"].out_features == 3
    assert part.keywords["sizes"] == [1, 2]
    assert part.keywords["extra"] is marker
    assert instantiate(None) is None


def test_instantiate_builds_what_lies_outside_the_package(monkeypatch, tmp_path):
    (tmp_path / "my_method.py").write_text("class Mine:\n    def __init__(self, size):\n        self.size = size\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert instantiate({"_target_": "my_method.Mine"}, size=3).size == 3


def test_instantiate_leaves_keys_out_and_prefers_ready_arguments():
    node = {"_target_": "torch.nn.Identity", "name": "x", "a": {"_target_": "nowhere.at_all"}}
    assert instantiate({**node, "_partial_": True}, ("name",), a=1).keywords == {"a": 1}


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"_target_": "hdmnet.nowhere.f"}, "'hdmnet.nowhere.f' does not exist"),
        ({"_target_": "torch.nn.Nothing"}, "'torch.nn.Nothing' does not exist"),
        ({"_target_": "hdmnet.config.values.image_size", "valu": 1}, "does not take these keys"),
        ({"_target_": "torch.nn.Linear", "in_features": 1}, "torch.nn.Linear: .*out_features"),
        ({"a": 1}, "it has no _target_"),
        ({"_target_": "hdmnetx.a"}, r"'hdmnetx.a' does not exist \(No module named 'hdmnetx'\)"),
        ({"_target_": "torch.nn.Linear", "in_features": "x", "out_features": 1}, "^torch.nn.Linear: "),
        ({"_target_": "builtins.dict", "a": {"_target_": "torch.nn.Linear"}}, "^a: .*in_features"),
        ({"_target_": "hdmnet.data.class_split.split_classes", "_partial_": False}, "does not take these keys"),
    ],
)
def test_instantiate_says_what_is_wrong(node, message):
    with pytest.raises(ValueError, match=message) as caught:
        instantiate(node)
    assert "\n" not in str(caught.value)


def test_instantiate_names_the_key(compose_config):
    cfg = compose_config("train", "+dataset.colour=1")
    with pytest.raises(
        ValueError, match=r"^dataset: hdmnet.data.datasets.shapes.dataset.ShapesDataset does not take .*'colour'"
    ):
        build_dataset(cfg)


def test_stored_configs_are_plain(stored):
    def check(node):
        assert type(node) in (dict, list, str, int, float, bool, type(None))
        for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            check(child)

    check(stored)


@pytest.mark.parametrize("override", ["optim.base=3", "optim.base=null"])
def test_a_group_that_is_none(compose_config, override):
    key = override.lstrip("+").partition("=")[0]
    with pytest.raises(ValueError, match=rf"^{key}=.*: expected a group of settings"):
        validate(compose_config("train", override))
