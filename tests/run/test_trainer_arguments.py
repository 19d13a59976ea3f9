"""Every argument of Lightning's Trainer: it works, with a result, or it is refused in one line before any training."""

from __future__ import annotations

import copy
import csv
import inspect

import lightning as L
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from hdmnet.config.checks import validate
from hdmnet.config.paths import HYDRA_VERSION_BASE, conf_dir
from hdmnet.run.trainer_arguments import check_batches, check_trainer
from hdmnet.runtime.errors import ConfigError
from tests.helpers.commands import SHAPES, call, run

OF_GROUPS = {"logger", "callbacks"}

# What works, by runs: each trains and tests with all of its words.
RUNS = [
    [
        *(
            "accelerator=auto",
            "strategy=auto",
            "devices=1",
            "num_nodes=1",
            "precision=null",
            "max_epochs=1",
            "min_epochs=1",
        ),
        *("num_sanity_val_steps=2", "log_every_n_steps=0", "enable_checkpointing=true", "enable_progress_bar=false"),
        *("enable_model_summary=true", "accumulate_grad_batches=2", "gradient_clip_val=0.5", "deterministic=true"),
        *("gradient_clip_algorithm=value", "inference_mode=false", "use_distributed_sampler=false"),
        *("profiler=simple", "detect_anomaly=true", "barebones=false", "sync_batchnorm=true", "default_root_dir=null"),
        *("reload_dataloaders_every_n_epochs=1", "enable_autolog_hparams=false", "model_registry=mine"),
        *(
            "plugins=[{_target_: lightning.pytorch.plugins.environments.LightningEnvironment}]",
            "limit_predict_batches=0",
        ),
    ],
    [
        *("accelerator=cpu", "devices=auto", "num_nodes=null", "precision=32", "max_epochs=null", "min_steps=2"),
        *("num_sanity_val_steps=-1", "log_every_n_steps=1", "enable_checkpointing=null", "enable_progress_bar=null"),
        *("accumulate_grad_batches=null", "gradient_clip_algorithm=norm", "deterministic=false", "benchmark=false"),
        *("profiler=advanced", "limit_train_batches=0.5", "limit_val_batches=0.5", "limit_test_batches=0.5"),
    ],
    [
        *(
            "strategy=ddp",
            "devices=null",
            "precision=32-true",
            "max_steps=1",
            "log_every_n_steps=50",
            "profiler=pytorch",
        ),
        *("deterministic=warn", "limit_train_batches=1", "limit_val_batches=1", "limit_test_batches=1"),
    ],
    ["strategy=ddp_find_unused_parameters_true", "devices='1'", "precision=bf16-mixed", "overfit_batches=0.5"],
    ["precision=16-mixed", "limit_train_batches=100", "limit_val_batches=0", "max_steps=3", "log_every_n_steps=null"],
    ["fast_dev_run=true"],
    ["fast_dev_run=2", "benchmark=true"],
    ["max_time=00:00:00:01", "val_check_interval=1", "limit_train_batches=1.0"],
    ["max_time={seconds:1}", "val_check_interval=0.5"],
    ["val_check_interval=00:00:00:01", "check_val_every_n_epoch=1"],
    ["val_check_interval=3", "check_val_every_n_epoch=null"],
    ["overfit_batches=1"],
    ["limit_test_batches=0", "check_val_every_n_epoch=2"],
]
# What is refused: the value, maybe with words that make it wrong, and a part of the line.
_SHARE = "expected null, a number of batches, or a share from 0.0 to 1.0"
_HALF = "expected 32-true, bf16-mixed, 16-mixed or null: the weights stay 32 bits wide"
_SPAWNED = "expected auto or ddp: a process a device, each with all weights, started as a command"
REFUSED = {
    "accelerator": [("tpu", "torch_xla"), ("abacus", "abacus")],
    "strategy": [
        *((name, f"trainer.strategy={name}: {_SPAWNED}") for name in ("ddp_spawn", "ddp_fork", "ddp_notebook")),
        ("fsdp", "FSDP"),
        ("deepspeed", "deepspeed|DeepSpeed"),
        ("parrot", "parrot"),
    ],
    "devices": [("0", "devices"), ("abc", "devices")],
    "num_nodes": [
        ("0", "trainer.num_nodes=0: expected"),
        ("2 trainer.strategy=ddp", "trainer.num_nodes=2: expected 1, or"),
    ],
    "precision": [
        *((name, f"trainer.precision={name}: {_HALF}") for name in ("16-true", "bf16-true", "64-true", "64")),
        ("8", "precision"),
        ("transformer-engine", "ransformer"),
    ],
    "fast_dev_run": [("-1", "fast_dev_run=-1")],
    "max_epochs": [
        ("0", "trainer.max_epochs=0: expected -1"),
        ("-2", "trainer.max_epochs=-2: expected"),
        ("-1 trainer.max_steps=-1", "trainer.max_epochs=-1: expected a limit"),
    ],
    "min_epochs": [("x", "trainer.min_epochs=x: expected")],
    "max_steps": [("0", "trainer.max_steps=0: expected"), ("-2", "trainer.max_steps=-2: expected")],
    "min_steps": [("0.5", "trainer.min_steps=0.5: expected")],
    "max_time": [("soon", "soon")],
    "limit_train_batches": [
        ("0", "trainer.limit_train_batches=0: expected null or at least 1 batch"),
        ("-1", f"trainer.limit_train_batches=-1: {_SHARE}"),
        ("1.5", f"trainer.limit_train_batches=1.5: {_SHARE}"),
    ],
    "limit_val_batches": [("2.5", _SHARE)],
    "limit_test_batches": [("all", _SHARE)],
    "limit_predict_batches": [("-1", _SHARE)],
    "overfit_batches": [("-1", _SHARE), ("1.5", _SHARE)],
    "val_check_interval": [("soon", "soon")],
    "check_val_every_n_epoch": [("0", "expected"), ("null trainer.val_check_interval=0.5", "val_check_interval")],
    "num_sanity_val_steps": [("-2", "expected")],
    "log_every_n_steps": [("-1", "expected")],
    "enable_checkpointing": [("false", "enable_checkpointing=False"), ("0", "expected null, true or false")],
    "enable_progress_bar": [("perhaps", "expected null, true or false")],
    "accumulate_grad_batches": [("0", "trainer.accumulate_grad_batches=0: expected")],
    "gradient_clip_val": [("-1", "trainer.gradient_clip_val=-1: expected")],
    "gradient_clip_algorithm": [("sideways", "sideways")],
    "deterministic": [("perhaps", "deterministic|perhaps")],
    "use_distributed_sampler": [("true trainer.strategy=ddp", "trainer.use_distributed_sampler=true: expected false")],
    "profiler": [("loud", "profiler")],
    "barebones": [("true", "barebones")],
    "plugins": [("[nothing]", "nothing")],
    "sync_batchnorm": [("true trainer.strategy=ddp", "trainer.sync_batchnorm=true: expected false on CPUs")],
}


