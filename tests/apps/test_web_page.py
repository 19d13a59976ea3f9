"""The demo's page: the command's masks, one line for what a user did wrong, and nobody else's machine."""

from __future__ import annotations

import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hdmnet.apps.brush import Example
from PIL import Image

from hdmnet import Segmenter
from hdmnet.apps import brush
from tests.helpers import commands

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
# Gradio and what it stands on use parts of each other that are on their way out; none of it is called by us.
FOREIGN = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


def picture(height, width, seed):
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def disc(height, width):
    rows, columns = np.indices((height, width))
    inside = (rows / height - 0.5) ** 2 + (columns / width - 0.5) ** 2 < 0.09
    return inside.astype(np.uint8)


def paint(mask, alpha=153):
    """A layer as the editor gives it."""
    return np.stack([mask * 213, mask * 94, mask * 0, mask * alpha], axis=-1).astype(np.uint8)


def pixels(source):
    with Image.open(source) as opened:
        return np.asarray(opened)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(60, 90, 1).save(root / "turned.jpg", exif=exif)
    picture(60, 80, 2).save(root / "support.png")
    picture(200, 900, 3).save(root / "wide.png")
    picture(50, 70, 4).convert("RGBA").save(root / "rgba.png")
    (root / "text.jpg").write_text("no picture")
    Image.new("1", (8000, 8000)).save(root / "vast.png", optimize=True)
    return root


@pytest.fixture(scope="module")
def segmenter(start):
    return Segmenter.from_checkpoint(start, device="cpu")


# ------------------------------------------------------------------------------------------------------ without a page


@pytest.mark.long
def test_the_masks_are_those_of_the_segmenter_and_of_predict(folder, segmenter, start, tmp_path):
    shown = brush.shown_for_brush(folder / "turned.jpg")
    assert shown.shape == (800, 533, 3)  # 90 x 60 as a viewer shows it
    examples = [
        Example(folder / "turned.jpg", brush.brush_mask([paint(disc(800, 533))], "turned.jpg")),
        Example(folder / "support.png", disc(600, 800)),
    ]
    queries = [folder / "wide.png", folder / "text.jpg", folder / "turned.jpg"]
    answers = list(brush.segment(segmenter, examples, queries, tmp_path / "out", maps=True))
    assert [answer.error is None for answer in answers] == [True, False, True]
    assert "text.jpg cannot be read" in answers[1].error
    assert segmenter.classes == ()  # other pages may use it

    fitted = Segmenter.from_checkpoint(start, device="cpu")
    fitted.fit([example.picture for example in examples], [example.mask for example in examples])
    for query, answer in ((queries[0], answers[0]), (queries[2], answers[2])):
        mask = pixels(answer.files["mask"])
        assert 0 < mask.mean() < 255
        assert (mask == 255 * fitted.predict(query).mask).all()
        assert answer.files.keys() == {"mask", "overlay", "probability"}
        assert {"prior_1", "prior_2", "correlation_1"} <= answer.maps.keys()

    # What the archive holds is enough to have `predict` give the same.
    with zipfile.ZipFile(brush.pack(tmp_path / "out")) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "unpacked")
    assert {"wide_mask.png", "turned_overlay.jpg", "examples/1_turned_mask.png"} <= names
    words = ",".join(
        f"{one.picture}:{tmp_path}/unpacked/examples/{number}_{one.picture.stem}_mask.png"
        for number, one in enumerate(examples, start=1)
    )
    output = ("device=cpu", f"output={tmp_path / 'predicted'}")
    commands.run("predict", tmp_path, f"ckpt={start}", f"support=[{words}]", f"query={folder}/wide.png", *output)
    assert (pixels(tmp_path / "predicted" / "wide_mask.png") == pixels(answers[0].files["mask"])).all()


def test_what_counts_as_paint():
    faint, whole = paint(disc(20, 30), alpha=40), paint(disc(20, 30), alpha=153)
    assert (brush.brush_mask([faint, whole], "a.png") == disc(20, 30)).all()
    for layers in ([], [faint]):
        with pytest.raises(ValueError, match=r"nothing is painted in a\.png: paint over the object first"):
            brush.brush_mask(layers, "a.png")


