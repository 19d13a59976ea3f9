"""A loss or gradient that is not finite: the run stops with a dump, or the step is as if it had not been."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import lightning as L
import pytest
import torch

from hdmnet.callbacks import non_finite
from hdmnet.callbacks.non_finite import DUMP_KEY, NonFiniteGuard, count_skipped
from hdmnet.data.datasets.shapes.dataset import ShapesDataset
from hdmnet.data.types import SegmentationSample
from hdmnet.runtime.warnings import silence_known_warnings
from hdmnet.tasks.base_learner import BaseLearnerTask, BaseOptimiserSettings
from hdmnet.tasks.few_shot import FewShotTask
from tests.helpers.commands import ROOT, SHAPES, call, load, run
from tests.helpers.toy_method import Painter, TinyLearner, random_episode, toy_task


def sample(index, *, spoilt=False):
    one = random_episode(index, spoilt=spoilt)
    return SegmentationSample(one.query_image, one.query_mask, list(one.query_id))


class Wall(Painter):
    """Its loss is finite where its gradient is not, from the third batch on."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        if len(self.calls) >= 3:
            output.scores = output.scores + (self.head - self.head).sqrt()
        return output


class Seen(L.Callback):
    """The weights and the optimiser's state after each batch."""

    def __init__(self):
        self.weights, self.moments = [], []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.weights.append({key: value.clone() for key, value in pl_module.model.state_dict().items()})
        state = trainer.optimizers[0].state
        self.moments.append([value.clone() for one in state.values() for value in one.values()])


def fit(task, batches, folder, *, policy="stop", **changes):
    silence_known_warnings()
    seen, guard = Seen(), NonFiniteGuard(policy=policy, directory=folder)
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, num_sanity_val_steps=0, limit_val_batches=0, callbacks=[guard, seen], **changes,
    )  # fmt: skip
    seen.guard = guard
    try:
        trainer.fit(task, *[torch.utils.data.DataLoader(list(batches), batch_size=None)] * 2)
    except ValueError as error:
        seen.error = str(error)
    return seen


def test_a_loss_that_is_not_finite_stops_with_its_episodes_and_the_weights_before_the_step(tmp_path):
    seen = fit(toy_task(), [random_episode(1), random_episode(2, spoilt=True), random_episode(3)], tmp_path)
    assert seen.error.startswith(
        "training stopped: the loss is nan in stage 2, step 1 (epoch 0, batch 1); rank 0: "
        "episode 20 (0, query 'q2', supports 's1'), episode 21 (1, query 'q2b', supports 's2'); dump: "
    )
    assert "\n" not in seen.error
    assert "optim.on_nonfinite=skip" in seen.error
    assert len(seen.weights) == 1  # nothing came after it
    content = load(tmp_path / "nonfinite_stage2_step1_rank0.pt")
    assert content[DUMP_KEY]["what"] == "loss"
    assert content[DUMP_KEY]["versions"]["torch"] == torch.__version__
    assert content["batch"]["query_id"] == ["q2", "q2b"]
    assert torch.equal(
        content["batch"]["query_image"].nan_to_num(), random_episode(2, spoilt=True).query_image.nan_to_num()
    )
    assert all(torch.equal(content["state_dict"][key], value) for key, value in seen.weights[0].items())
    (line,) = (tmp_path / "nonfinite.jsonl").read_text().splitlines()
    event = json.loads(line)
    assert (event["epoch"], event["batch"], event["rank"], event["loss"]) == (0, 1, 0, "nan")
    assert event["episodes"][1] == {"class": 1, "query_id": "q2b", "support_ids": ["s2"], "index": 21}
    assert count_skipped(tmp_path) == {}


def test_a_gradient_that_is_not_finite_stops_though_the_loss_is(tmp_path):
    seen = fit(toy_task(Wall()), [random_episode(index) for index in range(4)], tmp_path)
    assert "the gradient is not finite in stage 2, step 2 " in seen.error
    assert math.isfinite(float(load(tmp_path / "nonfinite_stage2_step2_rank0.pt")[DUMP_KEY]["loss"]))


