"""The demo's page: its JSON API, what it refuses, and a newcomer's path through it in a browser."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from hdmnet import Segmenter
from hdmnet.apps.label_folder import Found, LabelFolder
from hdmnet.apps.labelled import read_labels
from hdmnet.apps.labelling import About, Labelling, describe
from hdmnet.apps.web_page import PageServer
from tests.helpers import commands

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
FOREIGN = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools with NumPy 2


def picture(height, width, seed):
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def png(image):
    stored = io.BytesIO()
    image.save(stored, format="PNG")
    return stored.getvalue()


def disc(height, width):
    rows, columns = np.indices((height, width))
    return ((rows / height - 0.5) ** 2 + (columns / width - 0.5) ** 2 < 0.09).astype(np.uint8)


@pytest.fixture(scope="module")
def segmenter(start):
    return Segmenter.from_checkpoint(start, device="cpu")


class Client:
    """Asks a page as a browser does."""

    def __init__(self, server):
        self.server = server

    def ask(self, method, path, body=b"", **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.server.server_port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            reply = connection.getresponse()
            return reply.status, reply.read(), reply.headers

    def get(self, path):
        status, content, _ = self.ask("GET", path)
        assert status == 200, content
        return content

    def change(self, method, path, body=b""):
        status, content, _ = self.ask(method, path, json.dumps(body) if isinstance(body, dict) else body)
        assert status == 200, content
        return json.loads(content)

    def refusal(self, method, path, body=b"", code=400):
        status, content, _ = self.ask(method, path, json.dumps(body) if isinstance(body, dict) else body)
        assert status == code, content
        return json.loads(content)["error"]

    def add(self, name, image):
        return self.change("POST", f"/api/pictures?name={quote(name)}", png(image))["added"]

    def search(self):
        self.change("POST", "/api/search")
        self.server.work.wait()
        return json.loads(self.get("/api/state"))


@contextlib.contextmanager
def serving(segmenter, root):
    with PageServer(0) as server:
        server.work = Labelling(segmenter, LabelFolder(root), About("a network", "trained on nothing"))
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield Client(server)
        finally:
            server.work.stop()
            server.shutdown()
            thread.join()


@pytest.fixture
def page(segmenter, tmp_path):
    with serving(segmenter, tmp_path / "labelled") as client:
        yield client


# ----------------------------------------------------------------------------------------------------------- the work


@FOREIGN
def test_from_pictures_to_labels_that_other_programs_read(page, segmenter, start, tmp_path):
    sizes = {"a.png": (60, 80), "b.png": (90, 70), "c.png": (50, 120)}
    for seed, (name, size) in enumerate(sizes.items()):
        assert page.add(name, picture(*size, seed)) == name
    for name in ("cat", "dog"):
        state = page.change("POST", "/api/classes", {"name": name})
    assert [one["state"] for one in state["pictures"]] == ["waiting"] * 3
    assert len({one["colour"] for one in state["classes"]}) == 2
    marks = disc(60, 80)
    marks[:10, :10] = 2
    state = page.change("PUT", "/api/pictures/a.png/label", marks.tobytes())
    assert [one["examples"] for one in state["classes"]] == [1, 1]
    assert [(one["name"], one["classes"]) for one in state["pictures"] if one["state"] == "labelled"] == [
        ("a.png", [1, 2])
    ]

    state = page.search()
    assert [one["state"] for one in state["pictures"]] == ["found", "found", "labelled"]
    sure = [one["certainty"] for one in state["pictures"][:2]]
    assert sure == sorted(sure)
    assert 0 <= sure[0] < sure[1] <= 1
    fitted = Segmenter.from_checkpoint(start, device="cpu")
    example = [picture(60, 80, 0)]
    fitted.fit({"cat": (example, [marks == 1]), "dog": (example, [marks == 2])})
    masks = {"a.png": marks} | {
        f"{name}.png": fitted.predict(picture(*sizes[f"{name}.png"], seed)).mask for name, seed in (("b", 1), ("c", 2))
    }
    for name, mask in masks.items():
        assert page.get(f"/api/pictures/{name}/marks") == mask.tobytes()
    assert segmenter.classes == ()  # other pages may use it

    (tmp_path / "annotations.json").write_bytes(page.get("/api/annotations.json"))
    coco = COCO(tmp_path / "annotations.json")
    assert {one["file_name"] for one in coco.loadImgs(coco.getImgIds())} == set(sizes)
    for image in coco.loadImgs(coco.getImgIds()):
        for value in (1, 2):
            union = np.zeros((image["height"], image["width"]), dtype=bool)
            for one in coco.loadAnns(coco.getAnnIds(image["id"], value)):
                union |= coco_mask.decode(one["segmentation"]).astype(bool)
                assert one["score"] == 1 if image["file_name"] == "a.png" else one["score"] > 0.4
            assert (union == (masks[image["file_name"]] == value)).all()

    with zipfile.ZipFile(io.BytesIO(page.get("/api/labels.zip?pictures=1"))) as archive:
        archive.extractall(tmp_path / "all")
    for kind in ("coco", "labelme", "yolo", "voc"):
        read = {labels.picture.name: labels.masks for labels in read_labels(tmp_path / "all" / kind)}
        for name, mask in masks.items():
            for value, label in enumerate(("cat", "dog"), start=1):
                assert (read.get(name, {}).get(label, np.zeros_like(mask)) == 1).sum() == pytest.approx(
                    (mask == value).sum(), rel=0.05, abs=3
                )
    with zipfile.ZipFile(io.BytesIO(page.get("/api/labels.zip"))) as archive:
        assert not [name for name in archive.namelist() if "/images/" in f"/{name}" or "JPEGImages" in name]
        assert "labelme/a.json" in archive.namelist()
    with Image.open(io.BytesIO(page.get("/api/overview.png"))) as overview:
        assert overview.width > 3 * 200


def test_a_corrected_mask_is_an_example_for_the_next_search(page, start):
    for seed, name in enumerate("abc"):
        page.add(f"{name}.png", picture(60, 80, seed))
    page.change("POST", "/api/classes", {"name": "cat"})
    page.change("PUT", "/api/pictures/a.png/label", disc(60, 80).tobytes())
    page.search()
    corrected = np.frombuffer(page.get("/api/pictures/b.png/marks"), np.uint8).reshape(60, 80).copy()
    corrected[20:50, 20:60] = 1
    state = page.change("PUT", "/api/pictures/b.png/label", corrected.tobytes())
    first = state["pictures"][0]
    assert (first["name"], first["state"], first["stale"]) == ("c.png", "found", True)
    state = page.search()
    first = state["pictures"][0]
    assert (first["name"], first["stale"]) == ("c.png", False)
    fitted = Segmenter.from_checkpoint(start, device="cpu")
    fitted.fit([picture(60, 80, 0), picture(60, 80, 1)], [disc(60, 80), corrected])
    assert page.get("/api/pictures/c.png/marks") == fitted.predict(picture(60, 80, 2)).mask.tobytes()
    assert page.refusal("POST", "/api/search").startswith("there is no picture to search")


def test_what_is_labelled_outlives_the_program_and_is_a_data_set(segmenter, tmp_path):
    root = tmp_path / "labelled"
    with serving(segmenter, root) as page:
        for seed, name in enumerate("abc"):
            page.add(f"{name}.png", picture(60, 80, seed))
        page.change("POST", "/api/classes", {"name": "cat"})
        page.change("PUT", "/api/pictures/a.png/label", disc(60, 80).tobytes())
        page.change("PUT", "/api/pictures/b.png/draft", (disc(60, 80) ^ 1).tobytes())
        page.search()
        before = json.loads(page.get("/api/state"))
    (root / "images" / ".d.png.0123.tmp").write_bytes(b"killed while it was written")
    with serving(segmenter, root) as page:
        assert json.loads(page.get("/api/state")) == before
        assert page.get("/api/pictures/b.png/marks") == (disc(60, 80) ^ 1).tobytes()
        assert {one["name"]: (one["state"], one["draft"]) for one in before["pictures"]} == {
            "a.png": ("labelled", False),
            "b.png": ("found", True),
            "c.png": ("found", False),
        }
        assert not list((root / "images").glob(".*"))
    (labels,) = read_labels(root)
    assert labels.picture == root / "images" / "a.png"
    assert labels.masks.keys() == {"cat"}
    assert (labels.masks["cat"] == disc(60, 80)).all()


def test_nothing_is_lost_by_a_slip(page, tmp_path):
    page.add("a.png", picture(60, 80, 0))
    page.change("POST", "/api/classes", {"name": "cat"})
    page.change("PUT", "/api/pictures/a.png/label", disc(60, 80).tobytes())
    state = page.change("DELETE", "/api/pictures/a.png/label")
    assert (state["pictures"][0]["state"], state["pictures"][0]["draft"]) == ("waiting", True)
    assert page.get("/api/pictures/a.png/marks") == disc(60, 80).tobytes()
    page.change("PUT", "/api/pictures/a.png/label", disc(60, 80).tobytes())
    state = page.change("POST", "/api/clear")
    assert state["pictures"] == state["classes"] == []
    (removed,) = (tmp_path / "labelled" / ".removed").iterdir()
    assert read_labels(removed)[0].masks.keys() == {"cat"}


def test_marks_keep_the_size_of_a_large_picture(page, tmp_path):
    page.add("large.png", picture(1500, 3000, 0))
    page.change("POST", "/api/classes", {"name": "cat"})
    (one,) = json.loads(page.get("/api/state"))["pictures"]
    assert one["size"] == [1024, 512]
    fine = np.zeros((1500, 3000), dtype=np.uint8)
    fine[::2, 100:1000] = 1  # finer than what is shown
    folder = page.server.work.folder
    folder.write_found("large.png", Found(fine, disc(512, 1024), 0.5, "by"))
    shown = np.frombuffer(page.get("/api/pictures/large.png/marks"), np.uint8).reshape(512, 1024).copy()
    shown[:, 900:] = 1
    page.change("PUT", "/api/pictures/large.png/label", shown.tobytes())
    kept = folder.mask("large.png")
    assert (kept[:, :2600] == fine[:, :2600]).all()
    assert kept[:, 2650:].all()


def test_one_click_brings_pictures_that_work(page):
    state = page.change("POST", "/api/example")
    assert [one["name"] for one in state["classes"]] == ["quartered leaf"]
    assert len(state["pictures"]) == 4
    page.server.work.wait()
    state = json.loads(page.get("/api/state"))
    assert sorted(one["state"] for one in state["pictures"]) == ["found"] * 3 + ["labelled"]
    maps = json.loads(page.get("/api/pictures/drawn_query_1.png/maps"))
    assert {"quartered leaf: prior 1", "quartered leaf: correlation 1"} <= {one["name"] for one in maps}


def test_a_box_and_a_click_find_the_object(page):
    scene = np.zeros((200, 300, 3), dtype=np.uint8)
    noise = np.random.default_rng(0).integers(0, 40, scene.shape, dtype=np.uint8)
    scene[:] = (40, 90, 160)
    truth = disc(200, 300)
    scene[truth == 1] = (190, 160, 40)
    page.add("scene.png", Image.fromarray(scene + noise))

    def iou(content):
        found = np.frombuffer(page.change_raw("POST", "/api/pictures/scene.png/outline", content), np.uint8).reshape(
            200, 300
        )
        return (found & truth).sum() / (found | truth).sum()

    page.change_raw = lambda method, path, body: page.ask(method, path, json.dumps(body))[1]
    assert iou({"box": [50, 30, 250, 170]}) > 0.9
    assert iou({"clicks": [[150, 100, True]]}) > 0.9
    half = iou({"clicks": [[150, 100, True], [60, 20, False]]})
    assert half > 0.9
    outline = "/api/pictures/scene.png/outline"
    assert page.refusal("POST", outline, {"clicks": [[1, 2, False]]}).startswith("no click is on the object")
    assert page.refusal("POST", outline, {"box": [400, 400, 500, 500]}).startswith("the box holds no pixel")
    assert page.refusal("POST", outline, {"box": "all"}).startswith("expected a box")


# ------------------------------------------------------------------------------------------------------------ refusals


def test_what_a_user_does_wrong_is_one_line(page, tmp_path):
    assert page.refusal("POST", "/api/search").startswith("there is no example yet")
    assert page.refusal("GET", "/api/annotations.json").startswith("there is nothing to download yet")
    add = "/api/pictures?name="
    assert "text.jpg cannot be read" in page.refusal("POST", f"{add}text.jpg", b"no picture")
    assert page.refusal("POST", f"{add}text.txt", b"no picture").startswith("text.txt is not called as pictures are")
    vast = png(Image.new("1", (8000, 8000)))
    assert len(vast) < 10**5
    assert "vast.png has 8000x8000 (HxW) pixels: expected at most 50 million" in page.refusal(
        "POST", f"{add}vast.png", vast
    )
    assert not list((tmp_path / "labelled" / "images").iterdir())
    assert page.add("../../a b/..\\été?.png", picture(60, 80, 0)) == "été_.png"
    assert page.add("été_.png", picture(60, 80, 1)) == "été__2.png"
    one = f"/api/pictures/{quote('été_.png')}"
    assert page.refusal("PUT", f"{one}/label", b"\0" * 9).endswith("are 9 bytes: expected 60x80")
    assert "with values up to 1: expected 60x80 and at most 0" in page.refusal("PUT", f"{one}/label", b"\1" * 4800)
    for name in ("", "void", "1st", "a, b", "x" * 61, "Road 128 64 128"):
        assert "is no name for a class" in page.refusal("POST", "/api/classes", {"name": name})
    page.change("POST", "/api/classes", {"name": "cat"})
    page.change("POST", "/api/classes", {"name": "dog"})
    assert page.refusal("POST", "/api/classes", {"name": "Cat"}).startswith("there is a class 'Cat' already")
    assert "only the last of the list can" in page.refusal("DELETE", "/api/classes/1")
    page.change("PUT", f"{one}/label", b"\2" * 4800)
    assert "été_.png has marks of it" in page.refusal("DELETE", "/api/classes/2")
    state = page.change("PUT", "/api/classes/2", {"name": "wolf"})
    assert [kind["name"] for kind in state["classes"]] == ["cat", "wolf"]
    for path in (
        "/api/pictures/none.png/marks",
        f"/api/pictures/{quote('../classes.txt', safe='')}/picture",
        "/etc/passwd",
    ):
        assert "there is no" in page.refusal("GET", path, code=404)
    assert str(tmp_path) not in page.refusal("POST", "/api/classes", b"[]")


def test_a_picture_that_cannot_be_read_is_left_out_and_told(page, tmp_path):
    for seed, name in enumerate("abc"):
        page.add(f"{name}.png", picture(60, 80, seed))
    page.change("POST", "/api/classes", {"name": "cat"})
    page.change("PUT", "/api/pictures/a.png/label", disc(60, 80).tobytes())
    damaged = tmp_path / "labelled" / "images" / "b.png"
    damaged.write_bytes(damaged.read_bytes()[:-200])
    state = page.search()
    told = {one["name"]: (one["state"], one["error"]) for one in state["pictures"]}
    assert told["c.png"][0] == "found"
    assert told["b.png"][0] == "error"
    assert "b.png cannot be read" in told["b.png"][1]
    assert str(tmp_path) not in told["b.png"][1]
    assert len(json.loads(page.get("/api/annotations.json"))["images"]) == 2


@pytest.mark.parametrize(
    ("method", "path", "headers", "code"),
    [
        ("GET", "/api/state", {}, 200),
        ("GET", "/api/state", {"Host": "localhost:8000"}, 200),  # through a tunnel
        ("GET", "/", {"Sec_Fetch_Site": "cross-site"}, 200),  # a link
        ("GET", "/", {"Host": "evil.example:7860"}, 403),
        ("GET", "/api/state", {"Host": "127.0.0.1.evil.example"}, 403),
        ("GET", "/api/overview.png", {"Sec_Fetch_Site": "cross-site"}, 403),
        ("POST", "/api/clear", {"Origin": "https://evil.example"}, 403),
        ("POST", "/api/clear", {"Origin": "http://localhost:3000"}, 403),
        ("POST", "/api/clear", {"Origin": "null"}, 403),
        ("POST", "/api/clear", {"Sec_Fetch_Site": "same-site"}, 403),
        ("POST", "/api/pictures?name=a.png", {"Content_Length": "100000001"}, 413),
        ("POST", "/api/pictures?name=a.png", {"Transfer_Encoding": "chunked"}, 411),
        ("OPTIONS", "/api/state", {}, 501),
    ],
)
def test_only_the_page_itself_may_ask(page, method, path, headers, code):
    status, _, answered = page.ask(method, path, None, **headers)
    assert status == code
    if code == 200:
        assert "default-src 'self'" in answered["Content-Security-Policy"]
        assert answered["X-Content-Type-Options"] == "nosniff"
        assert "Access-Control-Allow-Origin" not in answered


def test_only_this_machine_reaches_the_page(page):
    with socket.socket() as other, pytest.raises(ConnectionRefusedError):
        other.connect(("127.0.0.2", page.server.server_port))  # answers where a server listens on all addresses


def test_an_error_of_the_program_is_one_line_and_keeps_its_traceback(page, monkeypatch, caplog):
    monkeypatch.setattr(page.server.work, "state", lambda: 1 / 0)
    assert page.refusal("GET", "/api/state", code=500) == "an error of the program: the terminal shows it"
    assert "ZeroDivisionError" in caplog.text


# -------------------------------------------------------------------------------------------------- which network it is


def test_a_network_of_drawn_shapes_warns(segmenter):
    about = describe(segmenter, packaged=False)
    assert about.model.startswith("hdmnet on ")
    assert about.training == "trained on the drawn SHAPES, fold 0"
    assert "on photographs it will fail" in about.warning


@pytest.mark.long
def test_the_packaged_network_and_an_untrained_one_say_so():
    about = describe(Segmenter.pretrained(device="cpu"), packaged=True)
    assert about == About(
        "the packaged segmenter (correlation on efficientnet_lite2, sees 257×257 pixels)",
        "trained on 906 photographs of PASCAL VOC and COCO",
    )
    untrained = Segmenter.without_training("prototype", device="cpu")
    assert describe(untrained, packaged=False).training.startswith("nothing trained but its trunk")


# ---------------------------------------------------------------------------------------------------------- the command


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("prot=1",), 2, "prot: no such key; did you mean 'port'?"),
        (("server_name=0.0.0.0",), 2, "server_name: no such key"),
        (("port=70000",), 2, "port=70000: expected an integer from 0 (any free port) to 65535"),
        (("ckpt=none.ckpt", "port=0"), 1, "checkpoint"),
    ],
)
def test_refusals_of_the_command(tmp_path, words, code, message):
    handler = signal.getsignal(signal.SIGTERM)
    answer = commands.call("demo", tmp_path / "runs", *words)
    assert answer.refusal().startswith(message)
    assert answer.code == code
    assert signal.getsignal(signal.SIGTERM) is handler


def test_a_folder_of_something_else_and_a_port_that_is_taken_are_one_line(tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("dear")
    answer = commands.call("demo", tmp_path / "runs", f"folder={tmp_path / 'letters'}", "port=0")
    assert "holds other things and no images/" in answer.refusal()
    assert [one.name for one in (tmp_path / "letters").iterdir()] == ["a.txt"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"port={port} cannot be used .*: expected a free one, e.g. port=0 for any"):
            PageServer(port)


def wait_for(condition, seconds=240):
    """What `condition` gives once it is true; the machine may be busy with other tests."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError(f"waited for {seconds} s in vain")