def words_of(argument, value):
    first, *others = value.split(" ") if " trainer." in value else (value,)
    return [f"trainer.{argument}={first}", *others]


# For many runs: what they do not differ in.
LESS = (
    *("callbacks.pictures=null", "callbacks.curves=null", "dataset.num_test_seeds=1", "dataset.num_test_episodes=3"),
    *("optim.batch_size=1", "dataset.num_val_episodes=3"),
)


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """A folder whose cache all runs share."""
    return tmp_path_factory.mktemp("runs")


def refuse(cfg):
    """What happens before anything is read."""
    validate(cfg)
    check_trainer(cfg, trains=True)


@pytest.fixture(scope="module")
def composed():
    with initialize_config_dir(config_dir=str(conf_dir()), version_base=HYDRA_VERSION_BASE):
        return compose("train", overrides=["trainer=cpu"])


@pytest.fixture
def with_words(composed):
    """The config with some words more; composing it each time would take most of the time."""

    def changed(words):
        cfg = copy.deepcopy(composed)
        for word in words:
            parsed = OverridesParser.create().parse_override(word)
            OmegaConf.update(cfg, parsed.key_or_group, parsed.value())
        return cfg

    return changed


def test_every_argument_is_tried():
    known = set(inspect.signature(L.Trainer).parameters) - OF_GROUPS
    assert {word.partition("=")[0] for words in RUNS for word in words} == known
    assert set(REFUSED) <= known
    assert set(OmegaConf.load(conf_dir() / "trainer" / "_default.yaml")) - {"_target_"} == known