def test_a_skipped_step_changes_neither_weights_nor_the_optimisers_state(tmp_path, caplog):
    batches = [
        random_episode(1),
        random_episode(2, spoilt=True),
        random_episode(3),
        random_episode(4, spoilt=True),
        random_episode(5),
    ]
    seen = fit(toy_task(), batches, tmp_path, policy="skip")
    for spoilt in (1, 3):
        assert seen.weights[spoilt].items() == seen.weights[spoilt - 1].items()
        assert all(map(torch.equal, seen.moments[spoilt], seen.moments[spoilt - 1]))
    assert seen.weights[2]["scale"] != seen.weights[1]["scale"]
    assert seen.weights[4]["scale"].isfinite()
    assert count_skipped(tmp_path) == {"stage 2": 2}
    assert len(list(tmp_path.glob("*.pt"))) == 1  # the first is enough
    assert [line for line in caplog.messages if line.startswith("skipped step (2 so far): the loss is nan")]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_fused_optimiser_leaves_the_step_out_and_the_host_hears_of_it_a_step_later(tmp_path, caplog, accumulate):
    """As on a GPU, where the host would have to wait for the verdict: what is recorded and trained is the same."""
    ends = []
    for name, options in (("waits", {}), ("fused", {"fused": True})):
        batches = [random_episode(i, spoilt=i in (3, 4, 8)) for i in range(1, 9)]
        task, caplog.records[:] = toy_task(**options), []
        seen = fit(task, batches, tmp_path / name, policy="skip", accumulate_grad_batches=accumulate)
        events = [json.loads(line) for line in (tmp_path / name / "nonfinite.jsonl").read_text().splitlines()]
        dumps = [load(path) for path in sorted((tmp_path / name).glob("*.pt"))]
        assert len(dumps) == 1
        for event in events:
            event.pop("dump", None)
        ends.append((seen.weights[-1], events, dumps[0]["state_dict"], seen.guard.num_skipped))
    waiting, fused = ends
    assert fused[1] == waiting[1]
    assert {event["step"] for event in fused[1]} == ({2, 3, 7} if accumulate == 1 else {1, 3})
    assert fused[3] == waiting[3] == len({event["step"] for event in fused[1]})
    for one, other in ((fused[0], waiting[0]), (fused[2], waiting[2])):
        assert all(torch.allclose(one[key], value, rtol=0, atol=1e-7) for key, value in other.items())


def test_a_fused_optimisers_training_stops_with_the_weights_before_the_step(tmp_path):
    batches = [random_episode(i, spoilt=i == 2) for i in range(1, 5)]
    seen = fit(toy_task(fused=True), batches, tmp_path)
    assert seen.error.startswith("training stopped: the loss is nan in stage 2, step 1 (epoch 0, batch 1); rank 0: ")
    content = load(tmp_path / "nonfinite_stage2_step1_rank0.pt")
    assert content["batch"]["query_id"] == ["q2", "q2b"]
    assert all(torch.equal(content["state_dict"][key], value) for key, value in seen.weights[0].items())
    # The last step's verdict is heard too.
    seen = fit(toy_task(fused=True), batches[:2], tmp_path / "last")
    assert "the loss is nan in stage 2, step 1 " in seen.error


def test_skipping_ends_where_nothing_else_comes(tmp_path, monkeypatch):
    monkeypatch.setattr(non_finite, "MAX_SKIPPED_IN_A_ROW", 3)
    seen = fit(toy_task(), [random_episode(i, spoilt=i != 1) for i in range(9)], tmp_path, policy="skip")
    assert seen.error.startswith("training stopped after 3 skipped steps in a row: the loss is nan in stage 2, step 5 ")
    assert count_skipped(tmp_path) == {"stage 2": 4}
    assert len(list(tmp_path.glob("*.pt"))) == 2  # the first, and the one that it stopped at


def test_of_accumulated_batches_the_spoilt_one_is_told(tmp_path):
    batches = [random_episode(1), random_episode(2), random_episode(3), random_episode(4, spoilt=True)]
    seen = fit(toy_task(), batches, tmp_path, accumulate_grad_batches=2)
    assert "step 1 (epoch 0, batch 3); rank 0: episode 40 " in seen.error
    assert "'q3'" not in seen.error


