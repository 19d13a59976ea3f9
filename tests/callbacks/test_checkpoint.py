"""What is written when, and what a failure, damage or a signal costs."""

from __future__ import annotations

import logging
import os
import resource
import shutil
import signal
import warnings

import pytest
import torch

from hdmnet.callbacks import checkpoint as module
from hdmnet.callbacks.checkpoint import RunCheckpoint
from hdmnet.runtime import signals
from hdmnet.runtime.checkpoint_file import newest_whole, read_checkpoint
from hdmnet.runtime.warnings import silence_known_warnings
from tests.helpers.tiny_training import Killed, fit


@pytest.fixture(autouse=True)
def silent():
    with warnings.catch_warnings():
        silence_known_warnings()
        yield


@pytest.fixture
def written(monkeypatch):
    """Collects (name, step) of every file that is written."""
    log = []
    real = module.write_durably

    def write(content, path, *, before=None):
        real(content, path, before=before)
        log.append((path.name.partition(".")[0], content["global_step"]))

    monkeypatch.setattr(module, "write_durably", write)
    return log


def at(count, action):
    """Does something at a training step."""

    def reach(place, number):
        if (place, number) == ("train", count):
            action()

    return reach


def dead():
    raise Killed


# ---------------------------------------------------------------------------------------------------------- when, what


def test_what_is_written_when_the_clock_says_nothing(tmp_path, written):
    _, callback = fit(tmp_path, minutes=60)
    ends = [("last", step) for step in (6, 6, 12, 12)]  # before and after each validation
    assert [one for one in written if one[0] == "last"] == [*ends, ("last", 15)]
    best = [step for name, step in written if name == "best"]
    assert best[0] == 6
    assert read_checkpoint(tmp_path / "checkpoints" / "best.ckpt")["global_step"] == best[-1]
    assert sorted(file.name for file in (tmp_path / "checkpoints").iterdir()) == [
        "best.ckpt", "last-previous.ckpt", "last.ckpt"
    ]  # fmt: skip
    assert read_checkpoint(tmp_path / "checkpoints" / "last-previous.ckpt")["global_step"] == 12
    assert callback.failures == 0


def test_the_clock_adds_checkpoints(tmp_path, written, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])

    def minute(place, number):
        now[0] += 60.0 * (place == "train")

    fit(tmp_path, minutes=2, kill=minute, limit_val_batches=0)
    # Two minutes after the last one, by whatever it was written: the end of an epoch counts.
    assert [step for _, step in written] == [2, 4, 6, 8, 10, 12, 14, 15]


def test_less_may_be_better(tmp_path):
    callback = RunCheckpoint(dirpath=tmp_path, monitor="loss", mode="min")
    assert callback.best_model_path == ""
    with pytest.raises(ValueError, match="mode='best'; expected max or min"):
        RunCheckpoint(dirpath=tmp_path, monitor="loss", mode="best")
    with pytest.raises(ValueError, match="every_n_minutes=-1; expected"):
        RunCheckpoint(dirpath=tmp_path, monitor="loss", every_n_minutes=-1)


def test_a_trial_run_writes_nothing(tmp_path):
    fit(tmp_path, fast_dev_run=True)
    assert not (tmp_path / "checkpoints").exists()


def test_nothing_in_a_checkpoint_is_run_when_it_is_read(tmp_path):
    fit(tmp_path)
    for file in (tmp_path / "checkpoints").iterdir():
        torch.load(file, weights_only=True)


# -------------------------------------------------------------------------------------------------------------- signals


