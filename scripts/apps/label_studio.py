"""A machine-learning back end for Label Studio: submit one picture there, the next ones come with masks.

    python scripts/apps/label_studio.py pictures/ [--support labelled/ …] [--ckpt RUN/checkpoints/best.ckpt]

In Label Studio: Settings, Model, Connect Model, http://localhost:9090. Pictures are found in the folder by their names;
Label Studio may hold them by upload or by local storage. Every submitted annotation becomes a support of its classes,
of which the newest `--shot` count. `--support` are those to begin with, as of `hdmnet predict`: after a new start, an
export of the project. Masks come as the project's own control, BrushLabels or PolygonLabels. The least sure pictures
have the lowest score, by which the Data Manager sorts.
"""

from __future__ import annotations

import argparse
import json
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)] if str(ROOT) not in sys.path else []

from hdmnet.apps.found_objects import FoundObject, find_objects  # noqa: E402
from hdmnet.apps.segmenter import Prediction, Segmenter  # noqa: E402
from hdmnet.apps.supports import Support, parse_supports  # noqa: E402
from hdmnet.cli.parser import OneLineParser, run_main  # noqa: E402
from hdmnet.data.io.label_files import encode_brush, find_task_picture, read_label_studio  # noqa: E402
from hdmnet.data.io.user_pictures import LabelledMask  # noqa: E402
from hdmnet.runtime.errors import InputError  # noqa: E402

NAME = "label_studio"
CONTROLS = {"BrushLabels": "brushlabels", "PolygonLabels": "polygonlabels"}


class BackEnd:
    """Answers Label Studio's requests; what was submitted last is at the end of a class's supports."""

    def __init__(self, segmenter: Segmenter, pictures: Path, supports: Mapping[str, list[Support]], shot: int) -> None:
        self.segmenter, self.file, self.shot = segmenter, pictures / "project.json", shot
        self.supports = {name: {str(picture): mask for picture, mask in pairs} for name, pairs in supports.items()}
        self.lock = Lock()
        self.fit()

    def fit(self) -> None:
        """Encode the newest supports of each class."""
        newest = {name: list(masks.items())[-self.shot :] for name, masks in self.supports.items()}
        if newest:
            self.segmenter.fit({name: tuple(zip(*pairs, strict=True)) for name, pairs in newest.items()})

    def answer(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a request; raises ValueError or FileNotFoundError, one line, where there is none."""
        if path == "/predict":
            control, name, to, known = find_control(body.get("label_config") or "")
            return {"results": [self.predict(task["data"], control, name, to, known) for task in body["tasks"]]}
        if path == "/webhook" and body.get("action") in ("ANNOTATION_CREATED", "ANNOTATION_UPDATED"):
            task = {"data": body["task"]["data"], "annotations": [body["annotation"]]}
            with self.lock:
                for labels in read_label_studio(self.file, [task]):
                    for name, mask in labels.masks.items():
                        of_class = self.supports.setdefault(name, {})
                        of_class.pop(str(labels.picture), None)
                        of_class[str(labels.picture)] = LabelledMask(mask, labels.file)
                self.fit()
        return {"status": "UP", "model_class": "hdmnet", "model_version": self.version}

    @property
    def version(self) -> str:
        """Another one after each support, so that Label Studio asks again."""
        return f"hdmnet, {sum(map(len, self.supports.values()))} supports"

    def predict(self, data: Mapping[str, Any], control: str, name: str, to: str, labels: set[str]) -> dict[str, Any]:
        """What is found in a task's picture of the classes that the project has."""
        if not self.segmenter.classes:
            return {"model_version": self.version, "score": 0.0, "result": []}
        (found,) = self.segmenter.predict([find_task_picture(self.file, data)])
        common = {"from_name": name, "to_name": to, "type": CONTROLS[control], "image_rotation": 0}
        height, width = found.mask.shape
        common |= {"original_width": width, "original_height": height}
        whole = control == "BrushLabels"  # a stroke is of all of a class
        objects = [one for one in find_objects(found, instances=not whole) if one.label in labels]
        result = [
            common
            | {"id": uuid.uuid4().hex[:10], "score": one.score, "value": {CONTROLS[control]: [one.label], **value}}
            for one in objects
            for value in values_of(one, control, found)
        ]
        return {
            "model_version": self.version,
            "score": min((one.score for one in objects), default=0.0),
            "result": result,
        }


def find_control(config: str) -> tuple[str, str, str, set[str]]:
    """Kind, name, object and labels of the first control of a labelling set-up that takes masks."""
    for node in ElementTree.fromstring(config).iter() if config else ():
        if node.tag in CONTROLS:
            labels = {one.get("value", "") for one in node.iter("Label")}
            return node.tag, node.attrib["name"], node.attrib["toName"], labels
    raise InputError(f"the project's labelling set-up has none of {', '.join(CONTROLS)}: add one")


def values_of(one: FoundObject, control: str, found: Prediction) -> Iterator[dict[str, Any]]:
    """An object as a control's values: a brush stroke, or polygons in percents of the picture."""
    if control == "BrushLabels":
        yield {"format": "rle", "rle": encode_brush(found.mask == one.index)}
        return
    height, width = found.mask.shape
    for outline in one.outlines:
        yield {"closed": True, "points": [[100 * x / width, 100 * y / height] for x, y in outline]}


def make_server(back_end: BackEnd, host: str, port: int) -> ThreadingHTTPServer:
    """The server, listening; port 0: any free one."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer({})

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}"))

        def _answer(self, body: Mapping[str, Any]) -> None:
            try:
                if "Origin" in self.headers:  # Label Studio asks by itself: this is a page in somebody's browser
                    raise InputError("a web page may not ask for this")
                status, content = 200, back_end.answer(self.path.rstrip("/"), body)
            except (ValueError, OSError, KeyError, ElementTree.ParseError) as error:
                status, content = 400, {"error": f"{type(error).__name__}: {error}"}
                self.log_error("%s", content["error"])
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

    return ThreadingHTTPServer((host, port), Handler)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until interrupted; returns the exit code."""
    parser = OneLineParser(prog=NAME, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, help="folder with the project's pictures")
    parser.add_argument("--support", nargs="+", default=[], help="as of hdmnet predict")
    parser.add_argument("--ckpt", help="a run's checkpoint; without: the packaged segmenter")
    parser.add_argument("--shot", type=int, default=5, help="supports of a class that count, the newest (default: 5)")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 where Label Studio runs in a container")
    parser.add_argument("--port", type=int, default=9090)

    def body() -> bool:
        arguments = parser.parse_args(argv)
        if not arguments.pictures.is_dir():
            raise InputError(f"{arguments.pictures} is no folder; expected that with the project's pictures")
        ckpt = arguments.ckpt
        segmenter = Segmenter.pretrained() if ckpt is None else Segmenter.from_checkpoint(ckpt)
        supports = parse_supports(arguments.support or None) or {}
        server = make_server(
            BackEnd(segmenter, arguments.pictures, supports, arguments.shot), arguments.host, arguments.port
        )
        print(f"listening at http://{arguments.host}:{server.server_port}; Ctrl-C stops", flush=True)
        server.serve_forever()
        return True

    return run_main(body, NAME)


if __name__ == "__main__":
    sys.exit(main())
