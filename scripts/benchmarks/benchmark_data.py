"""Sections of the benchmark on the data: training pipeline, catalog, start-up. These need the whole package."""

from __future__ import annotations

import itertools
import multiprocessing
import pickle
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from benchmark_measure import Context, Row, interleave, private_memory, trim_memory
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from hdmnet.data import catalog as catalog_module
from hdmnet.data.catalog import Catalog, load_catalog
from hdmnet.data.class_split import ClassSplit, split_classes
from hdmnet.data.datasets.base import Split
from hdmnet.data.datasets.files import fingerprint_files
from hdmnet.data.datasets.shapes.dataset import ShapesDataset
from hdmnet.data.datasets.tree import TreeDataset
from hdmnet.data.episodes.manifest import EpisodeManifest
from hdmnet.data.episodes.samples import TrainEpisodes
from hdmnet.data.transforms import build_augment
from hdmnet.data.types import collate_episodes

ROOT = Path(__file__).resolve().parents[2]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE, SCALE = 473, (0.9, 1.1)  # of PASCAL-5i
NUM_PICTURES, PICTURE_SIZE, JPEG_QUALITY = 120, (375, 500), 90
NUM_EPISODES, BATCH = 60, 4
NUM_IMAGES, NUM_CLASSES, CLASSES_AN_IMAGE = 82_000, 80, 3  # of COCO 2014
WORKER_EPISODES = 2000


class FolderPictures(TreeDataset):
    """JPEGs and grey PNG masks in one folder.

    Args:
        root: The folder.
        id_list: The images.
        class_names: Names of the classes.
        min_area: Fewest pixels for a class to count in an image.
    """

    name = "benchmark"

    def __init__(
        self, root: Path, id_list: list[str], class_names: tuple[str, ...], min_area: int = 2 * 32 * 32
    ) -> None:
        super().__init__(root, None, None, num_folds=4, split_rule="contiguous", min_area=min_area)
        self.id_list = id_list
        self.class_names = class_names

    def ids(self, split: Split) -> list[str]:
        """The images, of both splits."""
        return self.id_list

    def image_path(self, image_id: str) -> Path:
        """Path of a picture."""
        return self.root / f"{image_id}.jpg"

    def mask_path(self, image_id: str) -> Path:
        """Path of a mask."""
        return self.root / f"{image_id}.png"

    def fingerprint(self, split: Split) -> str:
        """Over the masks, as those of real data sets."""
        return fingerprint_files(self.root, names=[f"{image_id}.png" for image_id in self.id_list])


