from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from hdmnet.models.hdmnet.decoder import Decoder


def test_equation_1_coarse_to_fine():
    torch.manual_seed(0)
    decoder = Decoder(8, num_stages=3).double().eval()
    stages = [torch.randn(2, 8, *size, dtype=torch.float64) for size in ((13, 17), (7, 9), (4, 5))]
    fine, middle, coarse = decoder.blocks
    x = coarse(stages[2])
    up = F.interpolate(x, (7, 9), mode="bilinear", align_corners=False)
    x = up + middle(stages[1] + up)
    up = F.interpolate(x, (13, 17), mode="bilinear", align_corners=False)
    x = up + fine(stages[0] + up)
    torch.testing.assert_close(decoder(stages), decoder.head(x), rtol=0, atol=1e-12)


def test_one_stage_needs_no_upsampling():
    decoder = Decoder(8, num_stages=1).double().eval()
    x = torch.randn(1, 8, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(decoder([x]), decoder.head(decoder.blocks[0](x)), rtol=0, atol=1e-12)


def test_composed_layers_learn_as_the_layers_do():
    torch.manual_seed(0)
    decoder = Decoder(4, num_stages=1).double().eval()
    for norm in (m for m in decoder.modules() if isinstance(m, nn.BatchNorm2d)):
        for value in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
            value.uniform_(0.5, 2)
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    gradients = []
    for logits in (decoder([x]), decoder.head(decoder.blocks[0](x))):  # borders too: biases meet the padding there
        objective = (logits * torch.linspace(-1, 1, logits.numel(), dtype=torch.float64).view_as(logits)).sum()
        gradients.append(torch.autograd.grad(objective, [x, *decoder.parameters()]))
    for ours, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-10)


def test_statistics_of_the_batch_are_learnt_where_the_normalisation_trains():
    decoder = Decoder(4, num_stages=1).train()
    decoder([torch.randn(2, 4, 5, 6)])
    assert all(m.num_batches_tracked == 1 for m in decoder.modules() if isinstance(m, nn.BatchNorm2d))


def test_layers_of_the_release():
    decoder = Decoder(64, num_stages=3)
    block = [type(m) for m in decoder.blocks[0]]
    assert block == [nn.Conv2d, nn.BatchNorm2d, nn.Conv2d, nn.BatchNorm2d, nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    assert [tuple(m.weight.shape) for m in decoder.head if isinstance(m, nn.Conv2d)] == [
        (256, 64, 1, 1), (256, 256, 3, 3), (2, 256, 1, 1),
    ]  # fmt: skip
    assert not any(isinstance(m, nn.ReLU) for m in decoder.head)
    assert len(decoder.head) == 5