def test_stage_1_keeps_its_running_statistics_clean(tmp_path):
    batches = [sample(1), sample(2, spoilt=True), sample(3)]
    task = BaseLearnerTask(model=TinyLearner(), optimiser=BaseOptimiserSettings())
    seen = fit(task, batches, tmp_path, policy="skip")
    before, after = seen.weights[:2]
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert seen.weights[2]["backbone.1.running_mean"].isfinite().all()
    assert int(seen.weights[2]["backbone.1.num_batches_tracked"]) == 2
    assert count_skipped(tmp_path) == {"stage 1": 1}
    dump = load(next(tmp_path.glob("nonfinite_stage1_step1_rank0.pt")))
    assert all(torch.equal(before[key], dump["state_dict"][key]) for key in before)
    assert dump[DUMP_KEY]["episodes"] == [{"image_id": "q2"}, {"image_id": "q2b"}]


def test_a_new_run_in_the_folder_forgets_its_own_stage_only(tmp_path):
    spoilt = [random_episode(1, spoilt=True), random_episode(2)]
    fit(toy_task(), spoilt, tmp_path, policy="skip")
    fit(BaseLearnerTask(model=TinyLearner(), optimiser=BaseOptimiserSettings()), [sample(1)], tmp_path)
    assert count_skipped(tmp_path) == {"stage 2": 1}
    fit(toy_task(), spoilt, tmp_path, policy="skip")
    assert count_skipped(tmp_path) == {"stage 2": 1}
    fit(toy_task(), [random_episode(1)], tmp_path, policy="skip")
    assert not (tmp_path / "nonfinite.jsonl").exists()