def test_a_signal_ends_a_training_after_its_step(tmp_path):
    with signals.handling_signals(), pytest.raises(signals.Stopped, match="SIGTERM") as stop, signals.polling():
        fit(tmp_path, minutes=60, kill=at(8, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert (stop.value.saved, stop.value.exit_code) == ("step 8", 75)
    assert read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 8


def test_a_signal_ends_a_validation_at_once(tmp_path):
    def reach(place, number):
        if (place, number) == ("val", 5):
            os.kill(os.getpid(), signal.SIGTERM)
        assert (place, number) != ("val", 6)

    with signals.handling_signals(), pytest.raises(signals.Stopped) as stop, signals.polling():
        fit(tmp_path, minutes=60, kill=reach)
    assert stop.value.saved == "step 12"
    last = read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    assert (last["global_step"], last["hdmnet_position"]["validating"]) == (12, True)


def test_a_signal_before_the_first_step_leaves_nothing(tmp_path):
    def signalled():
        os.kill(os.getpid(), signal.SIGTERM)
        fit(tmp_path)

    with signals.handling_signals(), pytest.raises(signals.Stopped) as stop, signals.polling():
        signalled()
    assert stop.value.saved is None
    assert not (tmp_path / "checkpoints").exists()


# ------------------------------------------------------------------------------------------------- full disks, damage


def test_a_full_disk_costs_checkpoints_and_not_the_run(tmp_path, caplog):
    """A limit on the size of files: writing beyond it fails as writing to a full disk does."""
    whole, _ = fit(tmp_path / "whole")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size):
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))

    def reach(place, number):
        at(4, limit(2000))(place, number)
        at(10, limit(limits[0]))(place, number)

    try:
        task, callback = fit(tmp_path / "full", kill=reach)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), task.parameters(), strict=True))
    assert (tmp_path / "full" / "metrics.csv").read_text() == (tmp_path / "whole" / "metrics.csv").read_text()
    assert callback.failures == 9  # of steps 4 to 9, before, in and after the validation of step 6
    said = [record.message for record in caplog.records if "CHECKPOINT NOT WRITTEN" in record.message]
    assert len(said) == 9
    assert "at step 4: " in said[0]
    assert "File too large" in said[0]
    assert sorted(file.name for file in (tmp_path / "full" / "checkpoints").iterdir()) == [
        "best.ckpt", "last-previous.ckpt", "last.ckpt"
    ]  # fmt: skip
    # The best of what could be written: step 6 could not.
    assert read_checkpoint(callback.best_model_path)["global_step"] > 6


def test_the_best_is_what_the_disk_holds(tmp_path, monkeypatch):
    def refuse(content, path, *, before=None):
        if path.name == "best.ckpt":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_durably", refuse)
    _, callback = fit(tmp_path)
    assert (callback.best_model_path, callback.best_model_score) == ("", None)
    assert callback.failures >= 1


def test_a_folder_that_vanishes_is_made_again(tmp_path):
    _, callback = fit(tmp_path, kill=at(9, lambda: shutil.rmtree(tmp_path / "checkpoints")))
    assert callback.failures == 0
    assert read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 15


@pytest.mark.long
@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "missing"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(tmp_path, damage, caplog):
    whole, _ = fit(tmp_path / "whole")
    with pytest.raises(Killed):
        fit(tmp_path / "run", kill=at(9, dead))
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    content = bytearray(last.read_bytes())
    middle = content.index(read_checkpoint(last)["state_dict"]["net.0.weight"].numpy().tobytes())
    content[middle] ^= 1
    kinds = {"cut": content[: len(content) // 2], "bit": content, "empty": b""}
    last.unlink() if damage == "missing" else last.write_bytes(kinds[damage])
    point = newest_whole(last.parent)
    assert point.name == "last-previous.ckpt"
    assert ("CHECKPOINT DAMAGED" in caplog.text) == (damage != "missing")
    task, _ = fit(tmp_path / "run", resume=point)
    assert len(task.seen) == 8  # from step 7
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), task.parameters(), strict=True))


def test_two_damaged_checkpoints_are_refused_not_ignored(tmp_path):
    with pytest.raises(Killed):
        fit(tmp_path, kill=at(9, dead))
    for name in ("last.ckpt", "last-previous.ckpt"):
        (tmp_path / "checkpoints" / name).write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"last\.ckpt and .*last-previous\.ckpt cannot be read; expected a whole one"):
        newest_whole(tmp_path / "checkpoints")
    assert newest_whole(tmp_path / "nowhere") is None


def test_a_lost_best_checkpoint_is_said_and_sought_anew(tmp_path, caplog):
    with pytest.raises(Killed):
        fit(tmp_path, kill=at(9, dead))
    (tmp_path / "checkpoints" / "best.ckpt").unlink()
    with caplog.at_level(logging.WARNING):
        _, callback = fit(tmp_path, resume=tmp_path / "checkpoints" / "last.ckpt")
    assert "the best is chosen among what comes now" in caplog.text
    assert read_checkpoint(callback.best_model_path)["global_step"] >= 12


def test_the_best_of_a_later_step_counts_when_an_earlier_one_is_resumed(tmp_path):
    """Killed between the writing of best.ckpt and of last.ckpt."""
    _, whole = fit(tmp_path)
    best = tmp_path / "checkpoints" / "best.ckpt"
    before = best.read_bytes()
    with pytest.raises(Killed):
        fit(tmp_path / "again", kill=at(3, dead))
    (tmp_path / "again" / "checkpoints" / "best.ckpt").write_bytes(before)
    _, callback = fit(tmp_path / "again", resume=tmp_path / "again" / "checkpoints" / "last.ckpt")
    assert callback.best_model_score == whole.best_model_score
    assert (tmp_path / "again" / "checkpoints" / "best.ckpt").read_bytes() == before
