"""Every file under conf/ablation: what it changes in the config, that it changes the computation, and nothing else."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

from hdmnet.config.checks import validate
from hdmnet.config.instantiate import instantiate
from hdmnet.config.paths import conf_dir
from hdmnet.config.values import to_plain
from hdmnet.run import build
from hdmnet.tasks.few_shot import FewShotTask
from tests.helpers.commands import SHAPES, run

ENSEMBLE = {"model.ensemble": True}
DOT = {"model.matching.score": "dot", "model.matching.normalise": "support"}
OFF = {"loss.distillation": 0.0}
BASELINE = {"model._target_": "hdmnet.models.hdmnet.baseline.build_baseline", "model.num_rounds": 3}
# What each file asks for. Where that is the method's default the config does not change.
WANTED: dict[str, dict[str, Any]] = {
    "none": {},
    "no_distillation": OFF,
    "table4_baseline": BASELINE | OFF | {"model.ensemble": False},
    "table4_ensemble": BASELINE | OFF | ENSEMBLE,
    "table4_decoupled": DOT | OFF | ENSEMBLE,
    "table4_correlation": OFF | ENSEMBLE,
    "table4_distillation": {"loss.distillation": 1.0} | ENSEMBLE,
    "table5_dot": DOT,
    "table5_cosine": {"model.matching.score": "cosine", "model.matching.normalise": "none"},
    "table5_softmax_support": {"model.matching.score": "cosine", "model.matching.normalise": "support"},
    "table5_inverse_softmax": {"model.matching.score": "cosine", "model.matching.normalise": "query"},
    "table6_none": OFF,
    "table6_ce_truth": {"loss.distillation": 1.0, "loss.distillation_kind": "ce_truth"},
    "table6_ce_teacher": {"loss.distillation": 1.0, "loss.distillation_kind": "ce_teacher"},
    "table6_kl_teacher": {"loss.distillation": 1.0, "loss.distillation_kind": "kl_teacher"},
    **{f"table7_stages{i}": {"model.num_stages": i} for i in (1, 2, 3, 4)},
    "table8_with_mask": {"support_mask": "given"},
    "table8_without_mask": {"support_mask": "ones"},
    "table9_t0.5": {"loss.temperature": 0.5},
    "table9_t1": {"loss.temperature": 1.0},
    "table9_t2": {"loss.temperature": 2.0},
    "table9_t5": {"loss.temperature": 5.0},
}
WHOLE_METHOD = ("table5_inverse_softmax", "table6_kl_teacher", "table7_stages3", "table8_with_mask", "table9_t1")
# Rows that keep the network and change the loss only.
SAME_NETWORK = ("table6_none", "table6_ce_truth", "table6_ce_teacher", "table9_t0.5", "table9_t2", "table9_t5")
OTHER_NETWORK = (
    *("table4_baseline", "table4_ensemble", "table4_decoupled", "table5_dot", "table5_cosine"),
    *("table5_softmax_support", "table7_stages1", "table7_stages2", "table7_stages4"),
)
SIZE, BATCH = 65, 2  # four stages: 9, 5, 3 and 2 positions a side


def flatten(node, prefix=""):
    if not isinstance(node, dict):
        return {prefix: node}
    return {k: v for key, value in node.items() for k, v in flatten(value, f"{prefix}.{key}".lstrip(".")).items()}


@pytest.fixture(scope="module")
def config_of():
    """Composes the config of the train door, each one once: it takes more time than a step of the network."""

    @functools.cache
    def compose_once(*overrides):
        with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
            return compose("train", overrides=list(overrides))

    return compose_once


@pytest.fixture(scope="module")
def flat_config(config_of):
    def flat(*overrides):
        cfg = config_of(*overrides)
        validate(cfg)
        return flatten(to_plain(cfg))

    return flat


def of(dataset):
    """The words for a data set; shapes, whose ensemble is off, is the default."""
    return () if dataset == "shapes" else (f"dataset={dataset}",)


def changed(one, other):
    return {key for key in one.keys() | other.keys() if one.get(key, "absent") != other.get(key, "absent")}


# ------------------------------------------------------------------------------------------------------- the configs


def test_every_file_is_listed_here():
    assert {file.stem for file in (conf_dir() / "ablation").glob("*.yaml")} == WANTED.keys()


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "dataset"),
    [*((name, "shapes") for name in WANTED), *((name, "coco") for name in WANTED if "table4" in name)],
)
def test_a_file_sets_what_its_row_is_about_and_nothing_else(flat_config, name, dataset):
    plain, ablated = flat_config(*of(dataset)), flat_config(*of(dataset), f"ablation={name}")
    assert ablated["ablation"] == (None if name == "none" else name)
    for key, value in WANTED[name].items():
        assert ablated[key] == value, key
    reference = flat_config(*of(dataset), "model=baseline") if BASELINE.items() <= WANTED[name].items() else plain
    assert changed(reference, ablated) - {"ablation"} <= WANTED[name].keys()


@pytest.mark.parametrize(
    ("one", "other", "keys"),
    [
        ("table4_baseline", "table4_ensemble", {"model.ensemble"}),
        ("table4_decoupled", "table4_correlation", {"model.matching.score", "model.matching.normalise"}),
        ("table4_correlation", "table4_distillation", {"loss.distillation"}),
        ("table5_dot", "table5_cosine", {"model.matching.score", "model.matching.normalise"}),
        ("table5_cosine", "table5_softmax_support", {"model.matching.normalise"}),
        ("table5_softmax_support", "table5_inverse_softmax", {"model.matching.normalise"}),
        ("table6_none", "table6_kl_teacher", {"loss.distillation"}),
        ("table6_ce_truth", "table6_ce_teacher", {"loss.distillation_kind"}),
        ("table6_ce_teacher", "table6_kl_teacher", {"loss.distillation_kind"}),
    ],
)
def test_neighbouring_rows_differ_in_one_thing(flat_config, one, other, keys):
    a, b = flat_config(f"ablation={one}"), flat_config(f"ablation={other}")
    assert changed(a, b) == keys | {"ablation"}


def test_the_pyramid_replaces_the_interleaved_attention_and_nothing_outside_the_model(flat_config):
    a, b = flat_config("ablation=table4_ensemble"), flat_config("ablation=table4_decoupled")
    in_model = {key for key in changed(a, b) if key.startswith("model.")}
    assert changed(a, b) - in_model == {"ablation"}
    shared = {key for key in a.keys() & b.keys() if key.startswith("model.")} - {"model._target_", "model.name"}
    assert in_model.isdisjoint(shared)


def test_the_command_line_wins_over_an_ablation(flat_config):
    assert flat_config("ablation=table9_t5", "loss.temperature=3")["loss.temperature"] == 3
    assert flat_config("ablation=table4_ensemble", "model.ensemble=false")["model.ensemble"] is False


# --------------------------------------------------------------------------------------------------- the computation


@pytest.fixture(scope="module")
def learner(config_of):
    """One base learner for all rows, as a table's runs share theirs."""
    torch.manual_seed(0)
    return build.build_base_learner(config_of(), 15)