def test_a_dump_that_cannot_be_written_does_not_hide_what_happened(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(non_finite, "write_atomically", full)
    seen = fit(toy_task(), [random_episode(1, spoilt=True)], tmp_path)
    assert "the loss is nan" in seen.error
    assert "dump: none, it could not be written ([Errno 28] No space left on device)" in seen.error


def test_another_policy_is_refused(tmp_path):
    with pytest.raises(ValueError, match="on_nonfinite='ignore': expected stop or skip"):
        NonFiniteGuard(policy="ignore", directory=tmp_path)


def test_frozen_networks_are_not_copied(tmp_path):
    guard = NonFiniteGuard(policy="stop", directory=tmp_path)
    task = BaseLearnerTask(model=TinyLearner(), optimiser=BaseOptimiserSettings())
    task.model.backbone.eval()
    guard.on_train_batch_start(None, task, sample(1), 0)
    assert guard._statistics == []


TWO_RANKS = """
import os
import sys
import lightning as L
import torch
from tests.helpers.toy_method import random_episode, toy_task
from hdmnet.callbacks.non_finite import NonFiniteGuard

class Batches(torch.utils.data.Dataset):
    def __len__(self):
        return 3
    def __getitem__(self, index):  # rank 1 gets the odd ones
        number = 2 * index + int(os.environ.get("LOCAL_RANK", 0))
        return random_episode(number, spoilt=number == 3)

for policy in ("skip", "stop"):
    guard = NonFiniteGuard(policy=policy, directory=f"{sys.argv[1]}/{policy}")
    trainer = L.Trainer(accelerator="cpu", strategy="ddp", devices=2, max_epochs=1, logger=False, callbacks=[guard],
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, limit_val_batches=0,
        use_distributed_sampler=False)
    task = toy_task()
    trainer.fit(task, torch.utils.data.DataLoader(Batches(), batch_size=1, collate_fn=lambda one: one[0]))
    # One write a line: two ranks share the pipe.
    line = f"{policy} {trainer.global_rank} {trainer.global_step} {float(task.model.scale)}\\n"
    os.write(1, line.encode())
"""


@pytest.mark.slow
def test_one_ranks_loss_decides_for_both(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO_RANKS)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    for policy in ("skip", "stop"):
        (line,) = (tmp_path / policy / "nonfinite.jsonl").read_text().splitlines()
        event = json.loads(line)
        assert (event["rank"], event["step"], event["episodes"][1]["query_id"]) == (1, 1, "q3b")
        assert [path.name for path in (tmp_path / policy).glob("*.pt")] == ["nonfinite_stage2_step1_rank1.pt"]
    ends = [line.split() for line in done.stdout.splitlines() if line.startswith(("skip", "stop"))]
    assert sorted(end[:3] for end in ends) == [["skip", "0", "3"], ["skip", "1", "3"]]  # and none of "stop"
    assert ends[0][3] == ends[1][3] != "nan"
    assert done.returncode == 1
    assert done.stderr.count("InputError: training stopped: the loss is nan in stage 2, step 1 ") == 1


# --------------------------------------------------------------------------------------- through the entry points


@pytest.mark.long
def test_the_command_says_it_in_one_line_and_the_dump_shows_it_again(tmp_path, capsys):
    from scripts.inspect import replay

    answer = call("train", tmp_path, *SHAPES, "optim.base.lr=1e30")
    assert answer.code == 1
    (line,) = [line for line in answer.err.splitlines() if "error: " in line]
    assert "error: training stopped: the loss is nan in stage 1, step 1 (epoch 0, batch 1); rank 0: picture" in line
    (dump,) = tmp_path.rglob("nonfinite_stage1_step1_rank0.pt")
    assert replay.main([str(dump)]) == 0
    printed = capsys.readouterr().out
    assert "first output that is not finite: backbone." in printed
    assert "gradient not finite: backbone." in printed
    assert "image_id train-f0-" in printed


class Spoiler(L.Callback):
    """Makes one gradient NaN in the given steps."""

    steps = (1,)

    def on_after_backward(self, trainer, pl_module):
        if trainer.global_step in self.steps and isinstance(pl_module, FewShotTask):
            next(p for p in pl_module.model.parameters() if p.grad is not None).grad.fill_(math.nan)


@pytest.fixture
def spoiler(monkeypatch):
    from hdmnet.run import pipeline

    build = pipeline.build_callbacks
    monkeypatch.setattr(pipeline, "build_callbacks", lambda cfg, where: [*build(cfg, where), Spoiler()])


@pytest.mark.long
def test_a_skipped_step_is_counted_in_the_result_and_said(start, tmp_path, spoiler):
    answer = run("train", tmp_path, *SHAPES, f"ckpt={start}", "optim.on_nonfinite=skip")
    assert answer.result["skipped_steps"] == {"stage 2": 1}
    assert "1 step of stage 2 was skipped" in answer.out
    assert "skipped step (1 so far): the gradient is not finite in stage 2, step 1 " in answer.out


@pytest.mark.long
def test_a_replayed_step_has_the_very_loss_of_the_run(start, tmp_path, spoiler, capsys):
    """Dropout included. The gradient was spoilt from outside, so it is finite this time, and the exit code says so."""
    from scripts.inspect import replay

    assert call("train", tmp_path, *SHAPES, f"ckpt={start}").code == 1
    (dump,) = tmp_path.rglob("nonfinite_stage2_step1_rank0.pt")
    event = load(dump)[DUMP_KEY]
    assert event["episodes"][0]["query_id"].startswith("train-f0-")
    assert event["episodes"][0]["class"] in ShapesDataset().class_names[5:]  # a base class of fold 0, by name
    assert replay.main([str(dump)]) == 1
    printed = capsys.readouterr().out
    assert f"now:         loss {event['loss']}," in printed
    assert "finite this time" in printed


@pytest.mark.long
def test_a_spoilt_picture_is_found_among_the_episodes(start, tmp_path, capsys, spoiler):
    from scripts.inspect import replay

    call("train", tmp_path, *SHAPES, f"ckpt={start}")
    (dump,) = tmp_path.rglob("nonfinite_stage2_step1_rank0.pt")
    content = load(dump)
    content["batch"]["query_image"][1].fill_(math.inf)
    torch.save(content, tmp_path / "spoilt.pt")
    assert replay.main([str(tmp_path / "spoilt.pt")]) == 0
    printed = capsys.readouterr().out.splitlines()
    marked = [line for line in printed if line.endswith("<- not finite alone, too")]
    assert len(marked) == 1
    assert content[DUMP_KEY]["episodes"][1]["query_id"] in marked[0]
    assert "first output that is not finite: trunk.base_learner.backbone" in "\n".join(printed)


def test_replay_refuses_other_files(start, tmp_path, capsys):
    from scripts.inspect import replay

    assert replay.main([str(start)]) == 1
    assert "is no dump of a step; expected a nonfinite_*.pt" in capsys.readouterr().err
    assert replay.main([str(tmp_path / "none.pt")]) == 1
    assert "not found" in capsys.readouterr().err
