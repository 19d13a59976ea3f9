from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hdmnet.models.backbones.build import build_backbone
from hdmnet.models.backbones.prepare import prepare_trunk
from hdmnet.models.hsnet.model import HSNet, correlate, vote
from hdmnet.models.method import Segmentation
from hdmnet.models.packed import PackedRows


def make_model(backbone="resnet_narrow", dilation=None, trainable=()):
    torch.manual_seed(0)
    trunk = prepare_trunk(
        build_backbone(backbone, dilation=dilation),
        layers=[2, 3, 4],
        every_block=True,
        before_relu=True,
        trainable=list(trainable),
    )
    return HSNet(encoder=trunk)


def make_episode(size, shots=1, batch=2):
    torch.manual_seed(shots)
    masks = torch.zeros(batch, shots, *size, dtype=torch.uint8)
    masks[..., size[0] // 4 : size[0] // 2, size[1] // 4 : size[1] // 2] = 1
    return torch.randn(batch, 3, *size), torch.randn(batch, shots, 3, *size), masks


def test_only_what_the_mask_leaves_is_compared():
    """As all positions of the masked features are, which give 0 where the mask does."""
    torch.manual_seed(0)
    query = [F.normalize(torch.randn(2, 5, 3, 4), dim=1) for _ in range(2)]
    kept = torch.rand(2, 4, 5) > 0.6
    kept[1] = False
    dense = [F.normalize(torch.randn(2, 20, 5), dim=2) * kept.flatten(1)[..., None] for _ in range(2)]
    rows = [PackedRows(one[kept.flatten(1)], tuple(kept.flatten(1).sum(1).tolist())) for one in dense]
    expected = torch.stack(
        [
            torch.einsum("bchw,bnc->bhwn", q, s).clamp(min=0).unflatten(3, (4, 5))
            for q, s in zip(query, dense, strict=True)
        ],
        dim=1,
    )
    torch.testing.assert_close(correlate(query, rows, kept), expected, rtol=0, atol=1e-6)
    everywhere = torch.ones_like(kept)
    whole = [PackedRows(one.flatten(0, 1), (20, 20)) for one in dense]  # what a GPU keeps
    torch.testing.assert_close(correlate(query, whole, everywhere), expected, rtol=0, atol=1e-6)


def test_votes_are_counted_by_picture():
    """The picture with one vote at most needs one; the other needs half of its three."""
    votes = torch.tensor([[[0, 1, 1, 0]], [[3, 1, 2, 0]]])
    answers = [
        Segmentation(torch.stack([-(votes > k).float(), (votes > k).float()], dim=1) - 0.5, (1, 4)) for k in range(4)
    ]
    out = vote(answers)
    assert out.prediction.tolist() == [[[0, 1, 1, 0]], [[1, 0, 1, 0]]]
    torch.testing.assert_close(out.logits[:, 1], votes / 4)
    assert out.is_probability


def test_training_takes_the_first_support_only():
    model, (query, supports, masks) = make_model().train(), make_episode((64, 64), shots=3)
    out = model(query, supports, masks)
    assert not out.is_probability
    torch.testing.assert_close(out.scores, model(query, supports[:, :1], masks[:, :1]).scores)
    assert model.eval()(query, supports, masks).is_probability


@pytest.mark.parametrize(("backbone", "size"), [("resnet_narrow", (320, 97)), ("vgg16_plain", (104, 64))])
def test_sizes_of_what_it_answers(backbone, size):
    model = make_model(backbone).eval()
    with torch.no_grad():
        out = model(*make_episode(size, batch=1))
    h, w = (size[0] // 8, size[1] // 8) if backbone == "vgg16_plain" else (-(-size[0] // 8), -(-size[1] // 8))
    assert out.scores.shape == (1, 2, 2 * h, 2 * w)
    assert out.maps["correlation"][0].shape[1:] == (h, w)


def test_sizes_that_leave_unequal_cells_are_refused():
    """As the release adds them by broadcasting."""
    model = make_model("vgg16_plain").eval()
    with pytest.raises(ValueError, match=r"of features of 34x34, 17x17, 8x8 HSNet keeps 2x2, 2x2, 1x1 support cells"):
        model.encode_support(torch.zeros(1, 3, 272, 272), torch.zeros(1, 272, 272))


@pytest.mark.parametrize("dilation", ["release", "torchvision"])
def test_a_dilated_trunk_has_stages_of_one_size(dilation):
    model = make_model(dilation=dilation).eval()
    with torch.no_grad():
        out = model(*make_episode((65, 65), batch=1))
    assert [tuple(one.shape) for one in out.maps["correlation"]] == [(1, 9, 9)] * 3


def test_a_trunk_that_should_learn_is_refused():
    with pytest.raises(ValueError, match=r"model\.trunk\.trainable: nothing of this method's trunk learns"):
        make_model(trainable=[4])