def test_a_picture_that_would_fill_the_memory_is_not_unpacked(folder, segmenter, tmp_path):
    assert (folder / "vast.png").stat().st_size < 10**5
    with pytest.raises(ValueError, match=r"vast\.png has 8000x8000 \(HxW\) pixels: expected at most 50 million"):
        brush.shown_for_brush(folder / "vast.png")
    header = (folder / "vast.png").read_bytes()
    bomb = tmp_path / "bomb.png"  # a larger one Pillow refuses by itself
    bomb.write_bytes(_with_size(header, 60000, 60000))
    example = Example(folder / "support.png", disc(60, 80))
    queries = [bomb, folder / "vast.png", folder / "rgba.png"]
    answers = list(brush.segment(segmenter, [example], queries, tmp_path / "out", maps=False))
    assert "bomb.png cannot be read" in answers[0].error
    assert "\n" not in answers[0].error
    assert "expected at most 50 million" in answers[1].error
    assert answers[2].error is None


def _with_size(png, width, height):
    """A PNG that claims another size."""
    import struct
    import zlib

    header = struct.pack(">II", width, height) + png[24:29]
    return png[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + png[33:]


# ---------------------------------------------------------------------------------------------------- page and command


@pytest.fixture
def page(tmp_path, monkeypatch):
    """The module of the page, its temporary files in `tmp_path / "served"`."""
    (tmp_path / "served").mkdir()
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "served"))
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    pytest.importorskip("gradio", reason="the demo's extra is not installed")
    from hdmnet.apps import web_page

    return web_page


@FOREIGN
def test_what_a_user_does_wrong_is_one_line_on_the_page(page, folder, segmenter, tmp_path):
    import gradio

    callbacks = page.Callbacks(segmenter, tmp_path / "served")
    support, queries = str(folder / "support.png"), [str(folder / "rgba.png"), str(folder / "text.jpg")]
    nothing, something = {"layers": [paint(disc(600, 800) * 0)]}, {"layers": [paint(disc(600, 800))]}

    def refusal(action, *words):
        with pytest.raises(gradio.Error) as refused:
            action(*words)
        assert not refused.value.print_exception
        return refused.value.message

    segment = callbacks.segment
    assert refusal(segment, support, nothing, [], queries, False).startswith("nothing is painted in support.png")
    assert refusal(segment, support, None, [], queries, False).startswith("nothing is painted in support.png")
    assert refusal(segment, None, None, [], queries, False).startswith("no picture to learn from")
    assert refusal(segment, support, something, [], None, False).startswith("no picture to search")
    assert refusal(callbacks.keep, None, None, []).startswith("no picture to keep")
    assert "text.jpg cannot be read" in refusal(callbacks.show, str(folder / "text.jpg"))
    upload = tmp_path / "served" / "0123" / "a b.jpg"
    upload.parent.mkdir()
    upload.write_text("no picture")
    assert refusal(callbacks.show, str(upload)).startswith("picture a b.jpg cannot be read")

    status, overlays, masks, seen, archive = callbacks.segment(support, something, [], queries, True)
    assert status.value.startswith("segmented 1 of 2 pictures in ")
    assert "\nerror: picture " in status.value
    assert [len(gallery.value) for gallery in (overlays, masks, seen)] == [1, 1, 5]
    assert zipfile.is_zipfile(archive.value["path"])


@FOREIGN
def test_examples_are_kept_for_several_shots(page, folder, segmenter, start, tmp_path):
    callbacks = page.Callbacks(segmenter, tmp_path / "served")
    support, painting = str(folder / "support.png"), {"layers": [paint(disc(600, 800))]}
    cleared, kept, _, _ = callbacks.keep(support, painting, [])
    assert cleared is None
    callbacks.segment(str(folder / "turned.jpg"), {"layers": [paint(disc(800, 533))]}, kept, [support], False)
    (result,) = (tmp_path / "served").glob("results-*")
    assert len(list((result / "examples").glob("*_mask.png"))) == 2
    fitted = Segmenter.from_checkpoint(start, device="cpu")
    fitted.fit([support, folder / "turned.jpg"], [disc(600, 800), disc(800, 533)])
    assert (pixels(result / "support_mask.png") == 255 * fitted.predict(support).mask).all()
    for _ in range(10):
        callbacks.segment(None, None, kept, [support], False)
    assert len(list((tmp_path / "served").glob("results-*"))) == 8
    assert not result.exists()


