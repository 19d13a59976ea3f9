"""A tiny training ended at every point there is and resumed: same samples, weights, schedule, log and best score."""

from __future__ import annotations

import warnings

import pytest
import torch

from hdmnet.runtime.checkpoint_file import newest_whole, read_checkpoint
from hdmnet.runtime.warnings import silence_known_warnings
from tests.helpers.tiny_training import Data, Killed, fit

SETTINGS = {
    "steps": {},
    "in the middle of an epoch": {"max_steps": 16},
    "epochs": {"max_steps": -1, "max_epochs": 3},
    "accumulation": {"accumulate_grad_batches": 2, "max_steps": 8},
    "validation in an epoch": {"val_check_interval": 0.5},
    "every other epoch": {"check_val_every_n_epoch": 2, "max_steps": 18},
    "less of an epoch": {"limit_train_batches": 4, "max_steps": 10},
    "no validation": {"limit_val_batches": 0},
}


@pytest.fixture(autouse=True)
def silent():
    with warnings.catch_warnings():
        silence_known_warnings()
        yield


def trace(folder, settings, **arguments):
    task, callback = fit(folder, **settings, **arguments)
    last = read_checkpoint(folder / "checkpoints" / "last.ckpt")
    return {
        "weights": torch.cat([one.detach().flatten() for one in task.parameters()]),
        "optimiser": torch.cat([one.flatten() for one in _tensors(last["optimizer_states"])]),
        "random": last["hdmnet_random"][0]["torch"],
        "rest": [last[key] for key in ("lr_schedulers", "global_step", "epoch", "hdmnet_position", "hdmnet_log_rows")],
        "best": callback.best_model_score,
        "log": (folder / "metrics.csv").read_text() if (folder / "metrics.csv").is_file() else None,
    }, task.seen


def _tensors(value):
    if isinstance(value, torch.Tensor):
        return [value.double()]
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [one for item in values for one in _tensors(item)]


def killer(place, count):
    def kill(*here):
        if here == (place, count):
            raise Killed

    return kill


@pytest.mark.long
@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_killed_anywhere_ends_as_the_undisturbed_one(tmp_path, name):
    settings = SETTINGS[name]
    expected, expected_seen = trace(tmp_path / "whole", settings)
    every = 1 if name == "steps" else 4  # the others differ in how epochs end
    points = [("train", count) for count in range(every, len(expected_seen) + 1, every)]
    points += [] if name == "no validation" else [("val", count) for count in (1, 5, 9)]
    for place, count in points:
        folder = tmp_path / f"{place}{count}"
        try:
            fit(folder, kill=killer(place, count), **settings)
        except Killed:
            pass
        else:
            assert place == "val"  # there are fewer of them
            continue
        point = newest_whole(folder / "checkpoints")
        found, seen = trace(folder, settings, resume=point)
        for key, value in expected.items():
            same = torch.equal(value, found[key]) if isinstance(value, torch.Tensor) else value == found[key]
            assert same, (place, count, key, value, found[key])
        assert seen == expected_seen[len(expected_seen) - len(seen) :], (place, count)
        if point is not None and place == "train":
            per_step = settings.get("accumulate_grad_batches", 1)
            assert len(expected_seen) - len(seen) >= (count - 1) // per_step * per_step, "steps were repeated"


def test_a_run_killed_again_and_again(tmp_path):
    expected, expected_seen = trace(tmp_path / "whole", {})
    steps = 0
    while steps < len(expected_seen):
        steps += 2
        try:
            found, _ = trace(
                tmp_path / "run", {}, resume=newest_whole(tmp_path / "run" / "checkpoints"), kill=killer("train", 3)
            )
            break
        except Killed:
            continue
    assert all(torch.equal(expected[key], found[key]) for key in ("weights", "optimiser", "random"))
    assert (expected["log"], expected["best"]) == (found["log"], found["best"])


def test_a_finished_training_trains_no_more(tmp_path):
    expected, _ = trace(tmp_path, {})
    found, seen = trace(tmp_path, {}, resume=tmp_path / "checkpoints" / "last.ckpt")
    assert seen == []
    assert (found["log"], found["best"]) == (expected["log"], expected["best"])


# ---------------------------------------------------------------------------------------- another number of processes


@pytest.mark.long
@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 6, 5])
def test_another_batch_goes_on_with_the_same_samples(tmp_path, batch_size):
    """What fills no batch at the end of an epoch is dropped, as ever."""
    whole = [index for _, batch in trace(tmp_path / "whole", {"max_steps": 18})[1] for index in batch]
    with pytest.raises(Killed):
        fit(tmp_path / "run", kill=killer("train", 9))  # after 8 steps: 16 samples, 4 into the second epoch
    point = newest_whole(tmp_path / "run" / "checkpoints")
    task, _ = fit(tmp_path / "run", resume=point, data=Data(batch_size=batch_size), max_steps=30)
    seen = [index for _, batch in task.seen for index in batch]
    expected = whole[16:36]
    fits = 8 // batch_size * batch_size  # of the 8 samples that are left of the epoch
    next_epoch = 12 // batch_size * batch_size
    assert seen[:fits] == expected[:fits]
    assert seen[fits : fits + next_epoch] == expected[8 : 8 + next_epoch]


def test_two_processes_take_turns_where_one_has_stopped(tmp_path):
    with pytest.raises(Killed):
        fit(tmp_path, kill=killer("train", 9))
    data = [Data(batch_size=1, world=(rank, 2)) for rank in (0, 1)]
    for one in data:
        one.start, one.samples_per_epoch = (1, 4), 12
    shares = [[index for batch in one.train_dataloader() for index in batch.tolist()] for one in data]
    assert shares == [[16, 18, 20, 22], [17, 19, 21, 23]]


def test_the_epochs_of_a_run_keep_their_length(tmp_path):
    with pytest.raises(Killed):
        fit(tmp_path, kill=killer("train", 9))
    task, _ = fit(tmp_path, resume=newest_whole(tmp_path / "checkpoints"), data=Data(samples=100), max_steps=14)
    assert task.seen[0] == (1, [16, 17])
    assert task.seen[-1] == (2, [26, 27])
