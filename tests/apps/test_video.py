"""Videos: masks by frame from files and folders, frames that become supports, and work that goes on after a stop."""

from __future__ import annotations

import csv
import shutil

import cv2
import numpy as np
import pytest
from PIL import Image

from hdmnet import Segmenter
from hdmnet.apps import video as videos
from hdmnet.apps.predict import find_queries
from hdmnet.apps.unfinished import FOLDER, Unfinished
from hdmnet.apps.video import MEMORY_STEP, FrameTable, Memory, Pens, Video, VideoSettings, segment_video
from tests.helpers import commands

SIZE, NUM_FRAMES = (48, 64), 14  # (H, W)


def drawn(number):
    """A bright square that moves to the right over waves."""
    y, x = np.mgrid[0 : SIZE[0], 0 : SIZE[1]]
    frame = np.stack([60 + 40 * np.sin(x / 5), 60 + 40 * np.cos(y / 4), 70 + 0 * x], axis=2).astype(np.uint8)
    left = 2 + 3 * number
    frame[14:34, left : left + 20] = (230, 180, 40)
    return frame


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A video, the same as a folder of frames, a support with its mask, and what is no video."""
    root = tmp_path_factory.mktemp("videos")
    (root / "frames").mkdir()
    (root / "empty").mkdir()
    writer = cv2.VideoWriter(str(root / "film.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, SIZE[::-1])
    for number in range(NUM_FRAMES):
        writer.write(cv2.cvtColor(drawn(number), cv2.COLOR_RGB2BGR))
        Image.fromarray(drawn(number)).save(root / "frames" / f"{number:03}.png")
    writer.release()
    mask = np.zeros(SIZE, np.uint8)
    mask[14:34, 2:22] = 255
    Image.fromarray(drawn(0)).save(root / "a.png")
    Image.fromarray(mask).save(root / "mask.png")
    (root / "text.mp4").write_text("no video")
    return root


@pytest.fixture(scope="module")
def segmenter(folder, start):
    return Segmenter.from_checkpoint(start, device="cpu").fit(folder / "a.png", folder / "mask.png")


def predict(folder, start, output, *words):
    support = f"support=[{folder}/a.png:{folder}/mask.png]"
    return commands.call("predict", output, f"ckpt={start}", "device=cpu", f"output={output}", support, *words)


def pens():
    return Pens(lambda path, mask: Image.fromarray(mask * np.uint8(255)).save(path), lambda frame, mask: frame)


def masks_of(folder):
    return [np.asarray(Image.open(path)) for path in sorted(folder.glob("frame_*_mask.png"))]


def table_of(folder):
    with (folder / "frames.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_file_and_a_folder_of_frames_by_the_command(folder, start, segmenter, tmp_path):
    words = (f"query=[{folder}/film.avi,{folder}/frames]", "video.folders=true", "video.fps=12")
    answer = predict(folder, start, tmp_path, *words)
    assert answer.code == 0, answer.err
    assert "segmented 2 of 2 videos" in answer.out
    for path, fps in ((folder / "film.avi", 10), (folder / "frames", 12)):
        made = Video(path, 12)
        assert (made.num_frames, made.fps) == (NUM_FRAMES, fps)
        expected = [segmenter.predict(frame).mask for frame in made.frames()]
        assert 0 < np.mean(expected) < 1
        found = masks_of(tmp_path / path.stem)
        assert len(found) == NUM_FRAMES
        assert all((one == other * 255).all() for one, other in zip(found, expected, strict=True))
        rows = table_of(tmp_path / path.stem)
        assert [float(row["seconds"]) for row in rows] == pytest.approx([n / fps for n in range(NUM_FRAMES)], abs=1e-3)
        shares = [float(row["object share"]) for row in rows]
        assert shares == pytest.approx([mask.mean() for mask in expected], abs=1e-5)
        overlay = Video(tmp_path / f"{path.stem}_overlay.mp4", 1)
        assert overlay.fps == fps
        assert [frame.shape for frame in overlay.frames()] == [(*SIZE, 3)] * NUM_FRAMES
    assert not (tmp_path / FOLDER).exists()


@pytest.mark.parametrize("memory", [0, 1])
def test_after_a_stop_no_frame_is_computed_twice(folder, segmenter, tmp_path, monkeypatch, memory):
    video, settings = Video(folder / "film.avi", 25), VideoSettings(memory=memory, confident=0.5)
    whole = tmp_path / "whole"
    segment_video(segmenter, video, whole, Unfinished(tmp_path / "work_whole", {}), settings, pens())
    answer, calls = Segmenter.answer, []

    def stopping(self, picture, ranges=None, classes=None):
        if len(calls) == NUM_FRAMES + 12:  # of them NUM_FRAMES to find the ranges
            raise KeyboardInterrupt
        calls.append(picture)
        return answer(self, picture, ranges, classes)

    monkeypatch.setattr(Segmenter, "answer", stopping)
    with pytest.raises(KeyboardInterrupt):
        segment_video(segmenter, video, tmp_path / "film", Unfinished(tmp_path / "work", {}), settings, pens())
    table = tmp_path / "work" / "frames.csv"
    table.write_text(table.read_text() + "12,0.48")  # cut off in the middle of a line
    assert len(masks_of(tmp_path / "film")) == 12
    assert not (tmp_path / "film" / "frames.csv").exists()
    calls.clear()
    segment_video(segmenter, video, tmp_path / "film", Unfinished(tmp_path / "work", {}), settings, pens())
    assert len(calls) == NUM_FRAMES - 12
    assert table_of(tmp_path / "film") == table_of(whole)
    assert all((one == other).all() for one, other in zip(masks_of(tmp_path / "film"), masks_of(whole), strict=True))
    if memory:
        assert [row["object support"] for row in table_of(whole)].count("1") == 2


def test_an_object_in_every_frame_needs_no_ranges(folder, segmenter, tmp_path, monkeypatch):
    answer, given = Segmenter.answer, []

    def noting(self, picture, ranges=None, classes=None):
        given.append(ranges)
        return answer(self, picture, ranges, classes)

    monkeypatch.setattr(Segmenter, "answer", noting)
    for always, number in ((True, NUM_FRAMES), (False, 2 * NUM_FRAMES)):
        given.clear()
        work, settings = Unfinished(tmp_path / f"work_{always}", {}), VideoSettings(in_every_frame=always)
        segment_video(segmenter, Video(folder / "film.avi", 25), tmp_path / f"{always}", work, settings, pens())
        assert len(given) == number
        assert all((ranges is None) == always for ranges in given)


def test_a_frame_whose_mask_is_gone_is_not_done(tmp_path):
    table = FrameTable(tmp_path / "work.csv", ("a, b", "c"), tmp_path)
    for number in range(3):
        videos.mask_file(tmp_path, number).touch()
        table.add(number / 25, [(0.5, 0.9), (0.0, 0.0)], [number == 1, False])
    assert FrameTable(tmp_path / "work.csv", ("a, b", "c"), tmp_path).rows == [
        [False, False],
        [True, False],
        [False, False],
    ]
    videos.mask_file(tmp_path, 1).unlink()
    assert FrameTable(tmp_path / "work.csv", ("a, b", "c"), tmp_path).rows == [[False, False]]


def test_which_frames_become_supports(segmenter):
    """Confident ones, so many frames apart; the last ones count, beside the user's own."""
    memory = Memory(segmenter, VideoSettings(memory=2, confident=0.7), [])
    mask = np.zeros(SIZE, np.uint8)
    mask[14:34, 10:30] = 1
    taken = []
    for number in range(3 * MEMORY_STEP + 5):
        probability = 0.6 if number < 3 else 0.9
        taken += [number] * memory.offer(number, drawn(number % 10), mask, [(mask.mean(), probability)])[0]
    assert taken == [3 + step * MEMORY_STEP for step in range(4)]
    assert memory.classes()["object"].shots == 1 + 2
    assert memory.offer(99, drawn(0), mask * 0, [(0.0, 0.99)]) == [False], "nothing that could be a support"
    assert Memory(segmenter, VideoSettings(), []).offer(0, drawn(0), mask, [(0.1, 1.0)]) == [False], "nobody asked"


