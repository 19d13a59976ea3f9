"""Tests of several classes at once through `evaluate`: what it counts is what `Segmenter` answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from hdmnet import Segmenter
from hdmnet.data.datamodules.few_shot import FewShotDataModule
from hdmnet.metrics import SeveralClassesIoU
from hdmnet.reporting.collect import collect
from hdmnet.run.build import build_dataset, build_few_shot_data
from tests.helpers import commands
from tests.helpers.method_runs import best

MACHINE = ("trainer=cpu", "num_workers=0")


def evaluate(run, output, *words):
    return commands.run("evaluate", output, f"ckpt={best(run)}", *MACHINE, *words)


@pytest.fixture(scope="module")
def two_way(finished_run, tmp_path_factory):
    return evaluate(finished_run, tmp_path_factory.mktemp("two"), "way=2", "shot=2")


def test_two_classes_are_scored_as_the_segmenter_labels_them(finished_run, two_way):
    cfg = OmegaConf.create(two_way.result["config"])
    data = build_few_shot_data(cfg, build_dataset(cfg))
    data.setup("test")
    assert [manifest.sha256() for manifest in data.test_manifests] == two_way.result["manifest_sha256"]
    segmenter = Segmenter.from_checkpoint(best(finished_run), device="cpu")
    places = {value: place for place, value in enumerate(data.class_split.test)}
    metrics = [SeveralClassesIoU(len(places)) for _ in data.test_manifests]
    overlaps = 0
    for metric, manifest in zip(metrics, data.test_manifests, strict=True):
        for spec in manifest:
            supports = {
                str(value): (
                    [data.dataset.read_image(one) for one in ids],
                    [data.dataset.read_class_mask(one, value) for one in ids],
                )
                for value, ids in spec.ways
            }
            prediction = segmenter.fit(supports).predict(data.dataset.read_image(spec.query_id))
            values = list(map(int, supports))
            truth = data.dataset.read_label_map(spec.query_id, values)
            metric.update(torch.from_numpy(prediction.mask), torch.from_numpy(truth), [places[one] for one in values])
            overlaps += int((np.minimum(*prediction.probabilities.values()) > 0.5).sum())
    assert overlaps > 100, "no pixel that both classes want: nothing was decided between them"
    computed = [metric.compute() for metric in metrics]
    test = two_way.result["test"]
    for key in ("miou", "fb_iou", "exact_match", "miou_with_background", "iou_background"):
        found = [float(values[key]) for values in computed]
        assert test[f"{key}_per_seed"] == pytest.approx(found, abs=1e-3), key
        assert test[key] == pytest.approx(np.mean(found), abs=1e-3)
    assert test["num_episodes"] == 6
    assert list(test["counts_per_class"].values()) == sum(values["counts"] for values in computed).tolist()


def test_the_result_says_so_and_tables_of_one_class_leave_it_out(finished_run, two_way):
    assert two_way.result["way"] == 2
    assert (two_way.result["baselines"], two_way.result["controls"]) == (None, {})
    assert ", 2-way 2-shot, " in two_way.out
    assert "exact match of the classes shown" in two_way.out
    assert "way" not in finished_run.result
    found = collect([finished_run.folder, two_way.folder])
    assert [run.folder for run in found.runs] == [finished_run.folder]
    assert any(line.startswith("2-way, left out") for line in found.warnings)


def test_one_class_decided_together_is_what_it_always_is(finished_run, tmp_path, monkeypatch):
    monkeypatch.setattr(FewShotDataModule, "several_classes", True)
    answer = evaluate(finished_run, tmp_path)
    for entry in ("test", "test_no_ensemble"):
        found, expected = answer.result[entry], finished_run.result[entry]
        for key in ("miou_per_seed", "fb_iou_per_seed", "iou_per_class", "num_episodes"):
            assert found[key] == expected[key]
    assert answer.result["manifest_sha256"] == finished_run.result["manifest_sha256"]
    assert "exact_match" in answer.result["test"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["way=6"], "way=6: shapes fold 0 val has 5 classes with enough images; expected 1 to as many"),
        (["way=2", "reuse=false"], "way=2: the classes of an episode share the query's features; set reuse=true"),
        (["way=0"], "way=0: expected an integer of at least 1"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(finished_run, tmp_path, words, message):
    refused = commands.call("evaluate", tmp_path, f"ckpt={best(finished_run)}", *MACHINE, *words)
    assert refused.refusal() == message