class ReleaseEpisodes(Dataset[tuple[Tensor, ...]]):
    """A training pipeline as the release has it: OpenCV, float32 from the start, the base labels a file of their own.

    Scale, rotation, blur, flip and resize one after the other on the picture and each of its label maps, then a float
    tensor, normalised here, with int64 labels.

    Args:
        dataset: Pictures and grey masks; beside the mask `x.png` lie the base labels `x.base.png`.
        manifest: Episodes, the same as ours.
        side: Side of the result.
    """

    def __init__(self, dataset: FolderPictures, manifest: EpisodeManifest, side: int) -> None:
        self.dataset = dataset
        self.manifest = manifest
        self.side = side
        self.mean, self.std = [255 * value for value in MEAN], [255 * value for value in STD]

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        """Query, its labels, its base labels, supports, their labels."""
        spec = self.manifest[index]
        rng = random.Random(index)
        query, labels, base = self.read(spec.query_id, spec.class_value, rng, with_base=True)
        supports = [self.read(image_id, spec.class_value, rng) for image_id in spec.support_ids]
        images, masks = zip(*supports, strict=True)
        return query, labels, base, torch.stack(images), torch.stack(masks)

    def read(self, image_id: str, value: int, rng: random.Random, *, with_base: bool = False) -> tuple[Tensor, ...]:
        """Picture (3, H, W) float32, its labels (H, W) int64, and if asked for the base labels."""
        path = self.dataset.image_path(image_id)
        image = np.float32(cv2.cvtColor(cv2.imread(str(path), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB))  # type: ignore[arg-type]
        classes: Any = cv2.imread(str(path.with_suffix(".png")), cv2.IMREAD_GRAYSCALE)
        labels = np.zeros_like(classes)
        labels[classes == value] = 1
        labels[classes == 255] = 255
        maps = [labels]
        if with_base:
            maps.append(cv2.imread(str(path.with_suffix(".base.png")), cv2.IMREAD_GRAYSCALE))
        image, maps = self.augment(image, maps, rng)
        tensor = torch.from_numpy(image.transpose(2, 0, 1)).float()
        for channel, mean, std in zip(tensor, self.mean, self.std, strict=True):
            channel.sub_(mean).div_(std)
        return tensor, *(torch.from_numpy(labels).long() for labels in maps)

    def augment(self, image: Any, maps: list[Any], rng: random.Random) -> tuple[Any, list[Any]]:
        """Scale, rotate, blur, flip, resize."""
        nearest = cv2.INTER_NEAREST
        factor = rng.uniform(*SCALE)
        image = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_LINEAR)
        maps = [cv2.resize(one, None, fx=factor, fy=factor, interpolation=nearest) for one in maps]
        if rng.random() < 0.5:
            height, width = image.shape[:2]
            matrix = cv2.getRotationMatrix2D((width / 2, height / 2), rng.uniform(-10, 10), 1)
            size, border = (width, height), cv2.BORDER_CONSTANT
            image = cv2.warpAffine(
                image, matrix, size, flags=cv2.INTER_LINEAR, borderMode=border, borderValue=self.mean
            )
            maps = [
                cv2.warpAffine(one, matrix, size, flags=nearest, borderMode=border, borderValue=(255,)) for one in maps
            ]
        if rng.random() < 0.5:
            image = cv2.GaussianBlur(image, (5, 5), 0)
        if rng.random() < 0.5:
            image, maps = cv2.flip(image, 1), [cv2.flip(one, 1) for one in maps]
        square = (self.side, self.side)
        return cv2.resize(image, square), [cv2.resize(one, square, interpolation=nearest) for one in maps]


class Counting(Sampler[int]):
    """0, 1, 2, … without an end: a worker is never idle."""

    def __iter__(self) -> Iterator[int]:
        """Count."""
        return itertools.count()


def write_pictures(folder: Path, number: int, size: tuple[int, int]) -> FolderPictures:
    """Write the embedded data set's pictures, with the grain of a camera, as files of a photograph's size."""
    shapes = ShapesDataset(picture_size=size, num_train=number)
    for image_id in shapes.ids("train"):
        Image.fromarray(shapes.read_image(image_id)).save(folder / f"{image_id}.jpg", quality=JPEG_QUALITY)
        Image.fromarray(shapes.read_mask(image_id)).save(folder / f"{image_id}.png")
        base = shapes.read_label_map(image_id, shapes.class_split(0).train)
        Image.fromarray(base).save(folder / f"{image_id}.base.png")
    return FolderPictures(folder, shapes.ids("train"), shapes.class_names, shapes.min_area)


def make_manifest(catalog: Catalog, classes: ClassSplit, *, min_area: int, filter_novel: bool) -> EpisodeManifest:
    """Training episodes, 1-shot, without an end."""
    exclude = classes.novel if filter_novel else ()
    view = catalog.view(classes.train, min_area=min_area, exclude=exclude)
    return EpisodeManifest(view, dataset="benchmark", fold=0, split="train", shot=1, seed=0, num_episodes=None)


