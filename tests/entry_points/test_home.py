"""`~` in whatever names a file or folder, for every door: nothing is looked for in, or written to, a folder `~`."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hdmnet.cli.compose import compose_words
from hdmnet.config.paths import make_paths_absolute
from hdmnet.data.datasets.folder.dataset import FolderDataset
from hdmnet.data.datasets.pascal import PascalDataset
from hdmnet.models.backbones.weights import find_file
from scripts.data import check_dataset
from tests.helpers.commands import SHAPES, call, run
from tests.helpers.folder_trees import shapes_content, write


@pytest.fixture
def home(monkeypatch, tmp_path):
    """A home folder, and an empty folder beside it to work in."""
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


def without_literal(folder):
    """No folder and no file below bears the name."""
    return not [name for _, folders, files in os.walk(folder) for name in (*folders, *files) if name.startswith("~")]


PATHS = (
    *("dataset.root", "dataset.train_list", "dataset.val_list", "backbone.weights", "ckpt", "base_ckpt", "resume"),
    *("paths.data_dir", "paths.weights_dir", "paths.output_dir", "paths.cache_dir", "trainer.default_root_dir"),
    *("callbacks.checkpoint.dirpath", "callbacks.pictures.directory", "logger.csv.save_dir"),
)
OF_FOLDERS = (
    "dataset.classes",
    "dataset.colours",
    "dataset.images",
    "dataset.masks",
    "dataset.annotations",
    "dataset.folds",
)


def at(cfg, key):
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


@pytest.mark.parametrize("quote", ["", "'"])
def test_every_key_of_a_config(home, quote):
    groups = ["dataset=folder", "logger=csv"]
    cfg = compose_words("train", groups + [f"{key}={quote}~/x y/{key}{quote}" for key in (*PATHS, *OF_FOLDERS)])
    assert {key: at(cfg, key) for key in (*PATHS, *OF_FOLDERS)} == {
        key: str(home / "x y" / key) for key in (*PATHS, *OF_FOLDERS)
    }


def test_lists_and_what_refers_to_other_keys(home):
    words = ["query=[~/a.png,b.png,'~/c (1).png']", "support={cat:[~/a.png:~/b.png]}", "output=~/o"]
    cfg = compose_words("predict", words)
    assert list(cfg.query) == [f"{home}/a.png", "b.png", f"{home}/c (1).png"]
    assert cfg.support == {"cat": [f"{home}/a.png:~/b.png"]}  # the second half is read with it
    cfg = compose_words("train", ["paths.output_dir=~/o"])
    assert cfg.paths.cache_dir == f"{home}/o/cache"


@pytest.mark.parametrize("variable", ["data", "weights", "output"])
def test_environment_variables(home, monkeypatch, variable):
    monkeypatch.setenv(f"HDMNET_{variable.upper()}", "~/there")
    cfg = compose_words("train", [])
    assert cfg.paths[f"{variable}_dir"] == f"{home}/there"
    make_paths_absolute(cfg, "run")
    assert cfg.paths.cache_dir.startswith(f"{home}/there/" if variable == "output" else f"{home.parent}/here/")


WORDS = {
    "output folder": ["paths.output_dir=~/runs"],
    "output folder in quotes": ["paths.output_dir='~/runs'"],
    "run folder": ["hydra.run.dir=~/runs/one"],
    "multirun": ["-m", "seed=0,1", "paths.output_dir=~/runs"],
    "multirun's folder": ["-m", "seed=0", "hydra.sweep.dir=~/runs/many"],
    "options of one's own": ["paths=mine"],
}


@pytest.fixture
def command(home, monkeypatch):
    """Run a command that only keeps its config."""
    from hdmnet.cli.entry_point import entry_point

    def run_words(*words):
        seen = []
        monkeypatch.setattr("sys.argv", ["train", *words])
        entry_point("train")(seen.append)()
        return seen

    return run_words


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in WORDS if "multirun" not in name])
def test_runs_lie_in_the_home_folder(command, home, monkeypatch, name):
    own = home / "conf" / "paths"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("defaults: [default, _self_]\noutput_dir: ~/runs\n")
    monkeypatch.setenv("HDMNET_CONF", "~/conf")
    (cfg,) = command(*WORDS[name])
    assert cfg.paths.run_dir.startswith(f"{home}/runs/")
    assert os.path.isfile(f"{cfg.paths.run_dir}/.hydra/config.yaml")
    assert without_literal(home.parent)


@pytest.mark.long
def test_a_variable_for_the_runs(command, home, monkeypatch):
    monkeypatch.setenv("HDMNET_OUTPUT", "~/runs")
    (cfg,) = command()
    assert cfg.paths.run_dir.startswith(f"{home}/runs/shapes/")
    assert cfg.paths.cache_dir == f"{home}/runs/cache"
    assert without_literal(home.parent)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in WORDS if "multirun" in name])
def test_multiruns_lie_in_the_home_folder(start, home, name):
    words = [word for word in WORDS[name] if not word.startswith("paths.")]
    output = home / "unused" if words == WORDS[name] else Path("~/runs")
    run("train", output, *SHAPES, f"ckpt={start}", "optim.max_steps=1", *words)
    assert list((home / "runs").rglob("result.json"))
    assert without_literal(home.parent)


@pytest.mark.long
def test_predict_reads_and_writes_there(finished_run, home):
    picture = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    mask = np.zeros((40, 50), dtype=np.uint8)
    mask[5:30, 5:30] = 1
    Image.fromarray(picture).save(home / "s.png")
    Image.fromarray(mask).save(home / "m.png")
    best = home / "best.ckpt"
    best.symlink_to(finished_run.folder / "checkpoints" / "best.ckpt")
    words = ("ckpt=~/best.ckpt", "support=[~/s.png:~/m.png]", "query=~/s.png", "output=~/seg", "save=~/kept.pt")
    run("predict", home / "unused", *words)
    assert {path.name for path in (home / "seg").glob("s_*")} == {"s_mask.png", "s_overlay.jpg", "s_probability.png"}
    assert (home / "kept.pt").is_file()
    assert without_literal(home.parent)


@pytest.mark.long
@pytest.mark.parametrize(
    ("door", "words"),
    [
        ("train", ["hydra.run.dir=~/x"]),
        ("train", ["-m", "fold=0,1", "hydra.sweep.dir=~/x"]),
        ("evaluate", ["ckpt=~/none.ckpt"]),
        ("predict", ["ckpt=~/none.ckpt", "query=a.png", "support=[a.png:b.png]"]),
    ],
)
def test_without_a_home_folder_the_commands_say_so(no_home, tmp_path, door, words):
    line = call(door, tmp_path / "out", *words).refusal()
    assert line.startswith("~/")
    assert "this user has no home folder" in line
    assert without_literal(tmp_path)


@pytest.mark.long
def test_scripts(home, capsys):
    write("binary", home / "data", shapes_content(num_pictures=16, one_class=True, side=48))
    assert check_dataset.main(["dataset.root=~/data"]) == 0
    assert "nothing wrong" in capsys.readouterr().out
    assert check_dataset.main(["dataset.root=~/nowhere"]) == 1
    assert f"folder {home}/nowhere is missing" in capsys.readouterr().err


def test_in_python(home):
    content = shapes_content(num_pictures=8, one_class=True, side=48)
    write("index", home / "data", content)
    (home / "names.txt").write_text("\n".join(content[1]))
    (home / "val.txt").write_text(next(iter(content[0])))
    dataset = FolderDataset(
        "~/data", classes="~/names.txt", images="~/data/images", masks="~/data/masks", val_list="~/val.txt"
    )
    assert len(dataset.ids("val")) == 1
    assert PascalDataset("~/voc").root == home / "voc"
    (home / "w.pth").write_bytes(b"")
    assert find_file("~/w.pth", None) == find_file("w.pth", "~") == home / "w.pth"