@pytest.fixture(scope="module")
def episode():
    torch.manual_seed(1)
    masks = torch.zeros(2, BATCH, SIZE, SIZE, dtype=torch.uint8)
    masks[0, :, 10:40, 20:50] = 1
    masks[1, :, 25:60, 5:45] = 1
    masks[:, :, :3] = 255
    query, support = torch.randn(2, BATCH, 3, SIZE, SIZE)
    return query, support[:, None], masks[0][:, None], masks[1]


@pytest.fixture(scope="module")
def task_of(config_of, learner):
    """The task of a composed config, its network at the same start whenever it has the same parts."""

    def make(*overrides):
        cfg = config_of(*overrides)
        torch.manual_seed(2)
        model = build.build_model(cfg, learner)
        return FewShotTask(model=model, class_names=["novel"], loss=instantiate(cfg.loss))

    return make


@dataclass
class Answer:
    """What a task makes of the episode."""

    outputs: list[Tensor]  # final and meta logits, correlation maps
    loss: list[Tensor]  # the loss and its gradients


@pytest.fixture(scope="module")
def answer_of(task_of, episode):
    """Outputs, loss and gradients of a config, without dropout."""

    @functools.cache
    def answer(*overrides):
        task = task_of(*overrides)
        query, support, support_mask, query_mask = episode
        output = task.model.eval()(query, support, support_mask)
        loss = task.loss(output, query_mask)["loss"]
        gradients = torch.autograd.grad(loss, [p for p in task.model.parameters() if p.requires_grad])
        meta = output.logits_of("meta" if "meta" in output.auxiliary else "final")
        outputs = [output.logits, meta, *output.maps["correlation"]]
        return Answer([x.detach() for x in outputs], [loss.detach(), *gradients])

    return answer