@pytest.fixture(scope="module")
def served(start, tmp_path_factory):
    """The command in a process of its own, all settings of Gradio that would open it to others set: address and folder.

    Every address that the process connects to or looks up goes to `asked.txt`.
    """
    pytest.importorskip("gradio", reason="the demo's extra is not installed")
    root = tmp_path_factory.mktemp("served")
    (root / "tmp").mkdir()
    (root / "sitecustomize.py").write_text(
        f"import sys\nfile = open({str(root / 'asked.txt')!r}, 'a', buffering=1)\n"
        "def note(event, words):\n"
        "    if event in ('socket.connect', 'socket.getaddrinfo', 'socket.gethostbyname'):\n"
        "        print(event, words[1] if event == 'socket.connect' else words[0], file=file)\n"
        "sys.addaudithook(note)\n"
    )
    setting = {"GRADIO_SERVER_NAME": "0.0.0.0", "GRADIO_SHARE": "True", "GRADIO_ANALYTICS_ENABLED": "True"}
    setting |= {
        "PYTHONPATH": f"{root}:{commands.ROOT}",
        "TMPDIR": str(root / "tmp"),
        "http_proxy": "http://127.0.0.1:9",
    }
    words = (f"ckpt={start}", "device=cpu", "port=0", f"paths.output_dir={root / 'runs'}")
    with (root / "out.txt").open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "hdmnet.demo", *words], env={**os.environ, **setting}, stdout=out, stderr=out
        )
    try:
        wait_for(lambda: process.poll() is not None or "the page is at" in (root / "out.txt").read_text())
        address = re.search(r"the page is at (\S+) ", (root / "out.txt").read_text())
        assert address, (root / "out.txt").read_text()
        yield address[1], root
        assert list((root / "tmp").glob("hdmnet-demo-*"))
    finally:
        process.terminate()  # not SIGINT, which is ignored where the tests run in the background
        try:
            code = process.wait(60)
        finally:
            process.kill()
    assert code == 0
    assert not [path for path in (root / "tmp").rglob("*") if path.is_file()]
    assert not list((root / "tmp").glob("*demo*"))
    assert (root / "out.txt").read_text().splitlines() == [
        f"the page is at {address[1]} (Ctrl-C ends it)",
        "the page is closed",
    ]


