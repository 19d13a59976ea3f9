"""What every method, backbone and data set has to keep: subclass a contract, give its fixture, and it is tested."""

from __future__ import annotations

import pickle

import numpy as np

from hdmnet.data.catalog import load_catalog


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