def keep_to_one_thread(worker_id: int) -> None:
    """As the DataModules' workers."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def run_data(context: Context) -> list[Row]:
    """The training pipeline against one written as the release describes it, in this process and in a worker."""
    side, size = (65, (96, 128)) if context.quick else (SIDE, PICTURE_SIZE)
    number = 60 if context.quick else NUM_PICTURES
    episodes = 4 if context.quick else NUM_EPISODES
    threads = torch.get_num_threads(), cv2.getNumThreads()
    with tempfile.TemporaryDirectory(prefix="hdmnet-benchmark-") as folder:
        context.progress.step("data: writing pictures")
        dataset = write_pictures(Path(folder), number, size)
        catalog = load_catalog(dataset, "train", None, num_workers=0, progress=False)
        classes = dataset.class_split(0)
        manifest = make_manifest(catalog, classes, min_area=dataset.min_area, filter_novel=False)
        augment = build_augment("official", image_size=(side, side), scale=SCALE, mean=MEAN)
        ours = TrainEpisodes(dataset, manifest, classes=classes.train, augment=augment, seed=0)
        release = ReleaseEpisodes(dataset, manifest, side)
        try:
            keep_to_one_thread(0)
            context.progress.step("data: in this process")
            alone = time_in_process(context, ours, release, episodes)
        finally:
            torch.set_num_threads(threads[0])
            cv2.setNumThreads(threads[1])
        context.progress.step("data: in a worker")
        worker = time_in_worker(context, ours, release, episodes // BATCH)
        bytes_a_picture = statistics.mean(path.stat().st_size for path in Path(folder).glob("*.jpg"))
    rows = [Row("picture_kb", f"size of a picture ({size[1]}x{size[0]})", bytes_a_picture / 1e3, "kB")]
    for where, label, times, wanted in (
        ("process", "in the process, nothing sent", alone, ""),
        ("worker", "of a worker", worker, "≥ 2"),
    ):
        rows += [
            Row(f"{where}_release_episodes_s", f"float32 pipeline, {label}", 1 / times["release"], "episodes/s"),
            Row(f"{where}_episodes_s", f"ours, {label}", 1 / times["ours"], "episodes/s"),
            Row(f"{where}_ratio", f"{label}: times as fast", times["release"] / times["ours"], "", wanted),
        ]
    return rows


def time_in_process(context: Context, ours: Any, release: Any, episodes: int) -> dict[str, float]:
    """Seconds an episode, decoding to collated batch, without what it takes to send it to the training process."""

    def walk(dataset: Any, collate: Any) -> None:
        for start in range(0, episodes, BATCH):
            collate([dataset[index] for index in range(start, start + BATCH)])

    contestants = {
        "ours": lambda: walk(ours, collate_episodes),
        "release": lambda: walk(release, default_collate),
    }
    times = interleave(context, contestants, name="data/process")
    return {name: seconds / episodes for name, seconds in times.items()}


def time_in_worker(context: Context, ours: Any, release: Any, batches: int) -> dict[str, float]:
    """Seconds an episode that one loader worker needs, the sending of the batch included."""
    times: dict[str, list[float]] = {"ours": [], "release": []}
    for _ in range(context.repeats):
        for name, dataset, collate in (("ours", ours, collate_episodes), ("release", release, default_collate)):
            loader: DataLoader[Any] = DataLoader(
                dataset,
                batch_size=BATCH,
                sampler=Counting(),
                collate_fn=collate,
                num_workers=1,
                worker_init_fn=keep_to_one_thread,
            )
            iterator = iter(loader)
            next(iterator), next(iterator), next(iterator)  # start-up, and what was made ahead meanwhile
            start = time.perf_counter()
            for _ in range(batches):
                next(iterator)
            times[name].append((time.perf_counter() - start) / (batches * BATCH))
            del iterator  # ends the worker
    context.samples |= {f"data/worker/{name}": values for name, values in times.items()}
    return {name: statistics.median(values) for name, values in times.items()}


class CocoLike(FolderPictures):
    """As many images and classes as COCO 2014 has, with empty mask files: only a catalog cache stands behind them."""

    name = "coco-like"


class Simulated(NamedTuple):
    """A simulated data set: its dataset, and the (P, 3) pairs of image, class and area that its masks would give."""

    dataset: CocoLike
    pairs: NDArray[np.int64]


def simulate(folder: Path, number: int) -> Simulated:
    """Write the mask files' names, and draw about three classes an image."""
    ids = [f"COCO_train2014_{index:012d}" for index in range(number)]
    for image_id in ids:
        (folder / f"{image_id}.png").touch()
    rng = np.random.default_rng(0)
    present = rng.random((number, NUM_CLASSES)) < CLASSES_AN_IMAGE / NUM_CLASSES
    image, value = np.nonzero(present)
    pairs = np.stack([image, value + 1, rng.integers(1, 100_000, len(image))], axis=1).astype(np.int64)
    return Simulated(CocoLike(folder, ids, tuple(f"class {value}" for value in range(1, NUM_CLASSES + 1))), pairs)


