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


@pytest.mark.parametrize("command", ["train", "evaluate", "predict", "demo"])
def test_local_settings_work_for_every_entry_point(monkeypatch, tmp_path, command):
    (tmp_path / "local").mkdir()
    settings = "num_workers: 3\ntrainer: {accelerator: cpu}\npaths: {output_dir: /mine}\n"
    (tmp_path / "local" / "default.yaml").write_text(settings)
    monkeypatch.setenv(paths.CONF_VARIABLE, str(tmp_path))
    register_schemas()
    try:
        with initialize_config_dir(config_dir=str(conf_dir()), version_base=HYDRA_VERSION_BASE):
            cfg = compose(command)
            assert compose(command, ["paths.output_dir=/other"]).paths.output_dir == "/other"
    finally:
        monkeypatch.delenv(paths.CONF_VARIABLE)
        register_schemas()
    assert cfg.paths.output_dir == "/mine"
    assert cfg.get("num_workers", 3) == 3
    assert ("num_workers" in cfg) == (command in ("train", "evaluate"))