def test_where_no_mp4_can_be_written_it_is_an_avi(folder, segmenter, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(videos, "_CODECS", ((".mp4", "none"), (".avi", "MJPG")))
    video, arguments = Video(folder / "frames", 25), (VideoSettings(), pens())
    segment_video(segmenter, video, tmp_path / "film", Unfinished(tmp_path / "work", {}), *arguments)
    assert "this OpenCV has no encoder for MP4: the overlay is written as AVI (Motion JPEG)" in caplog.messages
    assert len(list(Video(tmp_path / "film_overlay.avi", 25).frames())) == NUM_FRAMES
    monkeypatch.setattr(videos, "_CODECS", ((".mp4", "none"),))
    segment_video(segmenter, video, tmp_path / "other", Unfinished(tmp_path / "work2", {}), *arguments)
    assert "no overlay video; the masks are there" in caplog.text
    assert len(masks_of(tmp_path / "other")) == NUM_FRAMES


def test_a_video_that_is_cut_short_is_told(folder, tmp_path, caplog):
    content = (folder / "film.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(content[: len(content) // 2])
    video = Video(tmp_path / "cut.avi", 25)
    video.num_frames = NUM_FRAMES  # what the header of a longer file says; OpenCV counts this one's
    assert 0 < len(list(video.frames())) < NUM_FRAMES
    assert f"of {NUM_FRAMES} frames: is it damaged?" in caplog.text


def test_what_the_queries_are(folder):
    found = find_queries(str(folder))
    assert [path.name for path in found] == ["a.png", "mask.png"], "a folder's videos are named, not found"
    assert find_queries([f"{folder}/*.avi"]) == [folder / "film.avi"]
    assert find_queries([f"{folder}/frames"], whole_folders=True) == [folder / "frames"]
    assert len(find_queries([f"{folder}/frames"])) == NUM_FRAMES


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["query=film.avi", "formats=[png,coco]"],
            "of a video masks and an overlay are written; expected formats=[png]",
        ),
        (["query=film.avi", "maps=true"], "maps=True and query=film.avi: of pictures only; leave it out for videos"),
        (["query=film.avi", "tile=64"], "tile=64 and query=film.avi: of pictures only"),
        (["query=film.avi", "video.memory=-1"], "video.memory=-1: expected 0 or a number of frames"),
        (["query=film.avi", "video.confident=0.2"], "video.confident=0.2: expected a probability from 0.5 to 1"),
        (["query=film.avi", "video.fps=0"], "video.fps=0.0: expected a number above 0"),
    ],
)
def test_refusals(folder, start, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(folder)
    answer = predict(folder, start, tmp_path, *words)
    assert answer.code == 1
    assert message in answer.refusal()


def test_masks_do_not_lie_among_the_frames(folder, start, tmp_path):
    shutil.copytree(folder / "frames", tmp_path / "frames")
    answer = predict(folder, start, tmp_path, f"query={tmp_path}/frames", "video.folders=true")
    assert "would lie among its frames: choose another folder" in answer.refusal()


def test_one_line_for_each_that_is_no_video(folder, start, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    answer = predict(folder, start, tmp_path, "query=[text.mp4,gone.mp4,empty,a.png]", "video.folders=true")
    assert answer.code == 1
    lines = [line for line in answer.err.replace("\r", "\n").splitlines() if line.startswith("error: ")]
    assert lines == [
        "error: video text.mp4 cannot be read: replace it by a whole one, or convert it to MP4 (H.264)",
        "error: video gone.mp4 not found; expected the path of a video file",
        "error: video empty holds no picture by its name (.jpg, .png, …); expected frames",
        "error: 3 of 4 queries could not be segmented, see above; the others are done",
    ]
    assert (tmp_path / "a_mask.png").is_file()
