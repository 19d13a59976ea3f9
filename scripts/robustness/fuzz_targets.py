"""What fuzz.py gives its mutated inputs to: the readers of files, as the entry points use them, and these."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import fuzz_folders
import fuzz_mutations as mutate
import fuzz_reference as reference
import numpy as np
import prepare_coco
import prepare_common
import torch
from bad_input_bench import TINY, compose_command, write_coco_folder, write_run_files
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from hdmnet.apps.segmenter import Segmenter
from hdmnet.callbacks.build import build_callbacks
from hdmnet.cli import entry_point
from hdmnet.cli.errors import known_keys
from hdmnet.config.stored import evaluation_config
from hdmnet.config.values import to_plain
from hdmnet.data.catalog import class_areas, load_catalog
from hdmnet.data.datasets.folder.dataset import FolderDataset
from hdmnet.data.episodes.manifest import read_manifest
from hdmnet.data.io import masks, pictures, user_pictures
from hdmnet.data.io.object_masks import read_object_mask
from hdmnet.data.io.upright import read_upright
from hdmnet.loggers.build import build_loggers
from hdmnet.models.official import read_state_dict
from hdmnet.reporting.collect import collect
from hdmnet.run import build, pipeline
from hdmnet.run.checkpoints import load_base_learner, run_entry
from hdmnet.run.disk_check import check_free_disk
from hdmnet.run.result import make_result, write_result
from hdmnet.runtime.checkpoint_file import read_checkpoint
from hdmnet.runtime.errors import CheckpointError, refusals_as, user_message

# Where a run writes, and what starts other processes, is the user's to say: a fuzzed value would be obeyed.
_LEFT_OUT = ("paths", "hydra", "sweep", "launcher", "callbacks", "logger", "local", "trainer.default_root_dir")


@dataclass(frozen=True)
class Kind:
    """One kind of input.

    Attributes:
        share: How many of them a round of all kinds tries.
        name: File name of the input, from which readers tell what it is.
        seeds: Whole inputs, to be mutated.
        mutate: Changes one.
        read: Gives the file to the readers; raises what they raise.
    """

    share: int
    name: str
    seeds: tuple[bytes, ...]
    mutate: Callable[[bytes, random.Random], bytes]
    read: Callable[[Path], None]


def all_kinds(scratch: Path) -> dict[str, Kind]:
    """The kinds of input, with whole ones made in a folder.

    Args:
        scratch: An empty folder.
    """
    runs, trees = _Checkpoints(scratch / "seeds"), _Trees(scratch / "trees")
    pictures = _pictures()
    folders = tuple(json.dumps(fuzz_folders.describe(layout)).encode() for layout in ("index", "binary", "fss"))
    return {
        "png": Kind(120, "mask.png", pictures["png"], mutate.mutate_png, _read_mask),
        "jpeg": Kind(120, "picture.jpg", pictures["jpeg"], mutate.mutate_bytes, _read_picture),
        "other pictures": Kind(40, "picture.tif", pictures["other"], mutate.mutate_bytes, _read_picture),
        "coco json": Kind(80, "annotations.json", (trees.coco,), mutate.mutate_coco, trees.read_coco),
        "own folder": Kind(40, "folder.json", folders, fuzz_folders.mutate, fuzz_folders.read),
        "list": Kind(40, "classes.txt", trees.lists, mutate.mutate_lines, trees.read_lists),
        "result.json": Kind(20, "result.json", (runs.result,), mutate.mutate_json, lambda path: void(collect([path]))),
        "manifest": Kind(20, "episodes.jsonl", (runs.manifest,), mutate.mutate_bytes, _read_manifest),
        "catalog cache": Kind(5, "cache.npz", (runs.catalog,), mutate.mutate_zip, runs.read_catalog),
        "checkpoint": Kind(8, "input.ckpt", runs.files, mutate.mutate_zip, runs.read),
        "checkpoint's content": Kind(8, "input.ckpt", runs.files, mutate_checkpoint, runs.read),
        "command line": Kind(4, "words.json", (b"[]",), mutate_command, run_command),
    }


def void(_: object) -> None:
    """Drop a value."""


# ----------------------------------------------------------------------------------------------------------- pictures


def _pictures() -> dict[str, tuple[bytes, ...]]:
    """Small pictures of many kinds, as bytes."""
    rng = np.random.default_rng(0)
    colours, values = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8), np.zeros((24, 32), dtype=np.uint8)
    values[4:12, 6:20], values[0] = 3, 255
    palette = Image.fromarray(values)
    palette.putpalette(masks.voc_palette())
    exif = Image.Exif()
    exif[0x0112] = 6

    def save(picture: Image.Image, form: str, **options: Any) -> bytes:
        output = io.BytesIO()
        picture.save(output, format=form, **options)
        return output.getvalue()

    rgb, grey = Image.fromarray(colours), Image.fromarray(values)
    deep = Image.fromarray(values.astype(np.uint16) * 257)
    return {
        "png": (
            *(save(palette, "PNG"), save(grey, "PNG"), save(rgb, "PNG"), save(rgb.convert("RGBA"), "PNG")),
            *(save(deep, "PNG"), save(grey.convert("1"), "PNG"), save(rgb, "PNG", exif=exif)),
        ),
        "jpeg": (
            *(save(rgb, "JPEG"), save(rgb, "JPEG", progressive=True), save(grey, "JPEG")),
            *(
                save(rgb.convert("CMYK"), "JPEG"),
                save(rgb, "JPEG", exif=exif),
                save(rgb, "JPEG", restart_marker_rows=1),
            ),
        ),
        "other": (*(save(rgb, form) for form in ("TIFF", "BMP", "WEBP", "GIF")), save(deep, "TIFF")),
    }


def _read_mask(path: Path) -> None:
    first = _first_refusal(
        lambda: reference.same(masks.read_mask(path), reference.index_mask(path), "class indices"),
        lambda: reference.same(read_object_mask(path, f"mask {path}"), reference.object_mask(path), "object"),
        lambda: user_pictures.read_user_mask(path, np.zeros((24, 32, 3), dtype=np.uint8)),
        lambda: _read_picture(path),
    )
    if first is not None:
        raise first


def _read_picture(path: Path) -> None:
    first = _first_refusal(
        lambda: reference.same(pictures.read_image(path), reference.picture(path, upright=False), "stored picture"),
        lambda: pictures.read_size(path),
        lambda: reference.same(read_upright(path), reference.picture(path, upright=True), "upright picture"),
        lambda: reference.same(user_pictures.read_user_picture(path)[0], read_upright(path), "user's picture"),
    )
    if first is not None:
        raise first


def refusal(error: BaseException) -> str | None:
    """The message of an error that says what a user has to mend; None for any other."""
    if isinstance(error, mutate.RefusedError):
        return str(error)
    return user_message(error) if isinstance(error, Exception) else None


def _first_refusal(*readers: Callable[[], object]) -> Exception | None:
    """Try every reader; what is no refusal is raised at once."""
    first: Exception | None = None
    for read in readers:
        try:
            read()
        except Exception as error:
            if refusal(error) is None:
                raise
            first = first or error
    return first


# -------------------------------------------------------------------------------------------------- data sets of files


class _Trees:
    """A user's folder in COCO's layout, and lists of ids, classes and folds."""

    def __init__(self, root: Path) -> None:
        self.root = write_coco_folder(root)
        self.coco = (root / "annotations.json").read_bytes()
        self.lists = (b"p1\np2\np3\n", b"class 1\nclass 2\nclass 3\n", b"class 1,class 2\nclass 3\n")

    def read_coco(self, path: Path) -> None:
        """As `dataset=folder` reads it, and as scripts/data/prepare_coco.py paints it."""
        first = _first_refusal(lambda: self._compare(path), lambda: self._paint(path))
        if first is not None:
            raise first

    def _read_folder(self, **arguments: Any) -> FolderDataset:
        dataset = FolderDataset(self.root, layout="coco", **arguments)
        dataset.check()
        for image_id in dataset.ids("val"):
            class_areas(dataset, image_id)
        return dataset

    def _compare(self, path: Path) -> None:
        """Read a JSON, and hold each class's mask against pycocotools'."""
        dataset = self._read_folder(annotations=str(path))
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        coco = reference.coco_index(content)
        names = {str(category["name"]): category["id"] for category in coco.dataset["categories"]}
        for image in coco.dataset["images"]:
            image_id = PurePosixPath(str(image["file_name"]).replace("\\", "/")).with_suffix("").as_posix()
            regions, ignored = reference.coco_masks(coco, image["id"], crowd=None)
            for region in regions.values():
                ignored &= ~region
            for value, name in enumerate(dataset.class_names, start=1):
                mask = dataset.read_class_mask(image_id, value)
                expected = np.where(regions.get(names[name], False), 1, np.where(ignored, 255, 0))
                reference.same(mask, expected, f"{name} in {image_id}")

    def _paint(self, path: Path) -> None:
        painted = path.parent / "painted"
        try:
            instances = prepare_coco.load_instances(path, self.root / "images", painted)
        except (ValueError, OSError) as error:  # what the script prints as one line
            raise mutate.RefusedError(str(error)) from None
        problems = prepare_common.paint_chunk(instances.items, values=instances.values, crowd="ignore")
        if any("\n" in problem for problem in problems):
            raise RuntimeError(f"a problem has several lines: {problems}")
        if not problems:
            coco = reference.coco_index(json.loads(path.read_bytes()))
            for image in coco.dataset["images"]:
                file = painted / PurePosixPath(str(image["file_name"])).with_suffix(".png")
                reference.same(reference.painted(coco, image["id"]), reference.index_mask(file), f"painted {file.name}")

    def read_lists(self, path: Path) -> None:
        """As a list of ids, of classes, and of folds."""
        first = _first_refusal(
            lambda: self._same_lines(path, self._read_folder(val_list=str(path)).ids("val")),
            lambda: self._same_lines(path, self._read_folder(classes=str(path)).class_names),
            lambda: self._read_folder(folds=str(path)),
        )
        if first is not None:
            raise first

    def _same_lines(self, path: Path, found: Sequence[str]) -> None:
        lines = path.read_bytes().decode("utf-8-sig").splitlines()
        expected = [line.strip() for line in lines if line.strip()]
        if len(found) != len(expected) or not all(map(str.startswith, expected, found)):  # an id may have its suffix
            raise reference.WrongError(f"read {list(found)}, expected {expected}")


def _read_manifest(path: Path) -> None:
    manifest = read_manifest(path)
    void([manifest[index] for index in range(len(manifest))])


# ---------------------------------------------------------------------------------------------- checkpoints and results


class _Checkpoints:
    """Whole files of a run: checkpoint, base learner, fitted segmenter, plain weights, manifest, catalog, result."""

    def __init__(self, folder: Path) -> None:
        paths = write_run_files(folder)
        self.files = tuple(paths[name].read_bytes() for name in ("run", "base", "fitted", "plain"))
        self.manifest, self.cache = paths["manifest"].read_bytes(), paths["catalog"]
        self.catalog = self.cache.read_bytes()
        entry = torch.load(paths["run"], map_location="cpu", weights_only=True)["hdmnet"]
        self.dataset = build.build_dataset(OmegaConf.create(entry["config"]))
        self.learner = build.build_base_learner(OmegaConf.create(entry["config"]), 15, weights=None)
        test = {"miou": 0.5, "fb_iou": 0.5, "miou_per_seed": [0.5], "num_episodes": 2}
        test["iou_per_class"] = dict.fromkeys(entry["class_names"], 0.5)
        config = to_plain(OmegaConf.create(entry["config"]))
        result = make_result(config, {"final": test}, {"manifest_sha256": "0", "timings": {}})
        self.result = write_result(folder / "result.json", result).read_bytes()

    def read(self, path: Path) -> None:
        """As evaluate, predict, `base_ckpt` and the official release's reader take a checkpoint."""
        readers = (lambda: self._evaluate(path), lambda: self._segment(path), lambda: self._base_learner(path))
        first = _first_refusal(*readers, lambda: self._official(path))
        if first is not None:
            raise first

    def _evaluate(self, path: Path) -> None:
        content = read_checkpoint(path)
        about = run_entry(content, path)
        if about is not None:
            cfg = evaluation_config(compose_command("evaluate", *TINY[:2]), about["config"], [], f"ckpt={path}")
            build.build_dataset(cfg)
            pipeline._refuse_other_fold(cfg, content)

    def _official(self, path: Path) -> None:
        with refusals_as(CheckpointError):
            read_state_dict(path)

    def _segment(self, path: Path) -> None:
        Segmenter.from_checkpoint(path, device="cpu")

    def _base_learner(self, path: Path) -> None:
        load_base_learner(self.learner, path, dataset="shapes", backbone="resnet_narrow", fold=0)

    def read_catalog(self, path: Path) -> None:
        """A damaged cache is built anew: the file's place in the cache folder is what counts."""
        folder = path.parent / "catalogs"
        folder.mkdir(exist_ok=True)
        os.replace(path, folder / self.cache.name)
        found = load_catalog(self.dataset, "val", folder, num_workers=0, progress=False)
        whole = load_catalog(self.dataset, "val", self.cache.parent, num_workers=0, progress=False)
        if not all(np.array_equal(getattr(found, name), getattr(whole, name)) for name in ("image_index", "area")):
            raise RuntimeError("a damaged catalog was believed")


