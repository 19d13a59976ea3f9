"""Configs out of files build only what conf/ names, resolve nothing but their own keys, and say what is wrong."""

from __future__ import annotations

import copy
from importlib.metadata import EntryPoint

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hdmnet.config.paths import conf_dir
from hdmnet.config.stored import check_stored, conf_targets, evaluation_config, stored_config
from hdmnet.config.values import to_plain, to_stored


@pytest.fixture
def stored(compose_config):
    return to_stored(compose_config("train", "dataset=coco", "fold=2"))


def changed(stored, key, value):
    config = copy.deepcopy(stored)
    *parents, leaf = key.split(".")
    node = config
    for parent in parents:
        node = node[parent]
    node[leaf] = value
    return config


def refusal(call, *arguments):
    with pytest.raises(ValueError, match=r".") as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_target_of_conf_is_known():
    assert {
        "hdmnet.models.hdmnet.model.build_hdmnet",
        "hdmnet.data.datasets.coco.CocoDataset",
        "lightning.pytorch.Trainer",
    } <= (conf_targets())
    named = sum(text.count("_target_: ") for text in (path.read_text() for path in conf_dir().rglob("*.yaml")))
    assert named >= len(conf_targets()) > 10


@pytest.mark.long
@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "hdmnet.runtime.checkpoint_file.write_atomically",
        "torch.nn.Linear",
        "hdmnet.config.instantiate.instantiate",
        "${fold}",
        3,
    ],
)
@pytest.mark.parametrize("key", ["model._target_", "backbone._target_", "dataset.new", "augment.list"])
def test_no_other_target_is_built(stored, key, target):
    value = {"dataset.new": {"a": {"_target_": target}}, "augment.list": [[{"_target_": target}]]}.get(key, target)
    line = refusal(check_stored, changed(stored, key, value), "ckpt=x")
    assert line.startswith("ckpt=x: its config names ")
    assert "nothing was run" in line


@pytest.mark.parametrize(
    ("admitted", "target", "known"),
    [
        ("my_package", "my_package.methods.Mine", True),
        (" other , my_package.methods", "my_package.methods.Mine", True),
        ("my_pack", "my_package.methods.Mine", False),
        ("", "my_package.methods.Mine", False),
        ("my_package", 3, False),
    ],
)
def test_extensions_are_admitted_by_their_module(stored, monkeypatch, admitted, target, known):
    monkeypatch.setenv("HDMNET_EXTENSIONS", admitted)
    config = changed(stored, "model._target_", target)
    if known:
        check_stored(config, "x")
    else:
        assert "its module in HDMNET_EXTENSIONS" in refusal(check_stored, config, "x")


def test_installed_packages_admit_themselves(stored, monkeypatch):
    mine = EntryPoint("mine", "my_package", "hdmnet.extensions")
    monkeypatch.setattr("hdmnet.config.stored.entry_points", lambda group: [mine] if group == mine.group else [])
    check_stored(changed(stored, "model._target_", "my_package.methods.Mine"), "x")


@pytest.mark.parametrize("linked", [False, True])
def test_what_the_users_own_files_name_is_known(stored, monkeypatch, tmp_path, linked):
    folder = tmp_path / ("elsewhere" if linked else "conf/model")
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("_target_: my_package.methods.Mine\n")
    if linked:
        (tmp_path / "conf").mkdir()
        (tmp_path / "conf/model").symlink_to(folder)
        (tmp_path / "conf/again").symlink_to(tmp_path / "conf")
    monkeypatch.setenv("HDMNET_CONF", str(tmp_path / "conf"))
    check_stored(changed(stored, "model._target_", "my_package.methods.Mine"), "x")


def test_the_command_at_hand_may_name_more(compose_config, stored):
    mine = changed(stored, "model._target_", "hdmnet.models.hdmnet.baseline.build_mine")
    assert "build_mine" in refusal(stored_config, mine, "x")
    cfg = compose_config("evaluate", "++model.also._target_=hdmnet.models.hdmnet.baseline.build_mine")
    assert evaluation_config(cfg, mine, [], "x").model._target_.endswith("build_mine")


@pytest.mark.parametrize(
    "text",
    ["${oc.env:HOME}", "a/${oc.env:HOME}", "${${a}:HOME}", "${oc.create:{_target_:os.system}}", "${oc.env:\n}"],
)
def test_no_resolver_is_called(stored, text, monkeypatch):
    monkeypatch.setenv("HOME", "secret")
    line = refusal(check_stored, changed(stored, "dataset.root", text), "ckpt=x")
    assert "would resolve dataset.root=" in line
    assert "secret" not in line


def test_what_is_never_taken_from_a_checkpoint_may_name_anything(compose_config, stored):
    odd = changed(changed(stored, "trainer._target_", "os.system"), "paths.data_dir", "${oc.env:HOME}")
    cfg = evaluation_config(compose_config("evaluate"), odd, [], "x")
    assert cfg.trainer._target_ == "lightning.pytorch.Trainer"
    assert "HOME" not in str(to_plain(stored_config(odd, "x")))
    assert "trainer" not in stored_config(odd, "x")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("fold", "two", "fold=two: expected an integer"),
        ("dataset.name", "../../x", "dataset.name=../../x: expected a name"),
        ("dataset.image_size", 10**9, "dataset.image_size=1000000000: expected an integer of 1 to 4096"),
        ("dataset.image_size", "${nowhere}", "its config is damaged"),
        ("dataset.image_size", "${.", "its config is damaged"),
        ("dataset.image_size", "${dataset.image_size}", "its config is damaged"),
        ("backbone.mean", [0, 0], "backbone.mean="),
        ("backbone", {}, "its config has no backbone._target_"),
        ("dataset", None, "x: its config is damaged"),
        ("model", b"x", "holds no plain value at 'model'"),
        ("model", {1: 2}, "holds no plain value at 'model.1'"),
    ],
)
def test_wrong_values_are_one_line(stored, key, value, message):
    assert message in refusal(stored_config, changed(stored, key, value), "x")


def test_a_config_that_nests_too_deeply(stored):
    node = stored
    for _ in range(10_000):
        node["a"] = {}
        node = node["a"]
    assert "holds no plain value" in refusal(stored_config, stored, "x")


def test_what_calls_a_resolver_is_stored_resolved(compose_config, monkeypatch):
    """So that a run's own checkpoint does not read another machine's environment."""
    monkeypatch.setenv("MINE", "/mine")
    cfg = compose_config("train", "dataset=coco", "dataset.root='${oc.env:MINE}/coco'")
    stored = to_stored(cfg)
    assert stored["dataset"]["root"] == "/mine/coco"
    assert stored["augment"]["scale"] == "${dataset.augment_scale}"  # what only names a key stays
    assert stored_config(stored, "x").dataset.root == "/mine/coco"


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("${oc.env:HOME}"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["_target_", "_partial_", "a", "b", "name", "source"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@pytest.mark.long
@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(["model", "dataset", "backbone", "fold", "shot"]), PLAIN, max_size=4))
def test_any_config_is_taken_or_refused_in_one_line_and_builds_nothing_foreign(config):
    lines = []
    try:
        assert "oc.env" not in str(to_plain(stored_config(config, "x")))
    except ValueError as error:
        lines.append(str(error))
    assert not any("\n" in line for line in lines)