@pytest.fixture(scope="module")
def served(start, tmp_path_factory):
    """The command in a process of its own: address and folder.

    Every address that the process connects to or looks up goes to `asked.txt`.
    """
    root = tmp_path_factory.mktemp("served")
    (root / "sitecustomize.py").write_text(
        f"import sys\nfile = open({str(root / 'asked.txt')!r}, 'a', buffering=1)\n"
        "def note(event, words):\n"
        "    if event in ('socket.connect', 'socket.getaddrinfo', 'socket.gethostbyname'):\n"
        "        print(event, words[1] if event == 'socket.connect' else words[0], file=file)\n"
        "sys.addaudithook(note)\n"
    )
    setting = {"PYTHONPATH": f"{root}:{commands.ROOT}", "http_proxy": "http://127.0.0.1:9"}
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
    finally:
        process.terminate()  # not SIGINT, which is ignored where the tests run in the background
        try:
            code = process.wait(60)
        finally:
            process.kill()
    assert code == 0
    assert (root / "out.txt").read_text().splitlines() == [
        f"the page is at {address[1]} and keeps its work in {root / 'runs' / 'labelled'} (Ctrl-C ends it)",
        "the page is closed",
    ]


@pytest.mark.slow
def test_the_command_asks_no_other_machine_and_holds_its_folder(served, start):
    address, root = served
    page = http.client.HTTPConnection(*address.split("/")[2].split(":"), timeout=60)
    with contextlib.closing(page):
        page.request("GET", "/")
        text = page.getresponse().read().decode()
    assert "Try it on drawn pictures" in text
    assert not re.search(r"(href|src)=.?(https?:)?//", text)
    second = commands.run_process("demo", root / "runs", f"ckpt={start}", "device=cpu", "port=0")
    assert "is in use by process" in second.refusal()
    assert "folder=DIR" in second.refusal()
    # Looking up the own name for messages asks nobody else.
    asked = (root / "asked.txt").read_text().splitlines() if (root / "asked.txt").exists() else []
    assert not [line for line in asked if "127.0.0.1" not in line], asked


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
        *("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1000", "--no-proxy-server"),
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ):
        options.add_argument(word)
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    yield driver
    driver.quit()