def mutate_checkpoint(data: bytes, rng: random.Random) -> bytes:
    """Change values of what a checkpoint holds; it stays a file that torch reads."""
    content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    for key, entry in content.items():
        if key.startswith("hdmnet") and isinstance(entry, dict) and rng.random() < 0.9:
            content[key] = mutate.mutate_tree(entry, rng)
    state = content.get("state_dict", content)
    if rng.random() < 0.4 and isinstance(state, dict) and state:
        key = rng.choice(sorted(state))
        odd = (torch.zeros(0), torch.full((2, 2), float("nan")), torch.zeros(1, dtype=torch.complex64), 3, None, "x")
        state[rng.choice((key, "", "model.x"))] = rng.choice(odd)
    output = io.BytesIO()
    torch.save(content, output)
    return output.getvalue()


# -------------------------------------------------------------------------------------------------------- command lines


def mutate_command(_: bytes, rng: random.Random) -> bytes:
    """An entry point with words."""
    command = rng.choice(("train", "train", "evaluate", "predict"))
    keys = [key for key in known_keys(command) if not key.startswith(_LEFT_OUT)]
    return json.dumps([command, *mutate.mutate_words(keys, rng)]).encode()


def run_command(path: Path) -> None:
    """Run an entry point up to its first step; raises ValueError with its one line where it refuses."""
    command, *words = json.loads(path.read_bytes())
    job = {"train": _prepare_training, "evaluate": _prepare_evaluation, "predict": _prepare_prediction}[command]
    run_dir = path.parent / "run"
    tiny = {"train": TINY, "evaluate": ("trainer=cpu",), "predict": ()}[command]
    where = [f"hydra.run.dir={run_dir}"] if command != "predict" else [f"output={run_dir}"]
    argv, out, err = sys.argv, io.StringIO(), io.StringIO()
    environment = dict(os.environ)
    GlobalHydra.instance().clear()
    sys.argv = [command, *tiny, *words, *where, f"paths.output_dir={path.parent}"]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = entry_point.run_command(command, job)
    finally:
        sys.argv = argv
        os.environ.clear()
        os.environ.update(environment)
    lines = [line for line in err.getvalue().splitlines() if line.startswith("error: ")]
    if code in (1, 2) and len(lines) == 1:
        raise mutate.RefusedError(lines[0])
    if code:
        raise RuntimeError(f"exit code {code} with {err.getvalue()[-2000:]!r}")


def _prepare_training(cfg: DictConfig) -> None:
    """What `experiment.train` does before the first step, without stage 1."""
    pipeline._check_config(cfg, resumed=False)
    dataset = build.build_dataset(cfg)
    data = build.build_few_shot_data(cfg, dataset)
    data.setup()
    check_free_disk(cfg, data.num_base)
    build.build_task(cfg, build.build_untrained(cfg, data.num_base), data)
    build.build_trainer(cfg, "fuzz", callbacks=build_callbacks(cfg, "train"), logger=build_loggers(cfg, "train"))


def _prepare_evaluation(cfg: DictConfig) -> None:
    if cfg.ckpt is None:
        raise mutate.RefusedError("ckpt is not given")
    read_checkpoint(cfg.ckpt)


def _prepare_prediction(cfg: DictConfig) -> None:
    from hdmnet.apps.predict import find_queries
    from hdmnet.apps.supports import parse_supports

    parse_supports(cfg.support), find_queries(cfg.query)
    void(OmegaConf.to_container(cfg.official))
    Segmenter.from_checkpoint(str(cfg.ckpt), device=cfg.device, image_size=cfg.image_size)