def wait_for(condition, seconds=240):
    """What `condition` gives once it is true; the machine may be busy with other tests."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError(f"waited for {seconds} s in vain")


def test_only_this_machine_reaches_the_page_and_it_reaches_no_other(served):
    address, root = served
    port = int(address.rstrip("/").rpartition(":")[2])
    assert address == f"http://127.0.0.1:{port}/"
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address) as answer:
        text = answer.read().decode()
    assert "Pictures to search" in text
    assert not re.search(r"<(link|script)[^>]*(href|src)=.https?://(?!127\.0\.0\.1)", text)
    with socket.socket() as other, pytest.raises(ConnectionRefusedError):
        other.connect(("127.0.0.2", port))  # answers where a server listens on all addresses
    asked = (root / "asked.txt").read_text().splitlines()
    assert asked  # Gradio asks its own server whether it is up
    assert not [line for line in asked if "127.0.0.1" not in line], asked


def test_a_port_that_is_taken_is_one_line(page):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"port={port} cannot be used .*: expected a free one, e.g. port=0 for any"):
            page.free_port(port)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ((), 1, "gradio is not installed; the demo needs it: pip install 'hdmnet[demo]'"),
        (("prot=1",), 2, "prot: no such key; did you mean 'port'?"),
        (("server_name=0.0.0.0",), 2, "server_name: no such key"),
        (("port=70000",), 2, "port=70000: expected an integer from 0 (any free port) to 65535"),
    ],
)
def test_refusals_of_the_command(tmp_path, monkeypatch, words, code, message):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    handler = signal.getsignal(signal.SIGTERM)
    answer = commands.call("demo", tmp_path / "runs", *words)
    assert answer.refusal().startswith(message)
    assert answer.code == code
    assert not list(tmp_path.glob("hdmnet-demo-*"))
    assert signal.getsignal(signal.SIGTERM) is handler


# ----------------------------------------------------------------------------------------------------------- a browser


@pytest.fixture
def browser(tmp_path):
    """A Chromium without a window, and without a way to any other machine."""
    if not (CHROMIUM.is_file() and DRIVER.is_file()):
        pytest.skip(f"no {CHROMIUM} and {DRIVER}: apt-get install chromium chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for word in (
        *("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1400,1300", "--no-proxy-server"),
        *("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"),  # the editor draws by WebGL
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ):
        options.add_argument(word)
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path)})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    yield driver
    driver.quit()


@pytest.mark.slow
@FOREIGN
def test_paint_and_segment_in_a_browser(served, browser, folder, start, tmp_path):
    from selenium.webdriver.common.action_chains import ActionChains

    address, root = served

    def see(selector):
        return wait_for(lambda: [one for one in browser.find_elements("css selector", selector) if one.is_displayed()])

    def upload(name, *files):
        wait_for(lambda: browser.find_elements("css selector", f"#{name} input[type=file]"))[0].send_keys(
            "\n".join(map(str, files))
        )

    browser.get(address)
    upload("picture", folder / "turned.jpg")
    canvas = see("#editor canvas")[0]
    upload("queries", *(folder / name for name in ("wide.png", "text.jpg", "rgba.png", "turned.jpg")))
    wait_for(lambda: "rgba" in browser.find_element("id", "queries").text)

    # Nothing painted: one line, no trace of our code or folders.
    see("#segment")[0].click()
    said = wait_for(lambda: " ".join(one.text for one in browser.find_elements("css selector", ".toast-body")))
    assert "nothing is painted in turned.jpg: paint over the object first" in said
    page = browser.find_element("tag name", "body").text
    assert "Traceback" not in page
    assert str(root) not in page

    stroke = ActionChains(browser, duration=50).move_to_element_with_offset(canvas, -60, -60).click_and_hold()
    for step in range(8):
        stroke.move_by_offset(15, 40 if step % 2 else -20)
    stroke.release().perform()
    browser.find_element("css selector", "#maps input").click()
    see("#segment")[0].click()
    status = wait_for(lambda: see("#status textarea")[0].get_attribute("value"))
    assert status.startswith("segmented 3 of 4 pictures in ")
    assert "\nerror: picture text.jpg cannot be read" in status
    assert len(see("#overlays img")) == len(see("#masks img")) == 3
    assert len(see("#seen img")) == 15  # two priors, three stages
    browser.save_screenshot(str(tmp_path / "page.png"))
    foreign = (
        "return performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.startsWith(location.origin))"
    )
    assert browser.execute_script(foreign) == []

    # The masks that the page shows and those that it hands out are the Segmenter's with what was painted.
    see("#all")[0].click()
    with zipfile.ZipFile(wait_for(lambda: list(tmp_path.glob("*.zip")))[0]) as archive:
        archive.extractall(tmp_path / "all")
    mask = pixels(tmp_path / "all" / "examples" / "1_turned_mask.png")
    assert mask.shape == (800, 533)
    assert 0.01 < (mask == 255).mean() < 0.6
    fitted = Segmenter.from_checkpoint(start, device="cpu").fit(folder / "turned.jpg", mask)
    shown = [one.get_attribute("src") for one in see("#masks img")]
    for name, source in zip(("wide.png", "rgba.png", "turned.jpg"), shown, strict=True):
        expected = 255 * fitted.predict(folder / name).mask
        assert (pixels(tmp_path / "all" / f"{Path(name).stem}_mask.png") == expected).all()
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(source) as answer:
            assert (pixels(io.BytesIO(answer.read())) == expected).all()
