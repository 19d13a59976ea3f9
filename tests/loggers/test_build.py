"""What runs are called on the dashboard: one setting's folds and seeds share a group, and nothing else does."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from hdmnet.config.paths import make_paths_absolute
from hdmnet.loggers import build
from hdmnet.loggers.build import build_loggers, check_loggers, describe_run


@pytest.fixture
def job(compose_config, tmp_path):
    """`job("fold=1", ...)` is the config that an entry point gives a job, its overrides kept as Hydra keeps them."""

    def make(*overrides, entry_point="train", written=True, folder="run"):
        cfg = compose_config(entry_point, *overrides)
        make_paths_absolute(cfg, tmp_path / folder)
        if written:
            (tmp_path / folder / ".hydra").mkdir(parents=True, exist_ok=True)
            OmegaConf.save(OmegaConf.create(list(overrides)), tmp_path / folder / ".hydra" / "overrides.yaml")
        return cfg

    return make


def _group(cfg):
    return describe_run(cfg, "train")["group"]


@pytest.mark.parametrize("written", [True, False])
def test_folds_seeds_and_machines_of_a_setting_are_one_group(job, written):
    machine = (
        "fold=2",
        "seed=3",
        "num_workers=1",
        "reuse=false",
        "trainer.accelerator=cpu",
        "paths.output_dir=/there",
        "logger=wandb",
    )
    one = _group(job("loss.temperature=0.5", written=written))
    assert _group(job("loss.temperature=0.5", *machine, written=written)) == one


@pytest.mark.parametrize("written", [True, False])
@pytest.mark.parametrize(
    "other", ["shot=5", "backbone=resnet18", "ablation=no_distillation", "loss.temperature=2", "trainer.devices=2"]
)
def test_another_setting_is_another_group(job, other, written):
    assert _group(job(other, written=written)) != _group(job(written=written))


def test_names_say_what_runs(job):
    cfg = job("dataset=coco", "fold=2", "shot=5", "+optim.new=1", "ablation=no_distillation", "loss.temperature=0.5")
    described = describe_run(cfg, "train")
    assert described["group"] == "coco 5-shot resnet50 no_distillation loss.temperature=0.5 optim.new=1"
    assert described["name"] == described["group"] + " fold2 seed0"
    assert described["title"] == "coco, fold 2, 5-shot, hdmnet"
    assert described["tags"] == ["coco", "fold2", "5-shot", "resnet50", "hdmnet", "no_distillation"]
    assert described["job_type"] == "train"
    assert described["config"]["loss"]["temperature"] == 0.5
    assert described["config"]["dataset"]["name"] == "coco"


def test_a_reference_on_the_command_line_is_told_as_it_was_written(job):
    assert _group(job("loss.temperature=${optim.lr}")).endswith(" loss.temperature=${optim.lr}")


def test_long_names_are_cut_and_stay_apart(job):
    many = [f"optim.base.lr={n}{'0' * 120}" for n in (1, 2)]
    described = [describe_run(job(word), "train") for word in many]
    assert len({one["group"] for one in described}) == 2
    assert all(len(one[key]) <= 128 for one in described for key in ("group", "name"))
    assert all(one["name"].endswith(" fold0 seed0") for one in described)


def test_an_evaluation_is_in_the_group_of_its_training(job, tmp_path):
    trained = _group(job("loss.temperature=2", "fold=1"))
    ckpt = tmp_path / "run" / "checkpoints" / "best.ckpt"
    again = job(f"ckpt={ckpt}", "loss.temperature=2", "fold=1", entry_point="evaluate", folder="evaluation")
    assert describe_run(again, "evaluate")["group"] == trained
    OmegaConf.save(OmegaConf.create([f"ckpt={ckpt}"]), tmp_path / "evaluation" / ".hydra" / "overrides.yaml")
    assert describe_run(again, "evaluate")["group"] == trained  # the training's own command line says the rest


def test_the_config_names_what_it_wants_named(job):
    words = ("logger=wandb", "logger.wandb.group=mine", "logger.wandb.tags=[paper]", "logger.wandb.offline=true")
    csv, wandb = build_loggers(job(*words), "train")
    assert type(csv).__name__ == "CsvLogger"
    init = wandb._wandb_init
    assert init["group"] == "mine"
    assert init["name"].endswith("fold0 seed0")
    assert init["tags"] == ["shapes", "fold0", "1-shot", "resnet_narrow", "hdmnet", "no ablation", "paper"]
    assert len(build_loggers(job("logger=wandb", "logger.csv=null"), "train")) == 1


def test_another_method_is_named_once(job):
    described = describe_run(job("model=baseline", "dataset=coco"), "train")
    assert described["group"] == "coco 1-shot resnet50 baseline"
    assert "baseline" in described["tags"]


class Told:
    """A user's own logger, of evaluations only."""

    runs_in = ("evaluate",)

    def describe_run(self, description):
        self.description = description


def test_a_users_own_logger_is_told_what_runs_where_it_runs(job, monkeypatch):
    monkeypatch.setattr("hdmnet.loggers.build.instantiate_all", lambda group: [Told(), object()])
    told, _ = build_loggers(job(), "evaluate")
    assert told.description["group"] == "shapes 1-shot resnet_narrow"
    assert told.description["job_type"] == "evaluate"
    assert len(build_loggers(job(), "train")) == 1


def test_wandb_that_is_missing_is_one_line(job, monkeypatch):
    check_loggers(job("logger=wandb", folder="installed"))
    monkeypatch.setattr(build, "find_spec", lambda name: None)
    check_loggers(job("logger=csv", folder="csv"))
    with pytest.raises(ValueError, match=r"^logger=wandb needs W&B: pip install 'hdmnet\[wandb\]'$"):
        check_loggers(job("logger=wandb"))
