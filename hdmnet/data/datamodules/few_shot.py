"""The DataModule of stage 2: episodes.

Validation and test episodes have seeds of their own, independent of the run's: so runs are compared on equal episodes.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from hdmnet.data.datamodules.base import VAL_SEED, FoldDataModule, FoldOptions
from hdmnet.data.datasets.files import refuse_shared_ids
from hdmnet.data.episodes.encode_once import FeatureCost, needed_keys, plan_batches
from hdmnet.data.episodes.generalised import GeneralisedManifest, support_candidates
from hdmnet.data.episodes.manifest import EpisodeManifest, Manifest
from hdmnet.data.episodes.planned_batches import PlannedEvaluation
from hdmnet.data.episodes.rules import EvaluationRules
from hdmnet.data.episodes.samples import EvalEpisodes, TrainEpisodes, check_files, hold_out_images
from hdmnet.data.types import (
    Episode,
    EvaluationBatch,
    collate_episodes,
)
from hdmnet.data.vanished import Vanished, find_vanished
from hdmnet.runtime.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch
    from torch.utils.data import DataLoader

    from hdmnet.data.catalog import CatalogView
    from hdmnet.data.datasets.base import SegmentationDataset, Split
    from hdmnet.data.episodes.encode_once import FeatureBytes
    from hdmnet.data.types import FeatureKey


log = logging.getLogger(__name__)

FIRST_TEST_SEED = 1
SUPPORT_MASKS = ("given", "ones")


class FewShotDataModule(FoldDataModule):
    """Episodes of one fold: training on the base classes, validation (unless it is on them too) and test on novel ones.

    Attributes:
        class_split: Class values for training, validation and test; known before `setup`, as are the names.
        train_manifest: Unbounded; set by `setup("fit")`.
        val_manifest: Fixed, whatever `seed` is; set by `setup("fit")` and `setup("validate")`.
        test_manifests: One a test seed, fixed too; set by `setup("test")`.
        measure_features: Tells the memory that the model's features of a picture take. Who builds the model sets it, if
            the model can reuse features; validation and test then come as `EvaluationBatch`es, else as `Episode`s.
        keeps_masks: Whether support masks stay on the CPU, for a model that takes them there; set likewise.
        marks_padding: Whether training episodes tell where their query was padded; set likewise.

    Args:
        dataset: The data set.
        shot: Supports an episode (K).
        episodes_per_epoch: Over all processes; None: the number of the fold's training images.
        num_val_episodes: Length of the validation manifest.
        num_test_episodes: Length of each test manifest.
        num_test_seeds: Number of test manifests.
        rules: How validation and test draw, resize and score; None: ours.
        support_mask: `given`, or `ones` for all-ones support masks in evaluation (the control of Table 8).
        check_files: How many pictures and masks of each split `setup` decodes, to find damaged ones before a run.
        allow_repeats: Repeat supports where a class has too few images, instead of leaving the class out.
        reuse_memory_gb: Memory, in 10^9 bytes and for each process, for features that evaluation keeps to reuse them;
            None: every episode is encoded anew.
        way: Classes of a test episode (N).
        generalised: Test all pictures of the test list on base and novel classes at once, see `GeneralisedManifest`;
            `num_test_episodes` is then the most pictures, None: all.
        options: What both stages take, see `FoldDataModule`.

    Raises:
        ValueError: If an argument is out of range; in `setup` also where every class has too few images for the shot.
    """

    def __init__(
        self,
        dataset: SegmentationDataset,
        *,
        shot: int,
        episodes_per_epoch: int | None = None,
        num_val_episodes: int = 1000,
        num_test_episodes: int | None = 1000,
        num_test_seeds: int = 1,
        rules: EvaluationRules | None = None,
        support_mask: str = "given",
        allow_repeats: bool = False,
        check_files: int = 0,
        reuse_memory_gb: float | None = None,
        way: int = 1,
        generalised: bool = False,
        **options: Unpack[FoldOptions],
    ) -> None:
        self.shot, self.way, self.generalised = shot, way, generalised
        self.episodes_per_epoch = episodes_per_epoch
        self.num_val_episodes = num_val_episodes
        self.num_test_episodes = num_test_episodes
        self.num_test_seeds = num_test_seeds
        self.rules = EvaluationRules() if rules is None else rules
        self.support_mask = support_mask
        self.allow_repeats = allow_repeats
        self.check_files = check_files
        self.reuse_memory_gb = reuse_memory_gb
        self.measure_features: Callable[[], FeatureBytes] | None = None
        self.keeps_masks = self.marks_padding = False
        super().__init__(dataset, **options)
        self.train_manifest: EpisodeManifest | None = None
        self.val_manifest: EpisodeManifest | None = None
        self.test_manifests: tuple[EpisodeManifest | GeneralisedManifest, ...] = ()
        self._trained_on: list[str] = []
        self._told: set[frozenset[int]] = set()
        self._vanished_objects: dict[tuple[Split, str], Vanished] = {}
        self._told_vanished: set[str] = set()

    def _check_arguments(self) -> None:
        super()._check_arguments()
        for name in ("shot", "way", "num_val_episodes", "num_test_episodes", "num_test_seeds", "episodes_per_epoch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise DatasetError(f"{name}={value}; expected at least 1")
        if self.way > 1 and self.generalised:
            raise DatasetError(f"way={self.way} and generalised=true, which asks for all novel classes; leave one out")
        if self.several_classes and self.reuse_memory_gb is None:
            asked = "generalised=true" if self.generalised else f"way={self.way}"
            raise DatasetError(f"{asked}: the classes of an episode share the query's features; set reuse=true")
        if self.support_mask not in SUPPORT_MASKS:
            raise DatasetError(f"support_mask={self.support_mask!r}; expected one of {', '.join(SUPPORT_MASKS)}")

    @property
    def several_classes(self) -> bool:
        """Whether a test episode asks for several classes, which are decided together."""
        return self.way > 1 or self.generalised

    def _splits(self, stage: str | None) -> tuple[Split, ...]:
        also: tuple[Split, ...] = ("train",) if self.generalised and stage == "test" else ()
        return (*super()._splits(stage), *also)

    def setup(self, stage: str | None = None) -> None:
        """Make the manifests that a stage needs: `fit`, `validate`, `test`, or None for all.

        Raises:
            ValueError: Every class has too few images, or images are both trained on and evaluated.
        """
        if stage in (None, "fit") and self.train_manifest is None:
            view = self._train_view()
            self._trained_on = view.ids.tolist()  # stage 1 also on those whose classes have too few for an episode
            check_files(self.dataset, view, self.check_files)
            self.train_manifest = self._manifest(view, "train", self.seed, num_episodes=None)
            if self.episodes_per_epoch is None:
                self.episodes_per_epoch = len(self.train_manifest.view)
        if stage in (None, "fit", "validate") and self.val_manifest is None:
            self.val_manifest = self._base_val_manifest() if self.base_val_share else self._val_manifest()
        if stage in (None, "test") and not self.test_manifests:
            seeds = range(FIRST_TEST_SEED, FIRST_TEST_SEED + self.num_test_seeds)
            make = self._generalised_manifests if self.generalised else self._test_manifests
            self.test_manifests = make(seeds)
        # Of any data set, whatever its lists and its own check: no picture that is trained on is tested on.
        for manifest in (self.val_manifest, *self.test_manifests[:1]):
            if manifest is not None:
                refuse_shared_ids(self._trained_on, manifest.view.ids.tolist())

    def _test_manifests(self, seeds: Sequence[int]) -> tuple[EpisodeManifest, ...]:
        view = self._eval_view(self.test_list, self.class_split.test, FIRST_TEST_SEED)
        return tuple(
            self._manifest(view, self.test_list, seed, num_episodes=self.num_test_episodes, way=self.way)
            for seed in seeds
        )

    def _generalised_manifests(self, seeds: Sequence[int]) -> tuple[GeneralisedManifest, ...]:
        """All pictures of the test list; supports out of the training list where it shows all novel classes."""
        split, novel = self.class_split, self.class_split.test
        if not split.train:
            raise DatasetError(f"generalised=true: {self.dataset.name} has no base classes; set its folds")
        view = self._eval_view(self.test_list, sorted({*split.train, *novel}), FIRST_TEST_SEED)
        lists: tuple[Split, ...] = ("train", self.test_list)
        for supports_from in lists:
            shown = self._catalog(supports_from).view(novel, min_area=self.dataset.min_area)
            candidates = support_candidates(shown, self._vanished(supports_from, self.rules))
            least = min(novel, key=lambda value: len(candidates[value]))
            if len(candidates[least]) >= self.shot:
                break
        else:
            raise DatasetError(
                f"generalised=true: {self._names([least])[0]} has {len(candidates[least])} pictures, shot={self.shot} "
                "asks for as many supports: lower it"
            )
        return tuple(
            GeneralisedManifest(
                self._catalog(self.test_list).ids.tolist(),
                view,
                candidates,
                supports_from=supports_from,
                dataset=self.dataset.name,
                fold=split.fold,
                split=self.test_list,
                shot=self.shot,
                seed=seed,
                num_pictures=self.num_test_episodes,
            )
            for seed in seeds
        )

    def _val_manifest(self) -> EpisodeManifest:
        view = self._eval_view("val", self.class_split.val, VAL_SEED)
        return self._manifest(view, "val", VAL_SEED, num_episodes=self.num_val_episodes)

    def _base_val_manifest(self) -> EpisodeManifest:
        """Validation episodes on the base classes, from training images that nothing is trained on.

        Supports repeat where a class has too few images for the shot; one with a single image is not validated.
        """
        everything = self._base_view()
        others = np.setdiff1d(everything.ids, hold_out_images(everything, self.base_val_share)).tolist()
        view = self._base_view(leave_out=others)
        classes = [value for value in view.classes if len(view.images_of(value)) > 1]
        if not classes:
            raise DatasetError(
                f"selection=base: {self.base_val_share} of the training images, held out to validate on, have no "
                f"base class of {self.dataset.name} twice; raise dataset.base_val_share, train on pictures "
                "with novel classes too (dataset.novel_pixels=ignore), or choose another selection"
            )
        view = self._base_view(classes, leave_out=others)
        check_files(self.dataset, view, self.check_files, VAL_SEED)
        return self._manifest(view, "train", VAL_SEED, num_episodes=self.num_val_episodes, allow_repeats=True)

    def _eval_view(self, split: Split, classes: Sequence[int], seed: int) -> CatalogView:
        """Images for episodes on held-out classes, without the filter of training."""
        view = self._catalog(split).view(
            classes, min_area=self.dataset.min_area, pairs=self.dataset.listed_pairs(split)
        )
        check_files(self.dataset, view, self.check_files, seed)
        return view

    def _manifest(
        self,
        view: CatalogView,
        split: Split,
        seed: int,
        *,
        num_episodes: int | None,
        allow_repeats: bool = False,
        way: int = 1,
    ) -> EpisodeManifest:
        # How queries and supports are drawn is a habit of the evaluation: all shuffle in training.
        rules = EvaluationRules() if num_episodes is None else self.rules
        manifest = EpisodeManifest(
            view,
            dataset=self.dataset.name,
            fold=self.class_split.fold,
            split=split,
            shot=self.shot,
            seed=seed,
            num_episodes=num_episodes,
            protocol=rules.queries,
            supports=rules.supports,
            allow_repeats=self.allow_repeats or allow_repeats,
            vanished=self._vanished(split, rules),
            way=way,
        )
        if manifest.too_few and frozenset(manifest.too_few) not in self._told and self.rank == 0:
            self._told.add(frozenset(manifest.too_few))  # of validation and test mostly the same
            unfiltered = None
            if split == "train" and self.filter_novel:
                unfiltered = self._catalog("train").view(self.class_split.train, min_area=self.dataset.min_area)
            log.warning("%s", manifest.tell_too_few(unfiltered))
        vanish = manifest.tell_vanished()
        # In the control with masks of ones another module has said it.
        if vanish is not None and vanish not in self._told_vanished and self.rank == 0 and self.support_mask == "given":
            self._told_vanished.add(vanish)
            log.warning("%s", vanish)
        return manifest

    def too_few_images(self) -> dict[str, dict[str, int]]:
        """By list, the classes that have too few images for an episode and are left out, with their numbers."""
        known = (self.train_manifest, self.val_manifest, *self.test_manifests[:1])
        return {
            manifest.header["split"]: {self._names([value])[0]: count for value, count in manifest.too_few.items()}
            for manifest in known
            if manifest is not None and manifest.too_few
        }

    def count_batches(self, num_processes: int, what: Split) -> int:
        """Batches of each of several processes: of "train" in an epoch, of "val" and "test" the fewest there can be."""
        if what == "train":
            return (self.episodes_per_epoch or 0) // num_processes // self.batch_size
        manifests = self.test_manifests if what == "test" or self.val_manifest is None else [self.val_manifest]
        specs = (spec for manifest in manifests for spec in manifest)
        # With reuse those that are equal run once.
        count = len({(spec.class_value, spec.query_id, spec.support_ids, spec.others) for spec in specs})
        return max(1, -(-(count // num_processes) // self.eval_batch_size))

    def vanished_objects(self) -> dict[str, dict[str, int]]:
        """By list, how many objects of each class vanish at the network's size; only lists with some."""
        known = (self.train_manifest, self.val_manifest, *self.test_manifests[:1])
        return {
            manifest.header["split"]: {self._names([value])[0]: count for value, count in manifest.num_vanished.items()}
            for manifest in known
            if manifest is not None and manifest.num_vanished
        }

    def _vanished(self, split: Split, rules: EvaluationRules) -> Vanished:
        """Objects of a list that vanish at the network's size; looked for once."""
        key = split, rules.resize
        if key not in self._vanished_objects:
            self._vanished_objects[key] = find_vanished(
                self.dataset,
                split,
                self._catalog(split),
                self.image_size,
                self.cache_dir,
                skip=self.skips is not None,
                progress=self.rank == 0,
                pad=rules.resize == "pad",
            )
        return self._vanished_objects[key]

    def digest(self) -> str:
        """Hex sha256 over the test's images, their classes and areas: the same where the labels are."""
        catalog = self._catalog(self.test_list)
        counts = np.stack([catalog.image_index, catalog.class_value, catalog.area]).astype("<i8")
        return hashlib.sha256(
            "\n".join(catalog.ids.tolist()).encode(errors="surrogateescape") + counts.tobytes()
        ).hexdigest()

    def skipped_files(self) -> list[dict[str, Any]]:
        """What `dataset.on_error=skip` left out so far, on all processes; empty where nothing may be.

        Returns:
            Of each file `split`, `why` (one line that names it) and `episodes`: how many training episodes or samples
            were replaced for it, 0 where it was left out from the start.
        """
        found: list[dict[str, Any]] = [
            {"split": split, "why": why, "episodes": 0}
            for split in sorted(self._catalogs)
            for _, why in self._catalogs[split].skipped
        ]
        replaced = {} if self.skips is None else self.skips.read()
        return found + [{"split": "train", "why": why, "episodes": number} for why, number in replaced.items()]

    def result_facts(self) -> dict[str, Any]:
        """What a run's result says of its data: seeds and hashes of the episodes, labels, files left out."""
        return {
            "manifest_sha256": [manifest.sha256() for manifest in self.test_manifests],
            "seeds": {"train": self.seed, "test": [manifest.header["seed"] for manifest in self.test_manifests]},
            "data_sha256": self.digest(),
            "skipped": self.skipped_files(),
            "too_few_images": self.too_few_images(),
            "vanished": self.vanished_objects(),
            "left_out": [one.as_dict() for one in self.dataset.left_out()],
            **({"way": self.way} if self.way > 1 else {}),
            **({"generalised": True} if self.generalised else {}),
        }

    def train_dataloader(self) -> DataLoader[Episode]:
        """Loader of this rank's training episodes; raises ValueError if an epoch fills no batch."""
        assert self.train_manifest is not None, "setup('fit') comes first"
        episodes = TrainEpisodes(
            self.dataset,
            self.train_manifest,
            classes=self.class_split.train,
            augment=self.augment,
            seed=self.seed,
            ignored=self.ignored,
            skips=self.skips,
            marks_padding=self.marks_padding,
        )
        return self._loader(episodes, collate_episodes, num_train=self.episodes_per_epoch)

    def val_dataloader(self) -> DataLoader[Episode] | DataLoader[EvaluationBatch]:
        """Loader of this rank's share of the validation episodes."""
        assert self.val_manifest is not None, "setup('validate') comes first"
        return self._eval_loader([self.val_manifest], "train" if self.base_val_share else "val", self.val_classes)

    def test_dataloader(self) -> DataLoader[Episode] | DataLoader[EvaluationBatch]:
        """Loader of this rank's share of the test episodes of all seeds."""
        assert self.test_manifests, "setup('test') comes first"
        split = self.test_manifests[0].header.get("supports_from", self.test_list)
        return self._eval_loader(self.test_manifests, split, self.class_split.test)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Leave on the CPU what is read there: a GPU would have to be waited for."""
        names = ["index", "seed_index"]
        if self.trainer is not None and not self.trainer.training:
            names.append("class_index")
        if self.keeps_masks:
            names.append("support_masks")
        kept = {name: getattr(batch, name) for name in names}
        moved = super().transfer_batch_to_device(replace(batch, **dict.fromkeys(kept)), device, dataloader_idx)
        return replace(moved, **kept)

    def _eval_loader(
        self, manifests: Sequence[Manifest], split: Split, classes: Sequence[int]
    ) -> DataLoader[Episode] | DataLoader[EvaluationBatch]:
        episodes = EvalEpisodes(
            self.dataset,
            manifests,
            classes=classes,
            image_size=self.image_size,
            rules=self.rules,
            support_mask=self.support_mask,
            labelled=(*self.class_split.train, *self.class_split.test) if self.generalised else None,
        )
        if self.reuse_memory_gb is None or self.measure_features is None:
            return self._loader(episodes, collate_episodes, num_eval=len(episodes))
        plan = plan_batches(
            manifests,
            batch_size=self.eval_batch_size,
            cost=FeatureCost(self.measure_features(), self._foreground_share(split)),
            budget_bytes=round(self.reuse_memory_gb * 1e9),
            rank=self.rank,
            world_size=self.world_size,
        )
        return self._planned_loader(PlannedEvaluation(episodes, plan))

    def fits(self, measure: Callable[[], FeatureBytes]) -> bool:
        """Whether the features of all pictures of the test, each of such a size, fit into `reuse_memory_gb`."""
        assert self.reuse_memory_gb is not None
        cost = FeatureCost(measure(), self._foreground_share(self.test_list))
        keys = {key for manifest in self.test_manifests for spec in manifest for key in needed_keys(spec)}
        return sum(map(cost, keys)) <= self.reuse_memory_gb * 1e9

    def episode_bytes(self) -> int:
        """The most memory that the features of one episode take."""
        assert self.measure_features is not None
        sizes = self.measure_features()
        return sizes.query + self.shot * max(sizes.empty_support, sizes.full_support)

    def _foreground_share(self, split: Split) -> Callable[[FeatureKey], float]:
        """Share of a support's picture that is foreground; 1 where the picture's size cannot be told."""
        catalog = self._catalog(split)
        pairs = zip(catalog.ids[catalog.image_index].tolist(), catalog.class_value.tolist(), strict=True)
        areas = dict(zip(pairs, catalog.area.tolist(), strict=True))

        def share(key: FeatureKey) -> float:
            size = None if self.support_mask == "ones" else self.dataset.image_size(key.image_id)
            return 1.0 if size is None else float(areas[key.image_id, key.class_value]) / (size[0] * size[1])

        return share
