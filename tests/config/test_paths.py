"""Configs of the user's own: the folders of `HDMNET_CONF`, and conf/local for every entry point."""

from __future__ import annotations

import pytest
from hydra import compose, initialize_config_dir

from hdmnet.config import paths
from hdmnet.config.paths import HYDRA_VERSION_BASE, conf_dir, find_option, user_conf_dirs
from hdmnet.config.schemas import register_schemas
from tests.helpers.commands import call


@pytest.fixture
def own(monkeypatch, tmp_path):
    """A folder of configs with an optimiser's setting, and a second one."""
    for folder, text in (("one/loss", "temperature: 7\n"), ("two/augment", "name: none\n")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "mine.yaml").write_text(text)
    monkeypatch.setenv("HDMNET_CONF", f"{tmp_path / 'one'}:{tmp_path / 'two'}:")
    return tmp_path


def test_own_folders_join_the_search_path(own, compose_config):
    assert user_conf_dirs() == (own / "one", own / "two")
    cfg = compose_config("train", "loss=mine", "augment=mine")
    assert (cfg.loss.temperature, cfg.augment.name) == (7, "none")
    assert find_option("loss", "mine") == own / "one" / "loss" / "mine.yaml"
    assert find_option("dataset", "coco") == conf_dir() / "dataset" / "coco.yaml"


def test_own_options_are_suggested(own, tmp_path):
    line = call("train", tmp_path, "augment=mnie").refusal()
    assert line.startswith("augment=mnie: no such option; did you mean 'mine'?")


def test_a_folder_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setenv("HDMNET_CONF", str(tmp_path / "nowhere"))
    assert call("train", tmp_path).refusal() == f"HDMNET_CONF names '{tmp_path}/nowhere'; expected a folder of configs"


@pytest.fixture
def local_settings(monkeypatch, tmp_path):
    """Writes the user's local/default.yaml."""

    def write(text):
        (tmp_path / "local").mkdir()
        (tmp_path / "local" / "default.yaml").write_text(text)
        monkeypatch.setenv(paths.CONF_VARIABLE, str(tmp_path))

    yield write
    monkeypatch.delenv(paths.CONF_VARIABLE)
    register_schemas()


@pytest.mark.long
@pytest.mark.parametrize(
    ("command", "own"),
    [
        ("train", {"num_workers": 3, "resume": "auto", "fold": 2}),
        ("evaluate", {"num_workers": 3, "episodes": 5, "fold": 2}),
        ("predict", {"device": "cpu", "maps": True}),
        ("demo", {"device": "cpu", "port": 80}),
    ],
)
def test_local_settings_work_for_every_entry_point(local_settings, command, own):
    local_settings(
        "defaults: [override /augment: none]\nnum_workers: 3\ntrainer: {accelerator: cpu}\nfold: 2\nresume: auto\n"
        "episodes: 5\ndevice: cpu\nport: 80\nmaps: true\npaths: {output_dir: /mine}\nhydra: {job: {name: mine}}\n"
    )
    register_schemas()
    with initialize_config_dir(config_dir=str(conf_dir()), version_base=HYDRA_VERSION_BASE):
        cfg = compose(command, return_hydra_config=True)
        assert compose(command, ["paths.output_dir=/other"]).paths.output_dir == "/other"
    assert (cfg.paths.output_dir, cfg.hydra.job.name) == ("/mine", "mine")
    keys = ("num_workers", "fold", "resume", "episodes", "device", "port", "maps")
    assert {key: cfg[key] for key in keys if key in cfg} == own
    if "trainer" in cfg:
        assert (cfg.trainer.accelerator, cfg.augment.name) == ("cpu", "none")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("num_worker: 3\n", "num_worker: no such key; did you mean 'num_workers'?"),
        ("a: [\n", "cannot be read: "),
        ("- fold\n", "expected keys and values"),
    ],
)
@pytest.mark.parametrize("command", ["train", "predict"])
def test_local_settings_that_are_wrong_are_one_line(local_settings, tmp_path, command, text, message):
    local_settings(text)
    line = call(command, tmp_path / "out").refusal()
    assert line.startswith(f"{tmp_path}/local/default.yaml")
    assert message in line