def identical(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def equal(one, other):
    return len(one) == len(other) and all(
        a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-7) for a, b in zip(one, other, strict=True)
    )


@pytest.mark.long
@pytest.mark.parametrize("name", WHOLE_METHOD)
def test_rows_of_the_whole_method_compute_the_same(answer_of, name):
    whole, row = answer_of(), answer_of(f"ablation={name}")
    assert identical(whole.outputs, row.outputs)
    assert identical(whole.loss, row.loss)


def test_last_row_of_table_4_is_the_whole_method_with_the_ensemble(answer_of):
    whole, row = answer_of("model.ensemble=true"), answer_of("ablation=table4_distillation")
    assert identical(whole.outputs, row.outputs)
    assert identical(whole.loss, row.loss)


@pytest.mark.long
@pytest.mark.parametrize("name", SAME_NETWORK)
def test_rows_on_the_loss_change_the_loss_and_no_output(answer_of, name):
    whole, row = answer_of(), answer_of(f"ablation={name}")
    assert identical(whole.outputs, row.outputs)
    assert not equal(whole.loss[:1], row.loss[:1])
    assert not equal(whole.loss[1:], row.loss[1:])


@pytest.mark.long
@pytest.mark.parametrize("name", OTHER_NETWORK)
def test_rows_on_the_network_change_the_prediction(answer_of, name):
    assert not equal(answer_of().outputs[:2], answer_of(f"ablation={name}").outputs[:2])


@pytest.mark.parametrize(
    ("table", "what"),
    [("table4", "loss"), ("table5", "outputs"), ("table6", "loss"), ("table7", "outputs"), ("table9", "loss")],
)
def test_no_two_rows_of_a_table_compute_the_same(answer_of, table, what):
    answers = [getattr(answer_of(f"ablation={name}"), what) for name in WANTED if name.startswith(table)]
    for i, one in enumerate(answers):
        assert not any(equal(one, other) for other in answers[:i])


def test_the_ensemble_alone_tells_the_first_two_rows_apart(answer_of):
    baseline, fused = answer_of("ablation=table4_baseline").outputs, answer_of("ablation=table4_ensemble").outputs
    assert identical(baseline[1:], fused[1:])
    assert not equal(baseline[:1], fused[:1])


def test_without_distillation_a_row_of_table_4_is_one_of_table_6(answer_of):
    one, other = answer_of("ablation=table4_correlation"), answer_of("ablation=table6_none", "model.ensemble=true")
    assert identical(one.loss, other.loss)


@pytest.mark.long
@pytest.mark.parametrize("name", WANTED)
def test_one_training_step(task_of, episode, name):
    task = task_of(f"ablation={name}")
    query, support, support_mask, query_mask = episode
    before = {n: p.detach().clone() for n, p in task.model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(task.model.parameter_groups(lr=1e-4, head_lr_factor=10.0))
    loss = task.loss(task.model.train()(query, support, support_mask, torch.tensor([0, 3])), query_mask)["loss"]
    loss.backward()
    optimizer.step()
    assert math.isfinite(loss.item())
    still = [n for n, p in task.model.named_parameters() if p.requires_grad and torch.equal(p, before[n])]
    assert not still, "every parameter that is trained takes part"
    assert all(p.isfinite().all() for p in task.model.parameters())


def test_without_the_support_mask_the_model_is_tested_not_trained(config_of):
    cfg = config_of(*SHAPES, "ablation=table8_without_mask")
    data = build.build_few_shot_data(cfg, build.build_dataset(cfg))
    data.setup("fit")
    data.setup("test")
    masks = {name: getattr(data, f"{name}_dataloader")().dataset[0].support_masks for name in ("train", "val", "test")}
    assert (masks["val"] == 1).all()
    assert (masks["test"] == 1).all()
    assert not (masks["train"] == 1).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in WANTED if name.startswith("table")])
def test_one_step_of_the_door(tmp_path, name):
    result = run("train", tmp_path, *SHAPES, "trainer.max_steps=1", f"ablation={name}").result
    assert result["ablation"] == name
    assert math.isfinite(result["test"]["fb_iou"])