def run_catalog(context: Context) -> list[Row]:
    """A catalog of COCO's size: loading time from the cache, and what a worker adds."""
    number = 2000 if context.quick else NUM_IMAGES
    with tempfile.TemporaryDirectory(prefix="hdmnet-benchmark-") as name:
        folder, cache = Path(name) / "masks", Path(name) / "cache"
        folder.mkdir()
        context.progress.step(f"catalog: {number} images")
        dataset, pairs = simulate(folder, number)
        key = catalog_module.cache_key(dataset, "train", dataset.ids("train"), skip=False)
        assert key is not None, "it has a fingerprint"
        catalog_module.write_cache(cache / f"{dataset.name}-train-{key[:16]}.npz", key, pairs, [])
        context.progress.step("catalog: loading")

        def load() -> Catalog:
            return load_catalog(dataset, "train", cache, num_workers=0, progress=False)

        seconds = interleave(context, {"load": load}, name="catalog")["load"]
        catalog = load()
        assert len(catalog.area) == len(pairs), "the catalog was scanned, not loaded"
        classes = split_classes(NUM_CLASSES, 4, 0, "interleaved")
        manifest = make_manifest(catalog, classes, min_area=dataset.min_area, filter_novel=True)
        augment = build_augment("official", image_size=(SIDE, SIDE), scale=SCALE, mean=MEAN)
        episodes = TrainEpisodes(dataset, manifest, classes=classes.train, augment=augment, seed=0)
        pickled = pickle.dumps(episodes)
        context.progress.step("catalog: workers")
        workers = {method: worker_memory(method, episodes, pickled) for method in ("fork", "spawn")}
    return [
        Row("images", "images", number),
        Row("pairs", "(image, class) pairs", len(pairs)),
        Row("load_s", "load from the cache, list of ids and fingerprint included", seconds, "s", "< 2"),
        Row("pickle_mb", "pickled data set that a spawned worker gets", len(pickled) / 1e6, "MB", "< 50"),
        *(
            Row(f"{method}_mb", f"private memory that the data set adds to a {method}ed worker", value, "MB", "< 50")
            for method, value in workers.items()
        ),
    ]


def worker_memory(method: str, dataset: TrainEpisodes, pickled: bytes) -> float:
    """Private memory, in 10^6 bytes, that drawing episodes adds to a worker process started by a method."""
    context: Any = multiprocessing.get_context(method)
    receiver, sender = context.Pipe(duplex=False)
    # A forked worker has the data set already and must not be given another; a spawned one gets it pickled.
    given = dataset if method == "fork" else pickled
    process = context.Process(target=draw_episodes, args=(given, sender))
    process.start()
    sender.close()
    try:
        return float(receiver.recv()) / 1e6
    finally:
        process.join()


def draw_episodes(given: TrainEpisodes | bytes, sender: Any) -> None:
    """Worker: draw episodes, without decoding pictures, and send the growth of the private memory in bytes."""
    trim_memory()
    before = private_memory()
    dataset = pickle.loads(given) if isinstance(given, bytes) else given
    for index in range(WORKER_EPISODES):
        dataset.manifest[index]
    trim_memory()
    sender.send(private_memory() - before)
    sender.close()


def run_startup(context: Context) -> list[Row]:
    """Start-up of `train`."""
    context.progress.step("startup")
    command = [sys.executable, "-m", "hdmnet.train", "--help"]

    def call() -> None:
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)

    seconds = interleave(context, {"help": call}, name="startup")["help"]
    return [Row("help_s", "python -m hdmnet.train --help", seconds, "s", "< 3")]