@pytest.mark.long
@pytest.mark.parametrize(
    ("argument", "value", "line"),
    [pytest.param(name, *case, id=f"{name}={case[0]}") for name, cases in REFUSED.items() for case in cases],
)
def test_what_cannot_work_is_refused_before_anything_is_read(with_words, argument, value, line):
    with pytest.raises(ConfigError, match=line) as error:
        refuse(with_words(words_of(argument, value)))
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:.*AMP with fp16 is not supported on CPU")
@pytest.mark.parametrize("words", [*RUNS, ["devices=2"], ["devices=2", "strategy=ddp"]], ids=" ".join)
def test_what_works_is_not_refused(with_words, words):
    refuse(with_words([f"trainer.{word}" for word in words]))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*AMP with fp16 is not supported on CPU")
@pytest.mark.filterwarnings("ignore:The PyTorch Profiler default schedule will be overridden")
@pytest.mark.parametrize("words", RUNS, ids=" ".join)
def test_what_works_gives_a_result(start, output, words):
    result = run("train", output, *SHAPES, *LESS, f"ckpt={start}", *(f"trainer.{word}" for word in words)).result
    assert (result["test"]["num_episodes"] == 0) == ("limit_test_batches=0" in words)


@pytest.mark.long
@pytest.mark.parametrize("words", [("trainer.precision=bf16-true",), ("trainer.strategy=ddp_spawn",)])
@pytest.mark.parametrize("door", ["train", "evaluate"])
def test_the_doors_refuse_it(start, tmp_path, door, words):
    line = call(door, tmp_path, *(SHAPES if door == "train" else ("trainer=cpu",)), f"ckpt={start}", *words).refusal()
    assert line.startswith(f"{words[0]}: expected ")


# ----------------------------------------------------------------------------------------------- what takes some care


@pytest.mark.long
def test_the_first_batch_is_overfitted_in_both_stages(tmp_path):
    """Without augmentation the loss comes down, epoch by epoch, on the same two episodes."""
    answer = run(
        "train", tmp_path, *SHAPES, "trainer.overfit_batches=1", "augment=none", "optim.max_steps=8", "optim.lr=1e-3"
    )
    with (answer.folder / "metrics.csv").open(encoding="utf-8") as file:
        losses = [float(row["train/final"]) for row in csv.DictReader(file) if row.get("train/final")]
    assert len(losses) == 8
    assert losses[-1] < losses[0]
    assert answer.result["test"]["num_episodes"] == 6


@pytest.mark.long
def test_a_run_without_a_test_has_a_result(start, tmp_path):
    answer = run("train", tmp_path, *SHAPES, f"ckpt={start}", "trainer.limit_test_batches=0", "dataset.controls=true")
    test = answer.result["test"]
    assert (test["num_episodes"], test["miou"], test["fb_iou"]) == (0, None, None)
    assert set(test["iou_per_class"].values()) == {None}
    assert (answer.folder / "checkpoints" / "best.ckpt").is_file()
    assert answer.result["controls"] == {}
    assert answer.out.count("nothing was tested (trainer.limit_test_batches=0)") == 1
    assert "mIoU is the mean of the other classes" not in answer.out


