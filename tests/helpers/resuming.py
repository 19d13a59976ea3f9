"""Ends a run in its midst, and compares it with one that was not ended, to the bit."""

from __future__ import annotations

import csv

import torch

from tests.helpers.commands import figures, load


class Killed(Exception):
    pass


def kill(monkeypatch, task, method, count):
    """Lets the method of a task fail when it is called for that time."""
    real, calls = getattr(task, method), []

    def fail(self, *arguments):
        calls.append(1)
        if len(calls) == count:
            raise Killed
        return real(self, *arguments)

    monkeypatch.setattr(task, method, fail)


def log_rows(folder, *, throughput=False):
    """What a run has logged; without its speed, which no two runs share."""
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return rows if throughput else [{k: v for k, v in row.items() if not k.startswith("throughput/")} for row in rows]


def assert_equal(one, other):
    """Of the answers of two runs: weights, optimiser, generators, loss scale, figures and log are the same."""
    for name in ("last.ckpt", "best.ckpt"):
        a, b = load(one.folder / "checkpoints" / name), load(other.folder / "checkpoints" / name)
        assert a["state_dict"].keys() == b["state_dict"].keys()
        assert all(torch.equal(a["state_dict"][key], b["state_dict"][key]) for key in a["state_dict"]), name
        assert str(a["optimizer_states"]) == str(b["optimizer_states"])
        for generator in ("torch", "cuda"):
            assert str(a["hdmnet_random"][0][generator]) == str(b["hdmnet_random"][0][generator])
        assert torch.equal(a["hdmnet_random"][0]["torch"], b["hdmnet_random"][0]["torch"])
        assert a.get("MixedPrecision") == b.get("MixedPrecision")
    assert figures(one.result) == figures(other.result)
    assert one.result["val_miou"] == other.result["val_miou"]
    assert log_rows(one.folder) == log_rows(other.folder)
