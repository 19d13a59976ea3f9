from __future__ import annotations

import threading

import torch
from torch import nn

from hdmnet.models.backbones.module_outputs import ModuleOutputs, find_unneeded


class Net(nn.Module):
    """Three steps; a fourth comes after what is wanted, and the head never runs."""

    def __init__(self):
        super().__init__()
        self.first, self.later, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1), nn.Linear(5, 2)
        self.stages = nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()), nn.Conv2d(4, 4, 1))

    def forward_features(self, images):
        return self.later(self.stages(self.first(images)))


def test_later_modules_and_those_that_never_run_are_thrown_away():
    net, names, images = Net(), ["first", "stages.0"], torch.randn(2, 3, 4, 4)
    unneeded = find_unneeded(net, names, images)
    assert unneeded == ["stages.1", "later", "head"]
    expected = [net.first(images), net.stages[0](net.first(images))]
    outputs = ModuleOutputs(net, names, unneeded)
    assert all(torch.equal(*pair) for pair in zip(outputs(images), expected, strict=True))
    assert {name.split(".")[1] for name, _ in outputs.named_parameters()} == {"first", "stages"}
    assert len(list(outputs.parameters())) == 4


def test_threads_do_not_get_each_others_outputs():
    outputs = ModuleOutputs(Net(), ["first", "stages.0"], [])
    entered, found = threading.Barrier(2), {}

    def wait(*_):
        entered.wait(timeout=30)  # both have seen all their outputs

    outputs.net.stages[1].register_forward_pre_hook(wait)

    def run(size):
        found[size] = [output.shape[-1] for output in outputs(torch.randn(1, 3, size, size))]

    threads = [threading.Thread(target=run, args=(size,)) for size in (4, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {4: [4, 4], 6: [6, 6]}
