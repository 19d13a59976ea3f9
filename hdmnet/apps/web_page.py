"""The demo's web page, made with Gradio: paint over an object in one picture or several, find its kind in others.

It is served on 127.0.0.1 and nowhere else, makes no call to another machine, and needs none. Uploads and results lie in
a folder of their own that only this user may read; it is removed at the end.
"""

from __future__ import annotations

import html
import logging
import os
import re
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from gradio.themes.utils import fonts

from hdmnet.apps import brush
from hdmnet.apps.brush import Example
from hdmnet.apps.segmenter import Segmenter
from hdmnet.data.io.listing import IMAGE_SUFFIXES
from hdmnet.runtime.errors import FileError, InputError, user_message
from hdmnet.runtime.malloc import keep_freed_memory
from hdmnet.visual.colours import PREDICTION

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from hdmnet.apps.predict import Answer

HOST = "127.0.0.1"  # on purpose no setting: whoever reaches the page may upload files
MAX_FILE_SIZE = "100mb"
_KEPT_RESULTS = 8  # of how many presses of the button the files are kept
_HOUR, _DAY = 60 * 60, 24 * 60 * 60
_ERROR_SECONDS = 20

_INTRODUCTION = """# hdmnet
Paint over an object in one picture. The network, which need not know its class, looks for that kind of object in
others. Nothing leaves this machine."""
_HINT = "Paint over the whole object. The eraser takes paint away."
_PROGRESS = gr.Progress()
_STYLE = """
#examples .grid-container {grid-template-columns: repeat(4, 1fr) !important}
.grid-wrap {overflow-y: auto !important; min-height: 0 !important; max-height: none !important}
.gradio-container {max-width: 1400px !important}
.caption-label {max-width: 100% !important; white-space: normal !important; font-size: 11px !important}
"""

Pictures = list[tuple[str, str]]  # files with captions, as a gallery takes them


class Callbacks:
    """What the page's buttons do. A user's mistake becomes one line on the page, `gr.Error`.

    Args:
        segmenter: The network.
        folder: Where results go: Gradio's folder of temporary files, from which it serves them.
    """

    def __init__(self, segmenter: Segmenter, folder: Path) -> None:
        self.segmenter = segmenter
        self.folder = folder
        self._results: list[Path] = []
        self._lock = threading.Lock()

    def show(self, picture: str | None) -> Any:
        """The editor with an uploaded picture under the brush; None: the file was removed."""
        if picture is None:
            return gr.ImageEditor(value=None, visible=False)
        with self._one_line():
            shown = brush.shown_for_brush(Path(picture))
        return gr.ImageEditor(value={"background": shown, "layers": [], "composite": shown}, visible=True)

    def keep(self, picture: str | None, editor: dict[str, Any] | None, kept: list[Example]) -> tuple[Any, ...]:
        """Add the painted picture to the examples and make room for another.

        Returns:
            No file, the examples, the gallery that shows them, and the button that forgets them.
        """
        with self._one_line():
            if picture is None:
                raise InputError("no picture to keep: choose one and paint over the object in it")
            examples = [*kept, _example(picture, editor)]
            drawn = [
                (brush.draw_example(brush.shown_for_brush(one.picture), one.mask), one.picture.name) for one in examples
            ]
        return None, examples, gr.Gallery(value=drawn, visible=True), gr.Button(visible=True)

    def forget(self) -> tuple[Any, ...]:
        """Start without examples; see `keep`."""
        return [], gr.Gallery(value=None, visible=False), gr.Button(visible=False)

    def segment(
        self,
        picture: str | None,
        editor: dict[str, Any] | None,
        kept: list[Example],
        queries: Sequence[str] | None,
        maps: bool,
        progress: gr.Progress = _PROGRESS,
    ) -> tuple[Any, ...]:
        """Look for the painted object in the uploaded `queries`; `picture` is None where the kept examples are all.

        Returns:
            What was done, in words; galleries of overlays, masks and maps; the archive of all files.
        """
        paths = [Path(query) for query in queries or ()]
        folder = self._new_folder()
        with self._one_line():
            examples = [*kept, *([] if picture is None else [_example(picture, editor)])]
            began = time.perf_counter()
            found = brush.segment(self.segmenter, examples, paths, folder, maps=maps)
            answers = list(progress.tqdm(found, total=len(paths), desc="Segmenting", unit="picture"))
            seconds = time.perf_counter() - began
        failed = [f"error: {self._shortened(one.error)}" for one in answers if one.error is not None]
        done = f"segmented {len(answers) - len(failed)} of {len(answers)} pictures in {seconds:.1f} s"
        return (
            gr.Textbox(value="\n".join([done, *failed]), visible=True),
            _gallery(answers, "overlay", columns=2),
            _gallery(answers, "mask", columns=5),
            _map_gallery(answers),
            gr.DownloadButton(value=str(brush.pack(folder)), visible=True),
        )

    @contextmanager
    def _one_line(self) -> Iterator[None]:
        """Show what a user can mend; a bug keeps its traceback, in the terminal only."""
        try:
            yield
        except (ValueError, OSError) as error:
            message = user_message(error)
            if message is None:
                raise
            text = html.escape(self._shortened(message), quote=False)  # it is shown as HTML
            raise gr.Error(text, duration=_ERROR_SECONDS, print_exception=False) from None

    def _shortened(self, message: str) -> str:
        """A message with the names of uploaded files as the user knows them, without our folders."""
        upload = re.escape(str(self.folder)) + r"/([0-9a-f]+/)?"  # a folder for each upload, named by its hash
        return re.sub(upload, "", message)

    def _new_folder(self) -> Path:
        """A folder for results, not made yet; the oldest results go."""
        folder = self.folder / f"results-{uuid.uuid4().hex}"
        with self._lock:
            self._results.append(folder)
            old, self._results = self._results[:-_KEPT_RESULTS], self._results[-_KEPT_RESULTS:]
        for one in old:
            shutil.rmtree(one, ignore_errors=True)
        return folder