# Of the controls that are seen: those that stick out of the window, or lie on one another.
BADLY_LAID = """
const kinds = 'button, .button, #side input[type=text], .group span, .size, h1, h2, #hint';
const seen = [...document.querySelectorAll(kinds)]
  .filter(one => one.checkVisibility() && !one.closest('#queue'));
const boxes = seen.map(one => one.getBoundingClientRect());
const bad = seen.filter((one, at) => boxes[at].right > innerWidth + 1 || boxes[at].left < 0
  || one.scrollWidth > one.clientWidth + 2 && one.matches('button'));
seen.forEach((one, at) => seen.slice(at + 1).forEach((other, next) => {
  const a = boxes[at], b = boxes[at + 1 + next];
  if (Math.min(a.right, b.right) - Math.max(a.left, b.left) > 3
    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3
    && !one.contains(other) && !other.contains(one)) bad.push(one, other);
}));
return bad.map(one => one.outerHTML);
"""


@pytest.mark.slow
@FOREIGN
def test_a_newcomers_path_to_a_coco_json(served, browser, start, tmp_path):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    address, _ = served
    pictures = {"one.png": (60, 90), "two.png": (80, 80), "three.png": (70, 100)}
    for seed, (name, size) in enumerate(pictures.items()):
        picture(*size, seed).save(tmp_path / name)
    (tmp_path / "text.jpg").write_text("no picture")

    def get(name):
        return browser.find_element("id", name)

    def see(condition):
        """As `wait_for`, with what the page says where it is in vain."""
        try:
            return wait_for(condition, 120)
        except AssertionError:
            raise AssertionError(browser.find_element("tag name", "body").text) from None

    def press(key, held=None):
        keys = ActionChains(browser)
        keys = keys.send_keys(key) if held is None else keys.key_down(held).send_keys(key).key_up(held)
        keys.perform()

    def enabled():
        return set(
            browser.execute_script("return [...document.querySelectorAll('button[id]:enabled')].map(one => one.id)")
        )

    def queue():
        return dict(
            browser.execute_script(
                "return [...document.querySelectorAll('#queue button')]"
                ".map(one => [one.dataset.name, one.querySelector('small').textContent])"
            )
        )

    def choose(name):
        browser.execute_script(
            "[...document.querySelectorAll('#queue button')].find(one => one.dataset.name === arguments[0]).click()",
            name,
        )
        wait_for(lambda: get("title").text == name)

    def painted(value=1):
        return browser.execute_async_script(
            "const [value, done] = arguments; const name = document.getElementById('title').textContent;"
            "setTimeout(() => fetch(`api/pictures/${name}/marks`).then(r => r.arrayBuffer())"
            ".then(b => done(new Uint8Array(b).filter(v => v === value).length)), 900)",
            value,
        )

    def narrow():
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride", {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        )
        wait_for(lambda: browser.execute_script("return innerWidth") == 400)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 400
        assert browser.execute_script(BADLY_LAID) == []
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

    # The empty page says what to do and which network runs; what cannot be pressed yet is grey.
    browser.get(address)
    see(lambda: "trained on the drawn SHAPES" in get("about").text)
    assert "on photographs it will fail" in get("warning").text
    assert get("example").is_displayed()
    assert not {"label", "search", "coco", "zip", "overview"} & enabled()
    narrow()

    # Three pictures; a file that is none is one line.
    get("files").send_keys("\n".join(str(tmp_path / name) for name in (*pictures, "text.jpg")))
    see(lambda: "text.jpg cannot be read" in get("status").text)
    assert queue().keys() == pictures.keys()
    assert not get("welcome").is_displayed()
    see(lambda: get("hint").text.startswith("Paint over the whole object"))
    name = browser.find_element("css selector", "#classes input[type=text]")
    name.send_keys(Keys.CONTROL, "a", Keys.NULL, "blob", Keys.TAB)
    see(lambda: "Paint over the whole blob" in get("hint").text)
    assert not {"label", "search", "coco", "undo"} & enabled() - {"label"}

    # A stroke, taken back and made again; then F makes it the example and searches.
    canvas = get("canvas")
    stroke = ActionChains(browser, duration=50).move_to_element_with_offset(canvas, -100, -60).click_and_hold()
    for step in range(8):
        stroke.move_by_offset(20, 60 if step % 2 else -20)
    stroke.release().perform()
    first = get("title").text
    area = painted()
    assert area > 100
    press("z", held=Keys.CONTROL)
    assert painted() == 0
    press("y", held=Keys.CONTROL)
    assert painted() == area
    assert get("search").is_enabled()
    press("f")
    see(lambda: sum("sure" in words for words in queue().values()) == 2)
    assert queue()[first] == "✓ example"
    order = [int(words.split()[0]) for words in queue().values() if "sure" in words]
    assert order == sorted(order)

    # The least sure first: a second class, a box in it, erased in part, and called right.
    second = next(iter(queue()))
    choose(second)
    get("new-name").send_keys("box", Keys.ENTER)
    rows = "const rows = [...document.querySelectorAll('#classes li')]; return rows.map(row => row.className)"
    see(lambda: browser.execute_script(rows) == ["", "chosen"])
    get("title").click()
    press("r")
    ActionChains(browser, duration=50).move_to_element_with_offset(canvas, 60, 60).key_down(
        Keys.SHIFT
    ).click_and_hold().move_by_offset(120, 100).release().key_up(Keys.SHIFT).perform()
    whole = see(lambda: painted(2))
    press("e")
    ActionChains(browser, duration=50).move_to_element_with_offset(canvas, 80, 80).click_and_hold().move_by_offset(
        30, 30
    ).release().perform()
    left = see(lambda: painted(2) < whole and painted(2))
    # What was painted is there after a reload, before anybody has called it right.
    browser.get(address)
    see(lambda: second in queue())
    choose(second)
    assert painted(2) == left
    narrow()
    press(Keys.ENTER)
    see(lambda: queue()[second] == "✓ example")
    see(lambda: get("search").is_enabled())
    get("search").click()
    third = next(one for one in pictures if one not in (first, second))
    see(lambda: re.fullmatch(r"\d+ % sure", queue()[third]))

    # The JSON that is downloaded has the marks, and what the Segmenter finds with them.
    see(lambda: get("coco").is_enabled())
    get("coco").click()
    coco = COCO(see(lambda: list(tmp_path.glob("annotations.json")))[0])
    assert [one["name"] for one in coco.loadCats(coco.getCatIds())] == ["blob", "box"]
    ids = {one["file_name"]: one["id"] for one in coco.loadImgs(coco.getImgIds())}

    def union(name, value):
        parts = [coco.annToMask(one) for one in coco.loadAnns(coco.getAnnIds(ids[name], value))]
        return np.any(parts, axis=0) if parts else np.zeros(pictures[name], dtype=bool)

    assert union(first, 1).sum() == area
    assert union(second, 2).sum() == left
    examples = {
        "blob": (
            [tmp_path / name for name in (first, second) if union(name, 1).any()],
            [union(name, 1) for name in (first, second) if union(name, 1).any()],
        ),
        "box": ([tmp_path / second], [union(second, 2)]),
    }
    found = Segmenter.from_checkpoint(start, device="cpu").fit(examples).predict(tmp_path / third)
    for value in (1, 2):
        assert (union(third, value) == (found.mask == value)).all()
    foreign = (
        "return performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.startsWith(location.origin))"
    )
    assert not [one for one in browser.execute_script(foreign) if not one.startswith(("blob:", "data:"))]
    assert not [line for line in browser.get_log("browser") if "/api/pictures?name=text.jpg" not in line["message"]]
