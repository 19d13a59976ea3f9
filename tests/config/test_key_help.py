from __future__ import annotations

from dataclasses import fields

import pytest
from omegaconf import OmegaConf

from hdmnet.config.key_help import key_help
from hdmnet.config.paths import conf_dir
from hdmnet.config.schemas import SCHEMAS

_GROUPS = {"paths", "model", "backbone"}  # chosen in the defaults list


def test_every_key_of_predict_is_told_with_its_default():
    text = key_help("predict")
    for field in fields(SCHEMAS["predict"]):
        assert field.name in _GROUPS or f"\n  {field.name}" in f"\n{text}", field.name
    assert "\n  test_scales=[1.0]\n      shares of image_size" in text
    assert "\n  official.shot=1\n      K " in text
    assert "hydra" not in text
    assert "defaults" not in text


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_lines_are_as_wide_as_the_screen(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = [line for line in key_help("predict").splitlines() if line.startswith("      ")]
    assert columns - 20 < max(map(len, lines)) <= columns


def test_what_a_default_interpolates_survives_the_template():
    output = OmegaConf.load(conf_dir() / "predict.yaml")._get_node("output")._value()
    assert output.replace("$", "$$") in key_help("predict")
