"""Tests of several classes at once through `evaluate`: what it counts is what `Segmenter` answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from hdmnet import Segmenter
from hdmnet.data.datamodules.few_shot import FewShotDataModule
from hdmnet.data.datasets.shapes.scene import class_names
from hdmnet.data.transforms import resize_image
from hdmnet.metrics import SeveralClassesIoU
from hdmnet.models.method import upsample
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


@pytest.mark.long
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
    assert any(line.startswith("of several classes at once, left out") for line in found.warnings)


@pytest.mark.long
def test_one_class_decided_together_is_what_it_always_is(finished_run, tmp_path, monkeypatch):
    monkeypatch.setattr(FewShotDataModule, "several_classes", True)
    answer = evaluate(finished_run, tmp_path)
    for entry in ("test", "test_no_ensemble"):
        found, expected = answer.result[entry], finished_run.result[entry]
        for key in ("miou_per_seed", "fb_iou_per_seed", "iou_per_class", "num_episodes"):
            assert found[key] == expected[key]
    assert answer.result["manifest_sha256"] == finished_run.result["manifest_sha256"]
    assert "exact_match" in answer.result["test"]


@pytest.mark.long
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["way=6"], "way=6: shapes fold 0 val has 5 classes with enough images; expected 1 to as many"),
        (["way=2", "reuse=false"], "way=2: the classes of an episode share the query's features; set reuse=true"),
        (["way=0"], "way=0: expected an integer of at least 1"),
        (["way=2", "generalised=true"], "way=2 and generalised=true, which asks for all novel classes; leave one out"),
        (
            ["generalised=true", "generalised_threshold=1"],
            "generalised_threshold=1.0: expected a number between 0 and 1",
        ),
        (
            ["generalised=true", "test_flip=true"],
            "generalised=true: ViewAverage does not segment base classes; expected a checkpoint of a method that does "
            "beside the novel one (model=hdmnet, model=bam), without test_scales and test_flip",
        ),
        (
            ["generalised=true", "dataset=coco", "paths.data_dir={data_dir}"],
            "generalised=true: ckpt={ckpt} has learnt 15 base classes of shapes, and dataset=coco has 60 on fold=0; "
            "expected the data set of the training",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(finished_run, data_dir, tmp_path, words, message):
    words = [word.format(data_dir=data_dir) for word in words]
    refused = commands.call("evaluate", tmp_path, f"ckpt={best(finished_run)}", *MACHINE, *words)
    assert refused.refusal() == message.format(ckpt=best(finished_run))


def test_a_method_without_base_learner_is_refused_a_generalised_test(tmp_path):
    words = ("model=prototype", "model.encoder=backbone", "backbone=resnet18", "backbone.weights=null")
    shapes = ("dataset.num_val=30", "dataset.image_size=65", "generalised=true")
    refused = commands.call("evaluate", tmp_path, *words, *shapes, *MACHINE)
    assert refused.refusal().startswith("generalised=true: model=prototype has no base learner; expected a checkpoint ")


@pytest.fixture(scope="module")
def answer(finished_run, tmp_path_factory):
    output = tmp_path_factory.mktemp("generalised")
    return evaluate(finished_run, output, "generalised=true", "shot=2", "seeds=2", "generalised_threshold=0.6")


class TestGeneralised:
    """All pictures of the list, base and novel classes at once."""

    @pytest.mark.long
    def test_it_is_the_rule_written_out(self, finished_run, answer):
        cfg = OmegaConf.create(answer.result["config"])
        data = build_few_shot_data(cfg, build_dataset(cfg))
        data.setup("test")
        base, novel = data.class_split.train, data.class_split.test
        segmenter = Segmenter.from_checkpoint(best(finished_run), device="cpu")
        learner = segmenter.model.trunk
        metrics = [SeveralClassesIoU(20, num_base=15) for _ in range(2)]
        taken = set()
        for metric, manifest in zip(metrics, data.test_manifests, strict=True):
            supports = dict(manifest.header["supports"])
            assert tuple(supports) == novel
            used = {one for ids in supports.values() for one in ids}
            taken.add(frozenset(used))
            assert [spec.query_id for spec in manifest] == [one for one in data.dataset.ids("val") if one not in used]
            image, mask = data.dataset.read_image, data.dataset.read_class_mask
            pairs = {str(v): ([*map(image, ids)], [mask(one, v) for one in ids]) for v, ids in supports.items()}
            segmenter.fit(pairs)
            for spec in manifest:
                picture = image(spec.query_id)
                found = np.stack(list(segmenter.predict(picture).probabilities.values()))
                with torch.no_grad():
                    features = learner(segmenter._input([resize_image(picture, (65, 65))]))
                    scores = upsample(learner.classify(features.base_feature), (65, 65))
                labels = upsample(scores, picture.shape[:2])[0].argmax(0).numpy()
                labels = np.where(found.max(0) > 0.6, 16 + found.argmax(0), labels)
                truth = data.dataset.read_label_map(spec.query_id, (*base, *novel))
                metric.update(torch.from_numpy(labels), torch.from_numpy(truth), range(20))
        assert len(taken) == 2  # each seed has its own supports
        test, computed = answer.result["test"], [metric.compute() for metric in metrics]
        for key in ("miou", "miou_base", "miou_novel", "harmonic_mean", "fb_iou", "iou_background"):
            assert test[f"{key}_per_seed"] == pytest.approx([float(one[key]) for one in computed], abs=2e-3), key
        assert test["miou_novel"] > 0.01

    def test_the_result_and_the_table_say_so(self, answer):
        result = answer.result
        assert result["generalised"] is True
        names = class_names(20)
        assert list(result["test"]["iou_per_class"]) == [*names[5:], *names[:5]]  # fold 0
        assert ", generalised 2-shot, " in answer.out
        for row in ("mIoU of base classes", "mIoU of novel classes", "harmonic mean of these"):
            assert row in answer.out

    @pytest.mark.long
    def test_a_low_threshold_leaves_less_to_the_base_learner(self, finished_run, answer, tmp_path):
        words = ("generalised=true", "shot=2", "seeds=1", "episodes=5")
        low, high = (
            evaluate(finished_run, tmp_path / one, *words, f"generalised_threshold={one}").result["test"]
            for one in ("1e-6", "0.999999")
        )
        assert low["num_episodes"] == high["num_episodes"] == 5
        assert (low["miou_base"], low["iou_background"]) == (0, 0)
        assert high["iou_background"] > 0.1
        assert high["miou_novel"] < low["miou_novel"]
