"""The demo's page and the JSON API behind it: files of `hdmnet/apps/page/`, served by Python's own HTTP server.

It is served on 127.0.0.1 and nowhere else, makes no call to another machine, and needs none. What a browser asks for on
behalf of another site is refused: by the name that it asks for (`Host`), which another site's is not, and by where the
request comes from (`Origin`, `Sec-Fetch-Site`). What the API does is in `labelling.py`; masks travel as bytes, a pixel
each, row by row.
"""

from __future__ import annotations

import base64
import io
import json
import logging
import re
import shutil
import tempfile
import threading
import webbrowser
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from PIL import Image

from hdmnet.apps.handing_out import draw_overview, draw_thumbnail, export_coco, export_zip
from hdmnet.apps.label_folder import LabelFolder, refuse_other_things, shown_size
from hdmnet.apps.labelling import Labelling, describe
from hdmnet.apps.segmenter import Segmenter
from hdmnet.runtime.errors import FileError, InputError, MissingFileError, user_message
from hdmnet.runtime.home import expand_home
from hdmnet.runtime.malloc import keep_freed_memory
from hdmnet.runtime.run_folder import own_folder

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from hdmnet.data.io.arrays import UInt8Array

log = logging.getLogger(__name__)

HOST = "127.0.0.1"  # on purpose no setting: whoever reaches the page may upload files
MAX_BYTES = 100_000_000  # of a request: of a picture's file
_NAMES = frozenset({HOST, "localhost"})  # by any port: of a tunnel it may be another one
_PAGE = Path(__file__).with_name("page")
_FILES = {"/": "page.html", "/page.js": "page.js", "/page.css": "page.css", "/canvas.js": "canvas.js"}
_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
}
_BYTES, _JSON = "application/octet-stream", "application/json"
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        work: What the page is about.
        parts: What the route's pattern has caught of the path.
        query: What stands behind the path's question mark, the last of each name.
        body: What came along.
    """

    work: Labelling
    parts: tuple[str, ...]
    query: dict[str, str]
    body: bytes

    @property
    def name(self) -> str:
        """The picture that the path names."""
        return self.parts[0]

    def json(self) -> dict[str, Any]:
        """What came along as JSON; raises ValueError where it is no object."""
        try:
            content = json.loads(self.body)
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict):
            raise InputError("the request holds no JSON object")
        return content

    def marks(self) -> UInt8Array:
        """What came along as marks of the picture, (h, w) uint8; raises ValueError where it has another length."""
        height, width = shown_size(self.work.folder.size(self.name))
        if len(self.body) != height * width:
            raise InputError(f"marks of {self.name} are {len(self.body)} bytes: expected {height}x{width}")
        return np.frombuffer(self.body, dtype=np.uint8).reshape(height, width)


@dataclass(frozen=True)
class Reply:
    """What is answered.

    Attributes:
        content: Bytes, or a file, to be read from its beginning and closed.
        kind: Its media type.
        download: What a browser is to call it, where it is to be stored.
        keep: Whether a browser need not ask again: another version has another address.
    """

    content: bytes | IO[bytes]
    kind: str = _JSON
    download: str | None = None
    keep: bool = False


def _json(value: Any) -> Reply:
    return Reply(json.dumps(value).encode())


def _state(request: Request) -> Reply:
    return _json({**request.work.state(), "max_bytes": MAX_BYTES})


# ---------------------------------------------------------------------------------------------------------- the API


def _changing(change: Callable[[Request], Any]) -> Callable[[Request], Reply]:
    """A route that changes something, and answers with the state then."""

    def answer(request: Request) -> Reply:
        with request.work.lock:
            change(request)
            return _state(request)

    return answer


def _add(request: Request) -> Reply:
    with request.work.lock:
        added = request.work.folder.add(request.query.get("name", ""), request.body)
        return _json({**request.work.state(), "max_bytes": MAX_BYTES, "added": added})


def _picture(request: Request) -> Reply:
    return _jpeg(request, request.work.folder.shown(request.name), quality=95)


def _thumbnail(request: Request) -> Reply:
    return _jpeg(request, draw_thumbnail(request.work.folder, request.name), quality=85)


def _jpeg(request: Request, picture: UInt8Array, quality: int) -> Reply:
    stored = io.BytesIO()
    Image.fromarray(picture).save(stored, format="JPEG", quality=quality)
    return Reply(stored.getvalue(), "image/jpeg", keep="v" in request.query)


def _marks(request: Request) -> Reply:
    return Reply(request.work.folder.shown_mask(request.name).tobytes(), _BYTES)


def _outline(request: Request) -> Reply:
    content = request.json()
    try:
        box = None if content.get("box") is None else [float(value) for value in content["box"]]
        clicks = [(float(x), float(y), bool(inside)) for x, y, inside in content.get("clicks", [])]
    except (TypeError, ValueError):
        box, clicks = None, []
    if not clicks and (box is None or len(box) != 4):
        raise InputError("expected a box [x0, y0, x1, y1], or clicks [[x, y, true where the object is], …]")
    return Reply(request.work.outline(request.name, box, clicks).tobytes(), _BYTES)


def _maps(request: Request) -> Reply:
    return _json(
        [{"name": name, "png": base64.b64encode(png).decode()} for name, png in request.work.maps(request.name)]
    )


def _remove(request: Request) -> None:
    request.work.folder.remove([request.name])


def _name_of(request: Request) -> str:
    return str(request.json().get("name", ""))


def _search(request: Request) -> Reply:
    request.work.search()
    return _state(request)


def _stop(request: Request) -> Reply:
    request.work.stop()
    return _state(request)


def _example(request: Request) -> Reply:
    request.work.add_examples()
    return _state(request)


def _clear(request: Request) -> Reply:
    request.work.stop()
    with request.work.lock:
        request.work.folder.clear()
        return _state(request)


def _coco(request: Request) -> Reply:
    return Reply(export_coco(request.work.folder), _JSON, "annotations.json")


def _zip(request: Request) -> Reply:
    file = tempfile.TemporaryFile()  # noqa: SIM115 - closed when it is sent
    try:
        export_zip(request.work.folder, file, pictures=request.query.get("pictures") == "1")
    except BaseException:
        file.close()
        raise
    return Reply(file, "application/zip", "labels.zip")


def _overview(request: Request) -> Reply:
    stored = io.BytesIO()
    draw_overview(request.work.folder, request.work.state()["pictures"]).save(stored, format="PNG")
    return Reply(stored.getvalue(), "image/png", "overview.png")


_ONE = r"/api/pictures/([^/]+)"
_ROUTES: list[tuple[str, re.Pattern[str], Callable[[Request], Reply]]] = [
    (method, re.compile(pattern), answer)
    for method, pattern, answer in (
        ("GET", "/api/state", _state),
        ("POST", "/api/pictures", _add),
        ("POST", "/api/example", _example),
        ("POST", "/api/clear", _clear),
        ("POST", "/api/search", _search),
        ("DELETE", "/api/search", _stop),
        ("DELETE", _ONE, _changing(_remove)),
        ("GET", f"{_ONE}/picture", _picture),
        ("GET", f"{_ONE}/thumbnail", _thumbnail),
        ("GET", f"{_ONE}/marks", _marks),
        ("GET", f"{_ONE}/maps", _maps),
        ("POST", f"{_ONE}/outline", _outline),
        ("PUT", f"{_ONE}/draft", _changing(lambda one: one.work.folder.write_draft(one.name, one.marks()))),
        ("DELETE", f"{_ONE}/draft", _changing(lambda one: one.work.folder.drop_draft(one.name))),
        ("PUT", f"{_ONE}/label", _changing(lambda one: one.work.folder.write_label(one.name, one.marks()))),
        ("DELETE", f"{_ONE}/label", _changing(lambda one: one.work.folder.drop_label(one.name))),
        ("POST", "/api/classes", _changing(lambda one: one.work.folder.add_class(_name_of(one)))),
        (
            "PUT",
            r"/api/classes/(\d{1,3})",
            _changing(lambda one: one.work.folder.rename_class(int(one.name), _name_of(one))),
        ),
        ("DELETE", r"/api/classes/(\d{1,3})", _changing(lambda one: one.work.folder.remove_class(int(one.name)))),
        ("GET", r"/api/annotations\.json", _coco),
        ("GET", r"/api/labels\.zip", _zip),
        ("GET", r"/api/overview\.png", _overview),
    )
]


class PageServer(ThreadingHTTPServer):
    """Serves the page to this machine only, each request in a thread of its own.

    Args:
        port: 0: any free one.

    Raises:
        OSError: The port is taken, or not ours to take.
    """

    daemon_threads = True
    work: Labelling

    def __init__(self, port: int) -> None:
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise FileError(
                f"port={port} cannot be used ({error.strerror}): expected a free one, e.g. port=0 for any"
            ) from None

    @property
    def url(self) -> str:
        """Address of the page."""
        return f"http://{HOST}:{self.server_port}/"


class _Refusal(Exception):
    """A request that is not looked at."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "hdmnet", ""
    timeout = 60  # seconds for which a browser may say nothing

    def do_GET(self) -> None:
        try:
            self._refuse_strangers()
            reply = self._reply()
            self._send(HTTPStatus.OK, reply)
        except _Refusal as error:
            self.close_connection = True  # what else it has sent was not read
            self._send_error(error.status, str(error))
        except (ConnectionError, TimeoutError):
            self.close_connection = True  # the browser is gone
        except Exception as error:
            message = user_message(error)
            if message is None:
                log.exception("%s %s", self.command, self.path)
                self._send_error(HTTPStatus.INTERNAL_SERVER_ERROR, "an error of the program: the terminal shows it")
            else:
                missing = isinstance(error, MissingFileError)
                self._send_error(HTTPStatus.NOT_FOUND if missing else HTTPStatus.BAD_REQUEST, self._shortened(message))

    do_POST = do_PUT = do_DELETE = do_GET

    def _refuse_strangers(self) -> None:
        """Refuse what another site asks for through the browser of somebody who has the page open."""
        host, site = self.headers.get("Host", ""), self.headers.get("Sec-Fetch-Site", "none")
        if host.rpartition(":")[0] not in _NAMES and host not in _NAMES:
            raise _Refusal(
                HTTPStatus.FORBIDDEN, f"this page is {self._server.url}, and not of the host that was asked for"
            )
        foreign = self.headers.get("Origin", f"http://{host}") != f"http://{host}" or site not in (
            "same-origin",
            "none",
        )
        # A link on another site may lead to the page.
        if foreign and not (self.command == "GET" and urlsplit(self.path).path in _FILES):
            raise _Refusal(HTTPStatus.FORBIDDEN, "another site may not ask for this")

    def _reply(self) -> Reply:
        path = urlsplit(self.path)
        if self.command == "GET" and path.path in _FILES:
            file = _PAGE / _FILES[path.path]
            return Reply(file.read_bytes(), _KINDS[file.suffix])
        for method, pattern, answer in _ROUTES:
            caught = pattern.fullmatch(path.path)
            if caught is not None and method == self.command:
                query = {name: values[-1] for name, values in parse_qs(path.query).items()}
                parts = tuple(unquote(part) for part in caught.groups())
                return answer(Request(self._server.work, parts, query, self._body()))
        raise _Refusal(HTTPStatus.NOT_FOUND, "there is no such page")

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or not length.isdecimal():
            raise _Refusal(HTTPStatus.LENGTH_REQUIRED, "the request does not say how long it is")
        if int(length) > MAX_BYTES:
            raise _Refusal(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"that is {int(length):,} bytes: expected at most {MAX_BYTES:,}"
            )
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise ConnectionError
        return body

    @property
    def _server(self) -> PageServer:
        return cast(PageServer, self.server)

    def _shortened(self, message: str) -> str:
        """A message without our folder."""
        return message.replace(f"{self._server.work.folder.root}/", "")

    def _send_error(self, status: HTTPStatus, message: str) -> None:
        self._send(status, _json({"error": message}))

    def _send(self, status: HTTPStatus, reply: Reply) -> None:
        file = io.BytesIO(reply.content) if isinstance(reply.content, bytes) else reply.content
        with file:
            length = file.seek(0, io.SEEK_END)
            file.seek(0)
            self.send_response(status)
            for name, value in {**_HEADERS, "Content-Type": reply.kind, "Content-Length": str(length)}.items():
                self.send_header(name, value)
            self.send_header("Cache-Control", "private, max-age=86400" if reply.keep else "no-store")
            if reply.download is not None:
                self.send_header("Content-Disposition", f'attachment; filename="{reply.download}"')
            if self.close_connection:
                self.send_header("Connection", "close")
            self.end_headers()
            shutil.copyfileobj(file, self.wfile)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing in the terminal of what went well."""
        log.debug(format, *args)


def serve(cfg: DictConfig) -> None:
    """Serve the page of the demo's config until Ctrl-C.

    Raises:
        FileNotFoundError: The checkpoint is missing.
        OSError: The port is taken, or the folder cannot be written to.
        ValueError: The checkpoint is not right, or the folder is in use or of something else.
    """
    keep_freed_memory()
    with PageServer(cfg.port) as server:
        root = expand_home(cfg.folder).absolute()
        refuse_other_things(root)
        segmenter = Segmenter.of_command(cfg)  # before the folder is made, as it may be refused
        about = describe(segmenter, packaged=cfg.ckpt is None and cfg.model is None)
        with own_folder(root, replace=True, setting="folder"):
            server.work = Labelling(segmenter, LabelFolder(root), about)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            try:
                print(f"the page is at {server.url} and keeps its work in {root} (Ctrl-C ends it)", flush=True)
                if cfg.inbrowser:
                    webbrowser.open(server.url)
                threading.Event().wait()
            except KeyboardInterrupt:
                server.work.stop()
                print("the page is closed", flush=True)
            finally:
                server.shutdown()
