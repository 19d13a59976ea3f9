"""The back end for Label Studio against requests of the form in which Label Studio 1.20 sends them."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from threading import Thread

import numpy as np
import pytest
from PIL import Image

from hdmnet import Segmenter
from hdmnet.data.io.label_files import encode_brush, read_label_studio
from scripts.apps import label_studio
from tests.apps.test_pretrained import iou, photo

BRUSH = """<View><Image name="image" value="$image" zoom="true"/>
  <BrushLabels name="tag" toName="image"><Label value="ball" background="#FFA39E"/><Label value="net"/></BrushLabels>
</View>"""
POLYGONS = BRUSH.replace("BrushLabels", "PolygonLabels")


@pytest.fixture
def pictures(tmp_path):
    for number, place in enumerate([(50, 50), (80, 110), (40, 100)]):
        Image.fromarray(photo(number, *place)[0]).save(tmp_path / f"{number}.png")
    return tmp_path


@pytest.fixture
def ask(pictures):
    back_end = label_studio.BackEnd(Segmenter.pretrained(device="cpu", image_size=161), pictures, {}, shot=2)
    server = label_studio.make_server(back_end, "127.0.0.1", 0)
    Thread(target=server.serve_forever, daemon=True).start()

    def send(path, content=None, **headers):
        data = None if content is None else json.dumps(content).encode()
        url = f"http://127.0.0.1:{server.server_port}{path}"
        with urllib.request.urlopen(
            urllib.request.Request(url, data, {"Content-Type": "application/json", **headers})
        ) as reply:
            return json.load(reply)

    yield send
    server.shutdown()
    server.server_close()


def task(number):
    return {"id": number, "data": {"image": f"/data/upload/1/0123abcd-{number}.png"}, "annotations": [], "project": 1}


def annotation(mask):
    stroke = {"format": "rle", "rle": encode_brush(mask), "brushlabels": ["ball"]}
    sizes = {"original_width": mask.shape[1], "original_height": mask.shape[0], "image_rotation": 0}
    return {"id": 7, "result": [{"id": "x", "type": "brushlabels", "from_name": "tag", "value": stroke, **sizes}]}


def predict(ask, number, config=BRUSH):
    asked = {"tasks": [task(number)], "label_config": config, "project": "1.1", "params": {"context": None}}
    (result,) = ask("/predict", asked)["results"]
    return result


@pytest.mark.parametrize("config", [BRUSH, POLYGONS])
def test_what_is_submitted_is_found_in_the_next_pictures(ask, pictures, config):
    assert ask("/health")["status"] == "UP"
    before = ask("/setup", {"project": "1.1", "schema": config, "hostname": "http://localhost:8080"})["model_version"]
    assert predict(ask, 1, config)["result"] == []  # nothing is submitted yet
    submitted = {"action": "ANNOTATION_CREATED", "project": {"id": 1}, "task": task(0)}
    after = ask("/webhook", {**submitted, "annotation": annotation(photo(0, 50, 50)[1].astype(bool))})["model_version"]
    assert after != before
    answer = predict(ask, 1, config)
    assert answer["model_version"] == after
    assert 0.5 < answer["score"] <= 1
    # Label Studio's own reading: an accepted prediction comes back in its export.
    exported = [{"data": task(1)["data"], "annotations": [{"result": answer["result"]}]}]
    (labels,) = read_label_studio(pictures / "export.json", exported)
    assert iou(labels.masks["ball"], photo(1, 80, 110)[1]) > 0.5


def test_a_correction_replaces_the_support_of_its_picture(ask):
    submitted = {"action": "ANNOTATION_CREATED", "project": {"id": 1}, "task": task(0)}
    wrong = np.zeros((120, 160), dtype=bool)
    wrong[:20] = True
    ask("/webhook", {**submitted, "annotation": annotation(wrong)})
    version = ask("/webhook", {**submitted, "action": "ANNOTATION_UPDATED", "annotation": annotation(wrong)})
    right = {**submitted, "action": "ANNOTATION_UPDATED", "annotation": annotation(photo(0, 50, 50)[1].astype(bool))}
    assert ask("/webhook", right)["model_version"] == version["model_version"] == "hdmnet, 1 supports"
    assert predict(ask, 1)["result"]


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"tasks": [], "label_config": "<View><Choices name='a' toName='b'/></View>"}, "none of BrushLabels"),
        ({"tasks": [], "label_config": "<View>"}, "ParseError"),
        ({"label_config": BRUSH}, "tasks"),
    ],
)
def test_what_it_cannot_answer_is_one_line(ask, request_, said):
    with pytest.raises(urllib.error.HTTPError) as refusal:
        ask("/predict", request_)
    with refusal.value as answer:
        assert answer.code == 400
        assert said in json.load(answer)["error"]


def test_a_page_in_a_browser_is_refused(ask):
    with pytest.raises(urllib.error.HTTPError) as refusal:
        ask("/health", Origin="http://elsewhere")
    with refusal.value as answer:
        assert answer.code == 400


def test_a_wrong_folder_is_one_line(capsys):
    assert label_studio.main(["nowhere"]) == 1
    assert capsys.readouterr().err == "label_studio: nowhere is no folder; expected that with the project's pictures\n"