def _example(picture: str, editor: dict[str, Any] | None) -> Example:
    """The uploaded picture with what was painted over it."""
    path = Path(picture)
    return Example(path, brush.brush_mask(editor["layers"] if editor else [], path.name))


def _gallery(answers: Sequence[Answer], kind: str, columns: int) -> Any:
    """One kind of the files of all queries."""
    pictures: Pictures = [(str(one.files[kind]), one.name) for one in answers if one.error is None]
    return gr.Gallery(value=pictures, columns=columns, visible=bool(pictures))


def _map_gallery(answers: Sequence[Answer]) -> Any:
    """The method's maps, a row for each query."""
    rows = [
        [(str(path), f"{one.name}, {kind.replace('_', ' ')}") for kind, path in one.maps.items()] for one in answers
    ]
    pictures: Pictures = [picture for row in rows for picture in row]
    return gr.Gallery(value=pictures, columns=max(map(len, rows), default=1) or 1, visible=bool(pictures))


# ------------------------------------------------------------------------------------------------------------ the page


def build_page(segmenter: Segmenter, folder: Path) -> gr.Blocks:
    """Lay out the page, without serving it; uploads and results go to the folder, Gradio's `GRADIO_TEMP_DIR`."""
    callbacks = Callbacks(segmenter, folder)
    suffixes = sorted(IMAGE_SUFFIXES)
    # Uploads of a session that is open for longer than a day go.
    page: gr.Blocks = gr.Blocks(title="hdmnet", analytics_enabled=False, delete_cache=(_HOUR, _DAY))
    with page:
        gr.Markdown(_INTRODUCTION)
        kept = gr.State([])
        with gr.Row():
            with gr.Column(scale=3):
                picture, editor, keep, examples, forget = _painting(suffixes)
            with gr.Column(scale=2):
                queries = gr.File(
                    label="2. Pictures to search",
                    file_count="multiple",
                    file_types=suffixes,
                    height=200,
                    elem_id="queries",
                )
                maps = gr.Checkbox(label="Show maps too: prior masks, correlation", elem_id="maps")
                start = gr.Button("Segment", variant="primary", elem_id="segment")
                status = gr.Textbox(label="Done", lines=1, max_lines=8, visible=False, elem_id="status")
                overlays = _results("Found", "overlays")
                archive = gr.DownloadButton("Download masks, probabilities and overlays", visible=False, elem_id="all")
        masks = _results("Masks", "masks")
        seen = _results("The method's maps: prior masks, correlation by stage, 1 the finest", "seen")

        # `change`, not `upload`: removing the file and keeping the example empty the editor too.
        picture.change(callbacks.show, picture, editor)
        keep.click(callbacks.keep, [picture, editor, kept], [picture, kept, examples, forget])
        forget.click(callbacks.forget, None, [kept, examples, forget])
        start.click(
            callbacks.segment,
            [picture, editor, kept, queries, maps],
            [status, overlays, masks, seen, archive],
            show_progress_on=[start],
        )
    return page


