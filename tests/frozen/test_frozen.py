"""What the code computed and composed before it was moved into rooms, and does still.

`recorded.json`, `predicted.npz` and `run/` were made by version 0.1.0: a training with the ensemble, killed at step 2
of 4, its weights made periodic so that they compress; its evaluation, its predictions and its resume. `configs.txt`
holds what is composed now: whoever changes a config on purpose writes it again with HDMNET_WRITE_CONFIGS=1 and reads
the diff.
"""

from __future__ import annotations

import json
import lzma
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers import commands
from tests.helpers.configs import COMMANDS, OPTIONS, differences, lines_of, recorded, word_of, words_of
from tests.helpers.configs import RECORDED as RECORDED_CONFIGS

HERE = Path(__file__).parent
RECORDED = json.loads((HERE / "recorded.json").read_text())
STAGE1_THEN = ("dataset.base_image_size=65", "optim.base.augment=flip")  # defaults that have changed since


@pytest.fixture
def run_folder(tmp_path):
    """The folder of the killed run, as it was."""
    folder = tmp_path / "killed" / "run"
    shutil.copytree(HERE / "run", folder)
    (folder / "finished_result.json").unlink()
    packed = folder / "checkpoints" / "last.ckpt.xz"
    for name in ("last.ckpt", "best.ckpt"):
        (folder / "checkpoints" / name).write_bytes(lzma.decompress(packed.read_bytes()))
    packed.unlink()
    return folder


def same(found, recorded, tolerance=1e-4):
    """Compare what a JSON file holds; floats closely, as other processors round otherwise."""
    if isinstance(recorded, dict):
        for key, value in recorded.items():
            same(found[key], value, tolerance)
    elif isinstance(recorded, list):
        assert len(found) == len(recorded)
        for pair in zip(found, recorded, strict=True):
            same(*pair, tolerance)
    elif isinstance(recorded, float):
        assert found == pytest.approx(recorded, rel=tolerance, abs=tolerance)
    else:
        assert found == recorded


def rows(folder):
    lines = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    return [{key: float(value) for key, value in zip(lines[0], line, strict=True) if value} for line in lines[1:]]


def test_a_training_from_nothing_has_the_recorded_losses(tmp_path):
    words = [*RECORDED["words"], *STAGE1_THEN, "optim.max_steps=2", "optim.base.max_steps=2"]
    answer = commands.run("train", tmp_path, *words)
    same(answer.result, RECORDED["fresh"]["result"])
    same(rows(answer.folder), RECORDED["fresh"]["metrics"], 1e-3)


@pytest.mark.long
def test_the_old_checkpoint_is_evaluated(tmp_path, run_folder):
    ckpt = run_folder / "checkpoints" / "best.ckpt"
    answer = commands.run("evaluate", tmp_path, f"ckpt={ckpt}", "trainer=cpu", "num_workers=0")
    same(answer.result, RECORDED["evaluated"], 1e-3)


def test_the_old_checkpoint_is_predicted_with(tmp_path, run_folder):
    pictures = HERE / "pictures"
    queries = sorted(path for path in pictures.iterdir() if not path.name.startswith("support"))
    commands.run(
        "predict",
        tmp_path,
        f"ckpt={run_folder / 'checkpoints' / 'best.ckpt'}",
        f"support=['{pictures / 'support.png'}:{pictures / 'support_mask.png'}']",
        "query=[" + ",".join(f"'{path}'" for path in queries) + "]",
        f"output={tmp_path / 'predicted'}",
        "device=cpu",
    )
    found = [np.asarray(Image.open(path)) > 0 for path in sorted((tmp_path / "predicted").glob("*_mask.png"))]
    recorded = np.load(HERE / "predicted.npz")
    masks = np.unpackbits(recorded["masks"], axis=2)[:, :, : int(recorded["width"])]
    assert np.mean(np.stack(found) != masks) < 1e-3


@pytest.mark.long
def test_the_old_run_goes_on(tmp_path, run_folder):
    words = [*RECORDED["words"], *STAGE1_THEN, f"ckpt={RECORDED['ckpt']}", f"resume={run_folder}"]
    answer = commands.run("train", tmp_path, *words)
    same(answer.result, RECORDED["resumed"]["result"], 1e-3)
    same(rows(run_folder), RECORDED["resumed"]["metrics"], 1e-3)
    state = commands.load(run_folder / "checkpoints" / "last.ckpt")["state_dict"]
    for name, sums in RECORDED["resumed"]["weights"].items():
        value = state[name].double()
        assert [value.sum().item(), value.abs().sum().item()] == pytest.approx(sums, rel=1e-3, abs=1e-2), name


def test_the_old_result_is_reported(tmp_path):
    run = tmp_path / "run"
    shutil.copytree(HERE / "run", run)
    (run / "finished_result.json").rename(run / "result.json")
    from hdmnet.report import main

    assert main([str(tmp_path), "--out", str(tmp_path / "report")]) in (0, None)
    figure = json.loads((run / "result.json").read_text())["test"]["miou"]
    assert f"{100 * figure:.1f}" in (tmp_path / "report" / "report.html").read_text()


@pytest.mark.long
def test_manifests_have_the_recorded_hashes(data_dir, tmp_path, compose_config):
    from hdmnet.config.paths import make_paths_absolute
    from hdmnet.run.build import build_dataset, build_few_shot_data

    recorded = json.loads((HERE / "manifests.json").read_text())
    found = {}
    for words in recorded:
        folder = data_dir / "pascal" / "ImageSets" / "Segmentation"
        lists = [f"dataset.{split}_list={folder / split}.txt" for split in ("train", "val")] * ("pascal" in words)
        cfg = compose_config(
            "train", *words.split(), *lists, f"paths.data_dir={data_dir}", f"paths.output_dir={tmp_path}"
        )
        make_paths_absolute(cfg, tmp_path)
        data = build_few_shot_data(cfg, build_dataset(cfg))
        data.setup()
        manifests = [data.val_manifest, *data.test_manifests]
        found[words] = [manifest.sha256() for manifest in manifests] + [
            [episode.class_value, episode.query_id, list(episode.support_ids)]
            for episode in (data.train_manifest[index] for index in range(3))
        ]
    assert found == recorded


# --------------------------------------------------------------------------------------------------------- configs


def all_configs(compose_config):
    """Each entry point's composed config whole, then of each option what it makes different."""
    sections = {command: lines_of(compose_config(command)) for command in COMMANDS}
    whole = sections["train"]
    options = {
        f"train {word_of(file)}": differences(whole, lines_of(compose_config("train", *words_of(file))))
        for file in OPTIONS
    }
    rest = {command: sections[command] for command in COMMANDS[1:]}
    return {"train": whole, **options, **rest}


def test_configs_are_composed_as_recorded(compose_config):
    """Of the options see tests/config/test_conf_compose.py."""
    if os.environ.get("HDMNET_WRITE_CONFIGS") == "1":
        sections = all_configs(compose_config).items()
        RECORDED_CONFIGS.write_text("".join("\n".join([f"== {name}", *lines, ""]) for name, lines in sections))
    expected = recorded()
    for command in COMMANDS:
        found = lines_of(compose_config(command))
        assert found == expected[command], "a config is composed otherwise; see the top of this file"
    assert expected.keys() == {*COMMANDS, *(f"train {word_of(file)}" for file in OPTIONS)}
