"""Whole files to damage: a tiny VOC tree, a tiny COCO-style folder, and the files of a tiny network that never trained.

For scripts/robustness/bad_inputs.py, scripts/robustness/fuzz.py and the tests.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import write_shapes
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig
from PIL import Image

from hdmnet.apps.segmenter import Segmenter
from hdmnet.config.paths import HYDRA_VERSION_BASE, conf_dir, make_paths_absolute
from hdmnet.config.schemas import register_schemas
from hdmnet.config.values import to_stored
from hdmnet.data.io.masks import read_mask, write_mask
from hdmnet.models.base_learner import BaseLearner
from hdmnet.run import build
from hdmnet.run.checkpoints import save_base_learner

# A training of a few seconds on the embedded pictures, and on a tree of files.
TINY = (
    *("trainer=cpu", "num_workers=0", "dataset.image_size=65", "dataset.num_train=40", "dataset.num_val=30"),
    *("dataset.num_val_episodes=2", "dataset.num_test_episodes=2", "dataset.num_test_seeds=1", "logger=csv"),
    *("dataset.episodes_per_epoch=4", "optim.batch_size=2", "trainer.enable_progress_bar=false"),
)
FILES = (
    *("trainer=cpu", "num_workers=0", "dataset.image_size=65", "dataset.base_image_size=65", "dataset.min_area=128"),
    *("dataset.num_val_episodes=2", "dataset.num_test_episodes=2", "dataset.num_test_seeds=1", "trainer.max_steps=2"),
    *("optim.batch_size=2", "optim.base.batch_size=2", "optim.base.num_val_samples=4", "backbone=resnet18"),
    *("backbone.weights=null", "backbone.feature_channels=64"),
)


def compose_command(command: str, *words: str) -> DictConfig:
    """Compose an entry point's config without running it."""
    register_schemas()
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(conf_dir()), version_base=HYDRA_VERSION_BASE):
        return compose(command, overrides=list(words))


def write_run_files(folder: Path) -> dict[str, Path]:
    """Write what a run leaves, of a network that never trained.

    Args:
        folder: An empty folder.

    Returns:
        Paths of `run` (as checkpoints/best.ckpt), `base` (base_learner.pt), `fitted` (of `Segmenter.save`), `plain` (a
        state dict of some tensors), `manifest` (test episodes) and `catalog` (a cache).
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    cfg = compose_command("train", *TINY)
    make_paths_absolute(cfg, folder)
    data = build.build_few_shot_data(cfg, build.build_dataset(cfg), cache_dir=folder / "catalogs")
    with contextlib.redirect_stderr(io.StringIO()):  # the bar of the catalog
        data.setup("test")
    model = build.build_untrained(cfg, data.num_base).eval()
    learner = cast("BaseLearner", model.get_submodule("trunk.base_learner"))
    paths = {name: folder / f"{name}.pt" for name in ("run", "base", "fitted", "plain", "manifest")}
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    facts = {"method": cfg.model.name, "shot": cfg.shot, "num_base": data.num_base}
    entry = {"config": to_stored(cfg), "facts": facts, "class_names": list(data.novel_names)}
    torch.save({"state_dict": state, "hdmnet": entry, "epoch": 1, "global_step": 4}, paths["run"])
    save_base_learner(learner, paths["base"], {"fold": 0, "dataset": "shapes", "backbone": "resnet_narrow"})
    picture = np.zeros((24, 32, 3), dtype=np.uint8)
    Segmenter.from_checkpoint(paths["run"], device="cpu").fit(picture, (4, 4, 20, 20)).save(paths["fitted"])
    torch.save({key: value[:1] for key, value in list(learner.state_dict().items())[:6] if value.ndim}, paths["plain"])
    data.test_manifests[0].write(paths["manifest"])
    return paths | {"catalog": next((folder / "catalogs").glob("*val*.npz"))}


class Bench:
    """Makes the whole files when they are first asked for.

    Args:
        folder: Where; emptied by nobody.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def run_files(self) -> dict[str, Path]:
        """As `write_run_files`; not to be written to."""
        return write_run_files(self.folder / "run")

    @cached_property
    def _voc(self) -> Path:
        root = self.folder / "voc"
        words = ["--format", "voc", "--num-train", "40", "--num-val", "30", "--image-size", "96", "128"]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            assert write_shapes.main([*words, "--output", str(root)]) == 0
        return root

    def voc(self, place: Path, damage: Callable[[Path], object] | None = None) -> list[str]:
        """A VOC tree of its own for a case.

        Args:
            place: The case's folder.
            damage: Gets the tree.

        Returns:
            The words that train on it.
        """
        root = place / "pascal"
        shutil.copytree(self._voc, root)
        if damage is not None:
            damage(root)
        lists = (f"dataset.{split}_list={root}/ImageSets/Segmentation/{split}.txt" for split in ("train", "val"))
        return ["dataset=pascal", *FILES, *lists, f"paths.data_dir={place}"]

    def changed_run(self, place: Path, change: Callable[[dict[str, Any]], object], name: str = "run") -> Path:
        """A copy of a run's file with another content."""
        content = torch.load(self.run_files[name], map_location="cpu", weights_only=True)
        change(content)
        path = place / f"{name}.ckpt"
        torch.save(content, path)
        return path


def first(root: Path, what: str, split: str = "train") -> Path:
    """The first picture or mask of a VOC tree's list.

    Args:
        root: The tree.
        what: "picture" or "mask".
        split: Whose list.
    """
    name = (root / "ImageSets" / "Segmentation" / f"{split}.txt").read_text().split()[0]
    return root / ("JPEGImages" if what == "picture" else "SegmentationClassAug") / f"{name}{SUFFIX[what]}"


SUFFIX = {"picture": ".jpg", "mask": ".png"}


def cut(path: Path) -> None:
    """Leave half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def repaint(path: Path, value: int, size: tuple[int, int] | None = None) -> None:
    """Fill a mask with one value."""
    write_mask(path, np.full(size or read_mask(path).shape, value, dtype=np.uint8))


def write_coco_folder(root: Path, change: Callable[[dict[str, Any]], object] | None = None) -> Path:
    """Four pictures with three classes in COCO's layout.

    Args:
        root: Where.
        change: Gets the content of the JSON before it is written.

    Returns:
        The root.
    """
    (root / "images").mkdir(parents=True)
    images, annotations = [], []
    for number in range(1, 5):
        Image.new("RGB", (32, 24)).save(root / "images" / f"p{number}.jpg")
        images.append({"id": number, "file_name": f"p{number}.jpg", "height": 24, "width": 32})
        square = [[4.0, 4.0, 20.0, 4.0, 20.0, 16.0, 4.0, 16.0]]
        runs = {"size": [24, 32], "counts": [100, 200, 468]}
        for category, region, crowd in ((1, square, 0), (2, runs, 1), (3, runs, 0)):
            entry = {"id": 10 * number + category, "image_id": number, "category_id": category, "iscrowd": crowd}
            annotations.append(entry | {"segmentation": region, "area": 192.0, "bbox": [4, 4, 16, 12]})
    categories = [{"id": number, "name": f"class {number}"} for number in (1, 2, 3)]
    content: dict[str, Any] = {"images": images, "annotations": annotations, "categories": categories}
    if change is not None:
        change(content)
    (root / "annotations.json").write_text(json.dumps(content))
    return root
