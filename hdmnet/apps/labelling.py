"""What the demo's page does: mark an object in some pictures, find its kind in the others, correct, and download.

The examples are the pictures whose marks a person has called right. Pictures are searched one after another in a
thread of their own; what is found is kept in the folder (`label_folder.py`), so that a search that was stopped goes on.

Dimension letters: H0 W0 size of a picture as a viewer shows it, h w size at which it is shown on the page.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import logging
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from PIL import Image

from hdmnet.apps.example import CLASS, write_example
from hdmnet.apps.label_folder import Found, LabelFolder, shown_size
from hdmnet.apps.object_outline import outline_at, outline_in
from hdmnet.apps.predict import draw_map
from hdmnet.apps.review import certainty
from hdmnet.apps.segmenter import Prediction, Segmenter
from hdmnet.apps.supports import Supports, leave_out_vanishing
from hdmnet.data.io.user_pictures import LabelledMask
from hdmnet.run.pretrained import read_about
from hdmnet.runtime.errors import InputError, user_message
from hdmnet.visual.colours import class_colour

if TYPE_CHECKING:
    from hdmnet.data.io.arrays import UInt8Array

log = logging.getLogger(__name__)

MAX_EXAMPLES = 10  # of a class: the latest; more take memory and time and add little


@dataclass(frozen=True)
class About:
    """Which network runs, in words for a user.

    Attributes:
        model: Its method and trunk.
        training: What it learnt from.
        warning: Where it is sure to fail; empty: nothing to warn of.
    """

    model: str
    training: str
    warning: str = ""


def describe(segmenter: Segmenter, *, packaged: bool) -> About:
    """Say which network it is and what it was trained on."""
    recipe, size = segmenter.recipe, "×".join(map(str, segmenter.image_size))
    if recipe.config is None:
        official = recipe.official or {}
        kind = f"{official['method']} on {official['backbone']}, sees {size} pixels"
        return About(kind, f"trained by its authors on {official['dataset']}")
    name, trained = (recipe.config[group]["name"] for group in ("model", "dataset"))
    kind = f"{name} on {recipe.config['backbone']['name']}, sees {size} pixels"
    if packaged:
        photos = len(read_about()["photos"])
        return About(f"the packaged segmenter ({kind})", f"trained on {photos} photographs of PASCAL VOC and COCO")
    if trained == "none":
        return About(kind, "nothing trained but its trunk, on ImageNet's photographs")
    fold = f", fold {recipe.config['fold']}" if recipe.config.get("fold") is not None else ""
    if trained == "shapes":
        warning = (
            "It has seen drawn shapes only: on photographs it will fail. Leave ckpt out for the packaged segmenter."
        )
        return About(kind, f"trained on the drawn SHAPES{fold}", warning)
    return About(kind, f"trained on {trained}{fold}")


@dataclass
class Progress:
    """How far a search is."""

    done: int
    total: int
    began: float

    def tell(self) -> dict[str, Any]:
        """Figures for the page."""
        spent = time.monotonic() - self.began
        left = spent / self.done * (self.total - self.done) if self.done else None
        return {"done": self.done, "total": self.total, "seconds_left": left}


class Labelling:
    """The work on one folder with one network. May be called from several threads; changes come one after another.

    Args:
        segmenter: The network; left as it is.
        folder: What is labelled.
        about: Which network it is.
    """

    def __init__(self, segmenter: Segmenter, folder: LabelFolder, about: About) -> None:
        self.segmenter, self.folder, self.about = segmenter, folder, about
        self.lock = threading.RLock()
        self._network = threading.Lock()  # one picture at a time: more would only fight for the same cores
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._progress: Progress | None = None
        self._errors: dict[str, str] = {}
        self._problem = ""

    # --------------------------------------------------------------------------------------------------------- state

    def state(self) -> dict[str, Any]:
        """All that the page shows, as plain values; pictures that a person should look at first come first."""
        with self.lock:
            examples, names = self._examples(), self.folder.names()
            by = self._fingerprint(examples)
            pictures = [self._tell(name, by) for name in names]
            order = {"found": 0, "waiting": 1, "error": 2, "labelled": 3}
            pictures.sort(key=lambda one: (order[one["state"]], one["certainty"] or 0.0, one["name"]))
            classes = [
                {
                    "name": name,
                    "colour": "#" + bytes(class_colour(value)).hex(),
                    "examples": len(examples.get(name, ())),
                }
                for value, name in enumerate(self.folder.classes, start=1)
            ]
            return {
                "about": asdict(self.about),
                "folder": str(self.folder.root),
                "classes": classes,
                "pictures": pictures,
                "search": None if self._progress is None else self._progress.tell(),
                "problem": self._problem,
            }

    def _tell(self, name: str, by: str) -> dict[str, Any]:
        told: dict[str, Any] = {"name": name, "certainty": None, "stale": False, "error": "", "classes": []}
        told |= {"version": str(self.folder.version(name)), "draft": self.folder.has_draft(name)}
        try:
            height, width = shown_size(self.folder.size(name))
        except (ValueError, OSError) as error:
            return told | {"size": [1, 1], "state": "error", "error": self._words(error)}
        told["size"] = [width, height]
        if self.folder.is_labelled(name):
            return told | {"state": "labelled", "classes": list(self.folder.present(name))}
        if name in self._errors:
            return told | {"state": "error", "error": self._errors[name]}
        found = self.folder.found_summary(name)
        if found is None:
            return told | {"state": "waiting"}
        return told | {"state": "found", "certainty": found[0], "stale": found[1] != by}

    def _words(self, error: Exception) -> str:
        """One line for what a user can mend, without the folder's path; anything else is raised."""
        message = user_message(error)
        if message is None:
            raise error
        return message.replace(f"{self.folder.root}/", "")

    # ------------------------------------------------------------------------------------------------------- examples

    def _examples(self) -> dict[str, list[str]]:
        """Pictures by class whose marks a person has called right, the latest `MAX_EXAMPLES` of each."""
        labelled = [name for name in self.folder.names() if self.folder.is_labelled(name)]
        labelled.sort(key=self.folder.labelled_at)
        found = {
            label: [name for name in labelled if value in self.folder.present(name)][-MAX_EXAMPLES:]
            for value, label in enumerate(self.folder.classes, start=1)
        }
        return {label: names for label, names in found.items() if names}

    def _fingerprint(self, examples: dict[str, list[str]]) -> str:
        """Of the network and the examples: what was found by others is out of date."""
        times = {label: [(name, self.folder.labelled_at(name)) for name in names] for label, names in examples.items()}
        return hashlib.sha256(json.dumps([asdict(self.about), times]).encode()).hexdigest()

    def _fit(self, examples: dict[str, list[str]]) -> Segmenter:
        """The network with its examples."""
        values = {label: value for value, label in enumerate(self.folder.classes, start=1)}
        supports: Supports = {}
        for name in dict.fromkeys(name for names in examples.values() for name in names):
            mask = self.folder.mask(name)
            for label in (label for label, names in examples.items() if name in names):
                if mask is not None:
                    own = np.where(mask == 255, mask, mask == values[label]).astype(np.uint8)
                    pair = (self.folder.picture(name), LabelledMask(own, Path(name)))
                    supports.setdefault(label, []).append(pair)
        supports = leave_out_vanishing(supports, self.segmenter.image_size)
        return copy.copy(self.segmenter).fit(
            {label: tuple(zip(*several, strict=True)) for label, several in supports.items()}
        )

    def add_examples(self) -> None:
        """Add drawn pictures, the first of them marked, and search the others."""
        with tempfile.TemporaryDirectory() as scratch, self.lock:
            support, mask, queries = write_example(Path(scratch))
            if CLASS not in self.folder.classes:
                self.folder.add_class(CLASS)
            value = self.folder.classes.index(CLASS) + 1
            names = [self.folder.add(f"drawn_{path.name}", path.read_bytes()) for path in (support, *queries)]
            with Image.open(mask) as opened:
                marks = (np.asarray(opened) > 0).astype(np.uint8) * np.uint8(value)
            self.folder.write_label(names[0], marks)
        self.search()

    # --------------------------------------------------------------------------------------------------------- search

    def search(self) -> None:
        """Begin to look for the marked kinds of object in all other pictures that were not searched so.

        Raises:
            ValueError: There is no example, or nothing to search.
        """
        self.stop()
        with self.lock:
            self._stop.set()  # of one that was begun meanwhile
            examples = self._examples()
            if not examples:
                raise InputError(
                    "there is no example yet: mark an object in a picture, and say that its marks are right"
                )
            by = self._fingerprint(examples)
            values = [self.folder.classes.index(label) + 1 for label in examples]
            names = [name for name in self.folder.names() if not self.folder.is_labelled(name)]
            names = [name for name in names if (self.folder.found_summary(name) or (0, ""))[1] != by]
            if not names:
                raise InputError("there is no picture to search: add more, or change the examples")
            self._errors, self._problem = {}, ""
            self._stop = threading.Event()
            self._progress = Progress(0, len(names), time.monotonic())
            self._thread = threading.Thread(
                target=self._search, args=(self._stop, self._progress, examples, values, names, by), daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """End a search, and wait until its picture is done; what it has found stays."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        with self.lock:
            self._progress = None

    def wait(self) -> None:
        """Wait until a search is over."""
        if self._thread is not None:
            self._thread.join()

    def _search(
        self,
        stop: threading.Event,
        progress: Progress,
        examples: dict[str, list[str]],
        values: Sequence[int],
        names: Sequence[str],
        by: str,
    ) -> None:
        """Search pictures; `values` are those of the examples' classes."""
        try:
            with self._network:
                fitted = self._fit(examples)
            for name in names:
                if stop.is_set():
                    return
                try:
                    with self._network:
                        prediction = fitted.predict(self.folder.read(name))
                    with self.lock:
                        if name in self.folder.names():  # it may have been taken off meanwhile
                            self.folder.write_found(name, _found(prediction, values, by))
                except (ValueError, OSError) as error:
                    self._errors[name] = self._words(error)
                progress.done += 1
        except Exception as error:
            message = user_message(error)
            if message is None:
                log.exception("the search ended")
                message = "the search ended by an error of the program: the terminal shows it"
            self._problem = message
        finally:
            with self.lock:
                if self._progress is progress:
                    self._progress = None

    def maps(self, name: str) -> list[tuple[str, bytes]]:
        """What the method shows of itself on a picture with the examples there are: names and PNG files."""
        with self.lock:
            examples, picture = self._examples(), self.folder.read(name)
        if not examples:
            raise InputError("there is no example yet: mark an object in a picture, and say that its marks are right")
        with self._network:
            prediction = self._fit(examples).predict(picture, maps=True)
        size = shown_size(picture.shape[:2])
        return [
            (f"{label}: {kind.replace('_', ' ')} {number}", _png(draw_map(values, size)))
            for label, maps in prediction.maps.items()
            for kind, levels in maps.items()
            for number, values in enumerate(levels, start=1)
        ]

    def outline(
        self, name: str, box: Sequence[float] | None, clicks: Sequence[tuple[float, float, bool]]
    ) -> UInt8Array:
        """Where the object in a box is, or at clicks; (h, w) uint8 0/1. See `hdmnet.apps.object_outline`."""
        shown = self.folder.shown(name)
        return outline_in(shown, box) if box is not None else outline_at(shown, clicks)


def _found(prediction: Prediction, values: Sequence[int], by: str) -> Found:
    """What is kept of a prediction whose classes have these values in the folder."""
    mask = np.array([0, *values], dtype=np.uint8)[prediction.mask]
    own = np.zeros(mask.shape, dtype=np.float32)
    for value, probability in zip(values, prediction.probabilities.values(), strict=True):
        own[mask == value] = probability[mask == value]
    small = cv2.resize(own, shown_size(mask.shape)[::-1], interpolation=cv2.INTER_AREA)
    return Found(mask, np.rint(small * 255).astype(np.uint8), certainty(prediction), by)


def _png(picture: UInt8Array) -> bytes:
    stored = io.BytesIO()
    Image.fromarray(picture).save(stored, format="PNG")
    return stored.getvalue()
