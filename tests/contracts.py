"""What every part of a kind must do: subclass a contract, give its fixture, and its tests run on your own part."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hdmnet.data.catalog import load_catalog
from hdmnet.models.backbones.base import encode
from hdmnet.models.base_learner import BaseLearner
from hdmnet.models.method import FINAL, EncodesApart, FewShotMethod, Segmentation, encodes_apart
from hdmnet.models.trunk import FrozenTrunk


class MethodContract:
    """A few-shot method. Give a fixture `method` that builds a tiny one.

    Attributes:
        size: (H, W) of the pictures; not square, and not a multiple of the strides.
        tolerance: Of what is computed in another order.
        ignore_is_background: Whether the method takes 255 in a support mask for background; else it is neither class.
    """

    size = (49, 66)
    tolerance = 1e-4
    ignore_is_background = True

    @pytest.fixture
    def method(self):
        raise NotImplementedError

    @pytest.fixture
    def evaluated(self, method):
        return method.eval()

    def episodes(self, shots=1, batch=2):
        """Queries, supports and masks with 0, 1 and 255."""
        generator = torch.Generator().manual_seed(shots)
        height, width = self.size
        images = torch.randn(batch, 1 + shots, 3, height, width, generator=generator)
        masks = torch.zeros(batch, shots, height, width, dtype=torch.uint8)
        masks[..., height // 5 : height // 2, width // 4 : width // 2] = 1
        masks[..., height // 2 : height // 2 + 3, :] = 255
        return images[:, 0], images[:, 1:], masks

    def loss(self, output, target):
        """What a step lowers: of all predictions; a method with parts that only its own loss uses has another."""
        logits = [output.logits, *(value for value in output.auxiliary_logits.values() if value.requires_grad)]
        return torch.stack([F.cross_entropy(one, target, ignore_index=255) for one in logits]).sum()

    @staticmethod
    def segment(method, *episodes):
        with torch.no_grad():
            return method(*episodes)

    def same(self, one, other, *, exact=False):
        tolerance = 0 if exact else self.tolerance
        torch.testing.assert_close(one.logits, other.logits, rtol=tolerance, atol=tolerance)

    @pytest.mark.parametrize("shots", [1, 3])
    def test_what_it_answers(self, evaluated, shots):
        assert isinstance(evaluated, FewShotMethod)
        out = self.segment(evaluated, *self.episodes(shots))
        assert isinstance(out, Segmentation)
        assert out.size == self.size
        assert out.logits.shape == (2, 2, *self.size)
        assert out.prediction.shape == (2, *self.size)
        assert out.prediction.dtype == torch.int64
        assert set(out.prediction.unique().tolist()) <= {0, 1}
        for name in evaluated.reported:
            assert out.logits_of(name).shape == (2, 2, *self.size)
        assert FINAL in evaluated.reported
        assert FINAL not in out.auxiliary
        maps = [one for several in out.maps.values() for one in several]
        assert all(one.ndim == 3 and len(one) == 2 for one in maps)
        values = [out.logits, *out.auxiliary_logits.values(), *maps]
        assert all(value.isfinite().all() for value in values)

    @pytest.mark.parametrize("value", [0, 1, 255])
    def test_masks_of_one_value_give_finite_numbers(self, method, value):
        query, supports, masks = self.episodes()
        out = method(query, supports, torch.full_like(masks, value))
        assert out.logits.isfinite().all()
        if out.logits.requires_grad:  # else it has nothing to learn
            out.logits.sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())

    @pytest.mark.parametrize("shots", [1, 5])
    def test_objects_smaller_than_a_cell_of_the_features_give_finite_numbers(self, method, shots):
        """One pixel, between those that a smaller mask is made of, in one support or in all."""
        query, supports, masks = self.episodes(shots)
        masks[:, 0] = 0
        masks[:, 0, 3, 5] = 1
        for small in (masks, masks[:, :1].expand_as(masks)):
            out = method(query, supports, small)
            assert out.logits.isfinite().all()
            method.zero_grad()
            if out.logits.requires_grad:  # not where nothing learns
                out.logits.sum().backward()
            assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
    def test_255_in_a_support_mask_is_no_object(self, evaluated, dtype):
        query, supports, masks = self.episodes()
        plain = torch.where(masks == 255, 0, masks)
        ours, same, other = (self.segment(evaluated, query, supports, m) for m in (masks.to(dtype), masks, plain))
        self.same(ours, same, exact=True)
        if self.ignore_is_background:
            self.same(ours, other, exact=True)
        else:
            assert not torch.equal(ours.logits, other.logits)

    def test_answers_are_deterministic_and_do_not_depend_on_the_batch(self, evaluated):
        episodes = self.episodes(shots=3)
        before = {key: value.clone() for key, value in evaluated.state_dict().items()}
        whole = self.segment(evaluated, *episodes)
        self.same(self.segment(evaluated, *episodes), whole, exact=True)
        alone = self.segment(evaluated, *(x[1:] for x in episodes))
        torch.testing.assert_close(alone.logits[0], whole.logits[1], rtol=self.tolerance, atol=self.tolerance)
        assert all(torch.equal(value, before[key]) for key, value in evaluated.state_dict().items())

    def test_encoding_apart_gives_the_same(self, evaluated):
        query, supports, masks = self.episodes(shots=3)
        apart = encodes_apart(evaluated)
        assert isinstance(apart, EncodesApart)
        with torch.no_grad():
            queries = apart.encode_query(query)
            # Taken apart and put together again, as the feature store does.
            kept = apart.encode_support(supports.flatten(0, 1), masks.flatten(0, 1))
            pieces = kept.unbind()
            assert len(pieces) == 6
            assert sum(piece.num_bytes for piece in pieces) == kept.num_bytes > 0
            out = apart.match(type(queries).stack(queries.unbind()), type(kept).stack(pieces), shots=3)
        self.same(out, self.segment(evaluated, query, supports, masks))

    def test_parameter_groups_hold_what_learns_once(self, method):
        groups, doubled = method.parameter_groups(1e-3), method.parameter_groups(2e-3)
        ids = [id(p) for group in groups for p in group["params"]]
        assert len(ids) == len(set(ids))
        assert set(ids) == {id(p) for p in method.parameters() if p.requires_grad}
        names = [group["name"] for group in groups]
        assert len(names) == len(set(names))
        assert [group["lr"] for group in doubled] == pytest.approx([2 * group["lr"] for group in groups])

    def test_a_step_moves_what_learns_and_nothing_else(self, method):
        torch.manual_seed(0)
        query, supports, masks = self.episodes()
        before = {name: p.detach().clone() for name, p in method.named_parameters()}
        if not any(p.requires_grad for p in method.parameters()):
            method.train()(query, supports, masks)
            assert all(torch.equal(p, before[name]) for name, p in method.named_parameters())
            return
        optimizer = torch.optim.SGD(method.train().parameter_groups(1e-2), lr=1e-2)
        out = method(query, supports, masks, torch.zeros(len(query), dtype=torch.int64))
        target = torch.where(masks[:, 0] == 255, 255, masks[:, 0]).long()
        self.loss(out, target).backward()
        learning = {name for name, p in method.named_parameters() if p.requires_grad}
        gradients = {name: p.grad for name, p in method.named_parameters()}
        assert {name for name, gradient in gradients.items() if gradient is not None} == learning
        optimizer.step()
        moved = {name for name, p in method.named_parameters() if not torch.equal(p, before[name])}
        # Not what rounding swallows: the gradient of a bias before a softmax is 0, but for that.
        stepped = {name: before[name] - 1e-2 * gradients[name] for name in learning}
        assert moved == {name for name in learning if not torch.equal(stepped[name], before[name])}
        assert len(moved) > 0.9 * len(learning)  # a bias before a softmax has a gradient of exactly 0

    def test_weights_come_back_from_a_file(self, evaluated):
        episodes = self.episodes()
        file = io.BytesIO()
        torch.save(evaluated.state_dict(), file)
        file.seek(0)
        other = copy.deepcopy(evaluated)
        with torch.no_grad():
            for value in other.state_dict().values():
                value.zero_()
        other.load_state_dict(torch.load(file, weights_only=True))
        self.same(self.segment(other, *episodes), self.segment(evaluated, *episodes), exact=True)

    def test_it_can_be_pickled(self, evaluated):
        copied = pickle.loads(pickle.dumps(evaluated))
        episodes = self.episodes()
        self.same(self.segment(copied, *episodes), self.segment(evaluated, *episodes), exact=True)


class DatasetContract:
    """What the rest relies on in a data set; the subclass has a fixture `dataset`, which returns a small one.

    Attributes:
        fold: The fold whose classes are looked at.
    """

    fold = 0

    def some_ids(self, dataset):
        """The first and last three images of each list."""
        return [image_id for split in dataset.splits for image_id in (dataset.ids(split)[:3] + dataset.ids(split)[-3:])]

    def test_ids_are_unique_texts_in_a_fixed_order(self, dataset):
        dataset.check()
        for split in dataset.splits:
            ids = dataset.ids(split)
            assert ids
            assert all(type(image_id) is str for image_id in ids)
            assert len(set(ids)) == len(ids)
            assert dataset.ids(split) == ids

    def test_pictures_and_masks_fit(self, dataset):
        for image_id in self.some_ids(dataset):
            image = dataset.read_image(image_id)
            assert (image.dtype, image.ndim, image.shape[2]) == (np.uint8, 3, 3)
            assert dataset.image_size(image_id) in (None, image.shape[:2])
            areas = dataset.class_areas(image_id)
            assert set(areas) <= set(range(1, len(dataset.class_names) + 1))
            for value, area in areas.items():
                mask = dataset.read_class_mask(image_id, value)
                assert (mask.dtype, mask.shape) == (np.uint8, image.shape[:2])
                assert set(np.unique(mask)) <= {0, 1, 255}
                assert (mask == 1).sum() == area > 0
            absent = next((value for value in range(1, len(dataset.class_names) + 1) if value not in areas), None)
            assert absent is None or not (dataset.read_class_mask(image_id, absent) == 1).any()

    def test_label_maps_agree_with_the_masks(self, dataset):
        for image_id in self.some_ids(dataset):
            classes = sorted(dataset.class_areas(image_id), reverse=True)[:2]
            labels = dataset.read_label_map(image_id, classes)
            assert (labels.dtype, labels.shape) == (np.uint8, dataset.read_image(image_id).shape[:2])
            for label, value in enumerate(classes, start=1):
                own = dataset.read_class_mask(image_id, value) == 1
                assert own[labels == label].all()  # where classes overlap another one may be on top
            assert set(np.unique(labels)) <= {0, 255, *range(1, len(classes) + 1)}

    def test_the_pixels_of_several_classes_are_those_of_each(self, dataset):
        for image_id in self.some_ids(dataset):
            classes = [*list(dataset.class_areas(image_id))[:2], len(dataset.class_names)]
            found = dataset.find_classes(image_id, classes)
            each = [dataset.read_class_mask(image_id, value) == 1 for value in classes]
            np.testing.assert_array_equal(found, np.any(each, axis=0))

    def test_classes_are_held_out(self, dataset):
        split = dataset.class_split(self.fold)
        values = set(range(1, len(dataset.class_names) + 1))
        for classes in (split.train, split.val, split.test):
            assert list(classes) == sorted(set(classes) & values)
        assert split.val
        assert split.test
        assert not set(split.train) & set(split.novel)
        assert dataset.class_split(self.fold) == split

    def test_everything_is_read_again_alike_and_in_another_process(self, dataset):
        copy = pickle.loads(pickle.dumps(dataset))
        for other in (dataset, copy):
            for split in dataset.splits:
                assert other.ids(split) == dataset.ids(split)
                assert other.fingerprint(split) == dataset.fingerprint(split)
        for image_id in self.some_ids(dataset):
            image = dataset.read_image(image_id)
            np.testing.assert_array_equal(copy.read_image(image_id), image)
            image.fill(0)  # what is handed out is the caller's
            assert dataset.read_image(image_id).any() or not copy.read_image(image_id).any()
            for value in dataset.class_areas(image_id):
                np.testing.assert_array_equal(
                    copy.read_class_mask(image_id, value), dataset.read_class_mask(image_id, value)
                )

    def test_the_catalog_holds_the_areas(self, dataset):
        split = dataset.splits[-1]
        catalog = load_catalog(dataset, split, None, num_workers=0, progress=False)
        assert catalog.ids.tolist() == dataset.ids(split)
        assert catalog.class_names == tuple(dataset.class_names)
        for position in {0, len(catalog) - 1}:
            rows = catalog.image_index == position
            found = dict(zip(catalog.class_value[rows].tolist(), catalog.area[rows].tolist(), strict=True))
            assert found == dataset.class_areas(str(catalog.ids[position]))


def random_norms(module):
    """Give every batch normalisation values that do something; returns the module."""
    for norm in module.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
            torch.nn.init.uniform_(norm.bias, -0.5, 0.5)
            norm.running_mean.uniform_(-0.5, 0.5)
            norm.running_var.uniform_(0.5, 2)
    return module


class BackboneContract:
    """Give the fixture `backbone`: one with random weights, small enough for a CPU."""

    @pytest.fixture
    def backbone(self):
        raise NotImplementedError

    @pytest.mark.parametrize("size", [(65, 65), (64, 96), (71, 105)])
    def test_features_are_as_declared_at_any_size(self, backbone, size):
        with torch.no_grad():
            levels = encode(backbone.eval(), torch.randn(1, 3, *size))
        strides = [info.stride for info in backbone.feature_info]
        assert strides == sorted(strides)
        assert [tuple(level.shape[1:]) for level in levels] == [
            (info.channels, -(-size[0] // info.stride), -(-size[1] // info.stride)) for info in backbone.feature_info
        ]

    def test_a_trunk_of_it_computes_what_the_plain_modules_compute(self, backbone):
        """Folding, channels-last and a copy change nothing; frozen and deterministic whatever `train()` says."""
        learner = random_norms(BaseLearner(backbone=backbone, num_base=3, feature_channels=8)).eval()
        images = torch.randn(2, 3, 71, 89)
        with torch.no_grad():
            *expected, layer4 = encode(backbone, images, size_of=-2)[-3:]
            expected += [layer4, learner.reduce(learner.pyramid_pooling(layer4))]
            logits = learner(images)
        before = copy.deepcopy(learner.state_dict())
        trunk = FrozenTrunk(learner).train()
        features = trunk(images)
        found = [features.layer2, features.layer3, features.layer4, features.base_feature]
        assert len({level.shape[2:] for level in found}) == 1
        for ours, theirs in zip(found, expected, strict=True):
            assert (ours - theirs).abs().max() <= 2e-5 * theirs.abs().max()
            assert not ours.requires_grad
        assert torch.equal(trunk(images).base_feature, features.base_feature)
        upsampled = torch.nn.functional.interpolate(
            trunk.classify(features.base_feature), images.shape[2:], mode="bilinear", align_corners=True
        )
        assert (upsampled - logits).abs().max() <= 1e-4 * logits.abs().max()
        assert all(torch.equal(value, before[key]) for key, value in learner.state_dict().items())

    def test_it_is_copied_and_pickled(self, backbone):
        images = torch.randn(1, 3, 65, 65)
        file = io.BytesIO()
        torch.save(backbone.eval(), file)
        file.seek(0)
        with torch.no_grad():
            expected = encode(backbone, images)
            for other in (copy.deepcopy(backbone), torch.load(file, weights_only=False)):
                assert other.feature_info == backbone.feature_info
                for ours, theirs in zip(encode(other, images), expected, strict=True):
                    assert torch.equal(ours, theirs)

    def test_all_of_it_learns_in_stage_1(self, backbone):
        learner = BaseLearner(backbone=backbone, num_base=3, feature_channels=8).train()
        learner(torch.randn(2, 3, 65, 65)).sum().backward()
        without = [name for name, p in learner.named_parameters() if p.requires_grad and p.grad is None]
        assert not without, "these would stop a training on several devices"