def test_an_evaluation_without_a_test_is_refused(compose_config):
    cfg = compose_config("evaluate", "trainer.limit_test_batches=0")
    with pytest.raises(ValueError, match=r"trainer.limit_test_batches=0: expected null or at least 1 batch: an eval"):
        check_trainer(cfg, trains=False)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["trainer.limit_train_batches=0.01"],
            r"trainer.limit_train_batches=0.01: expected at least 0.1, or a number of",
        ),
        (["trainer.limit_val_batches=0.1"], r"trainer.limit_val_batches=0.1: expected at least 0.25, .*: val has 4"),
        (["trainer.limit_test_batches=0.01"], r"trainer.limit_test_batches=0.01: expected at least 0.0333, .* has 30"),
        (["trainer.overfit_batches=0.2"], r"trainer.overfit_batches=0.2: expected at least 0.25, .*: val has 4"),
        (["trainer.val_check_interval=11"], r"trainer.val_check_interval=11: expected at most 10, the batches of an"),
        (
            ["trainer.val_check_interval=3", "trainer.limit_train_batches=2"],
            r"val_check_interval=3: expected at most 2",
        ),
        (
            ["trainer.val_check_interval=6", "trainer.limit_train_batches=0.5"],
            r"val_check_interval=6: expected at most 5",
        ),
    ],
)
def test_limits_that_leave_no_batch_are_refused_before_stage_1(with_words, words, line):
    counts = {"train": 10, "val": 4, "test": 30}
    with pytest.raises(ValueError, match=line):
        check_batches(with_words(words), counts.__getitem__)


@pytest.mark.parametrize(
    "words",
    [
        ["trainer.limit_train_batches=0.1", "trainer.limit_val_batches=0.25", "trainer.limit_test_batches=1.0"],
        ["trainer.val_check_interval=10"],
        ["trainer.val_check_interval=11", "trainer.check_val_every_n_epoch=null"],
        ["trainer.val_check_interval=11", "trainer.limit_val_batches=0"],
        ["trainer.fast_dev_run=true", "trainer.limit_val_batches=0.01"],
    ],
)
def test_limits_that_leave_a_batch(with_words, words):
    check_batches(with_words(words), {"train": 10, "val": 4, "test": 30}.__getitem__)


@pytest.mark.long
def test_the_batches_that_are_counted_are_those_that_run(first_run, tmp_path):
    """With reuse equal episodes are run once: the smallest share that is taken is that of one batch."""
    words = (*SHAPES, f"base_ckpt={first_run.folder / 'base_learner.pt'}", "dataset.num_test_episodes=40")
    line = call("train", tmp_path, *words, "trainer.limit_test_batches=0.01").refusal()
    batches = int(line.rpartition(" has ")[2])
    assert 1 < batches <= 40
    result = run("train", tmp_path, *words, f"trainer.limit_test_batches={1.0001 / batches}").result
    assert result["test"]["num_episodes"] > 0


def test_a_training_without_an_end_is_refused(tmp_path):
    line = call("train", tmp_path, *SHAPES, "optim.base.max_steps=-1", "optim.base.max_epochs=-1").refusal()
    assert line == "optim.base.max_epochs=-1 and optim.base.max_steps=-1: expected a limit of stage 1 by one"


@pytest.mark.parametrize("name", ["ddp_spawn", "ddp_fork", "ddp"])
def test_private_launchers_are_told_apart(name):
    from hdmnet.runtime.private_api import starts_by_multiprocessing

    trainer = L.Trainer(accelerator="cpu", devices=2, strategy=name, logger=False, enable_checkpointing=False)
    assert starts_by_multiprocessing(trainer) == (name != "ddp")
    torch.use_deterministic_algorithms(False)