def _painting(suffixes: list[str]) -> tuple[gr.File, gr.ImageEditor, gr.Button, gr.Gallery, gr.Button]:
    """Where a picture is chosen and painted over, and painted ones are kept."""
    colour = f"rgb{PREDICTION}"
    picture = gr.File(label="1. Picture that shows the object", file_types=suffixes, height=130, elem_id="picture")
    editor = gr.ImageEditor(
        label=_HINT,
        sources=(),
        transforms=(),
        layers=False,
        brush=gr.Brush(default_size=20, colors=[(colour, brush.BRUSH_OPACITY)], color_mode="fixed"),
        buttons=[],
        height=600,
        visible=False,
        elem_id="editor",
    )
    keep = gr.Button("Keep it, and paint another picture of such an object", size="sm", elem_id="keep")
    examples = _results("Kept examples", "examples")
    forget = gr.Button("Forget the kept examples", size="sm", visible=False)
    return picture, editor, keep, examples, forget


def _results(label: str, name: str) -> gr.Gallery:
    """A gallery for results, shown when there are some."""
    return gr.Gallery(label=label, visible=False, object_fit="contain", height="auto", interactive=False, elem_id=name)


def launch(page: gr.Blocks, port: int, *, inbrowser: bool = False) -> str:
    """Serve a page to this machine only, in threads of their own; returns its address."""
    # The browser's own fonts: those of Gradio's themes it may have to fetch from elsewhere.
    theme = gr.themes.Default(font=[fonts.Font("sans-serif")], font_mono=[fonts.Font("monospace")])
    _, url, _ = page.launch(
        server_name=HOST,
        server_port=port,
        share=False,
        inbrowser=inbrowser,
        prevent_thread_lock=True,
        quiet=True,
        max_file_size=MAX_FILE_SIZE,
        enable_monitoring=False,
        ssr_mode=False,
        footer_links=[],
        theme=theme,
        css=_STYLE,
    )
    return str(url)


def free_port(port: int) -> int:
    """The port, or for 0 any free one.

    Raises:
        OSError: It is taken, or not ours to take.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that was closed a moment ago is free
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise FileError(
                f"port={port} cannot be used ({error.strerror}): expected a free one, e.g. port=0 for any"
            ) from None
        return int(probe.getsockname()[1])


def serve(cfg: DictConfig, folder: Path) -> None:
    """Serve the page of the demo's config until Ctrl-C; `folder` as in `build_page`.

    Raises:
        FileNotFoundError: The checkpoint is missing.
        OSError: The port is taken.
        ValueError: The checkpoint is not right.
    """
    keep_freed_memory()
    port = free_port(cfg.port)
    segmenter = Segmenter.of_command(cfg)
    # Gradio asks its own server whether it is up.
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), HOST]))
    logging.getLogger("httpx").setLevel(logging.WARNING)
    page = build_page(segmenter, folder)
    try:
        url = launch(page, port, inbrowser=cfg.inbrowser)
        print(f"the page is at {url} (Ctrl-C ends it)", flush=True)
        threading.Event().wait()
    except KeyboardInterrupt:
        print("the page is closed", flush=True)
    finally:
        page.close(verbose=False)
