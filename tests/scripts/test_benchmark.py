"""The benchmark at tiny sizes: every section runs, its figures are there, and the dense form agrees with ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scripts.benchmarks import benchmark
from tests.helpers import reference

ROOT = Path(__file__).parents[2]
# Names of modules as the script itself imports them: one copy of each.
import benchmark_measure as measure  # noqa: E402
import benchmark_model as model  # noqa: E402
from benchmark_dense import dense_matching  # noqa: E402


def run(tmp_path, *arguments):
    path = tmp_path / "out.json"
    given = [*arguments, "--quick", "--repeats", "1", "--json", str(path), "--markdown", str(tmp_path / "out.md")]
    assert benchmark.main(given) == 0
    return json.loads(path.read_text())


@pytest.mark.long
def test_matching_agrees_with_the_dense_form(tmp_path, capsys):
    found = run(tmp_path, "matching")
    figures = found["figures"]["matching"]
    assert figures["positions"] == 144
    for name in ("output", "map", "gradients"):
        assert 0 < figures[f"difference_{name}"] < 1e-5
    for name in ("time_s", "time_dense_s", "time_ratio", "memory_mb", "memory_dense_mb", "memory_ratio"):
        assert name in figures
    assert {len(samples) for samples in found["samples_s"].values()} == {1}
    assert found["machine"]["torch"] == torch.__version__
    assert "times as fast" in capsys.readouterr().out
    page = (tmp_path / "out.md").read_text()
    assert page.count("\n| ") == len(figures) + 1  # and the header
    assert "| relative difference of map |" in page


@pytest.mark.long
def test_model_and_trunk_agree_with_the_plain_forms(tmp_path):
    found = run(tmp_path, "model", "trunk", "--shots", "2", "--dense")
    trunk, whole = found["figures"]["trunk"], found["figures"]["model"]
    assert trunk["difference_fp32"] < 1e-4 < trunk["difference_bf16"] < 0.2
    assert whole["2shot_65_fp32/difference"] < 1e-3
    for key in ("beyond_plain_trunk", "train_over_plain_trunk", "peak_train_mb", "train_ratio", "evaluate_episodes_s"):
        assert f"2shot_65_fp32/{key}" in whole


@pytest.mark.slow
def test_growth_fits_lines_and_draws_them(tmp_path):
    found = run(tmp_path, "growth")["figures"]["growth"]
    for case in ("meta_evaluate", "meta_train", "evaluate"):
        assert f"{case}/shots_r2" in found
        assert f"{case}/positions_slope_mb" in found
        assert found[f"{case}/2shot_97/time_s"] > 0
    assert (tmp_path / "out.png").stat().st_size > 10_000


@pytest.mark.long
def test_data_and_catalog(tmp_path):
    found = run(tmp_path, "data", "catalog")["figures"]
    assert found["data"]["worker_ratio"] == pytest.approx(
        found["data"]["worker_episodes_s"] / found["data"]["worker_release_episodes_s"]
    )
    assert found["catalog"]["images"] == 2000
    assert 4000 < found["catalog"]["pairs"] < 8000  # three classes an image
    assert found["catalog"]["pickle_mb"] < 1
    assert found["catalog"]["spawn_mb"] < 50
    assert found["catalog"]["fork_mb"] < 50


@pytest.mark.long
def test_a_query_after_fit_beside_a_fresh_episode(tmp_path):
    found = run(tmp_path, "predict")
    figures = found["figures"]["predict"]
    times = {name: figures[f"tiny/{name}_s"] for name in ("fresh", "fit", "query", "query_1shot")}
    assert figures["tiny/ratio"] == times["fresh"] / times["query"]
    assert all(seconds > 0 for seconds in times.values())
    assert figures["tiny/pixels"] <= 2  # of 187,500: the same network, other batches


@pytest.mark.slow
def test_startup(tmp_path):
    assert run(tmp_path, "startup")["figures"]["startup"]["help_s"] > 0


@pytest.mark.slow
def test_matching_section_needs_only_torch_and_torchvision(tmp_path):
    """With every other library hidden, also from the processes in which memory is measured."""
    hidden = (
        *("albumentations", "cv2", "hydra", "lightning", "matplotlib", "omegaconf", "optuna"),
        *("pycocotools", "scipy", "submitit", "torchmetrics", "tqdm", "wandb"),
    )
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nfor name in {hidden!r}:\n    sys.modules[name] = None\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}

    def python(*arguments):
        command = [sys.executable, *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)

    assert "ModuleNotFoundError: import of cv2 halted" in python("-c", "import cv2").stderr
    path = tmp_path / "out.json"
    script = str(ROOT / "scripts" / "benchmarks" / "benchmark.py")
    done = python(script, "matching", "--quick", "--repeats", "1", "--json", str(path))
    assert done.returncode == 0, done.stderr
    figures = json.loads(path.read_text())["figures"]["matching"]
    assert 0 < figures["difference_output"] < 1e-5
    assert figures["memory_dense_mb"] > 0


def test_dense_matching_is_the_tests_own_reference():
    """The baseline is not a straw man: another dense form, written for the tests of the matching, gives the same."""
    torch.manual_seed(0)
    layer = model.CorrelationMatching(16, dropout=0.0).double().eval()
    shapes = ((2, 16, 5, 7), (2, 3, 16, 6, 4), (2, 3, 24, 20), (2, 2, 9, 9))
    query, support, mask, prior = (torch.rand(*shape, dtype=torch.float64) for shape in shapes)
    inputs = (query - 0.5, support - 0.5, mask.round(), prior)
    for found, expected in zip(dense_matching(layer, *inputs), reference.dense_matching(layer, *inputs), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_memory_of_a_call_is_its_largest_block():
    def call():
        block = torch.ones(25_000_000)  # 100 MB
        return block[:10].clone()

    memory = measure.measure_call(call, "cpu")
    assert 99 < memory.extra < 115
    assert memory.total > memory.extra


def test_line_through_points():
    line = measure.fit_line([1, 2, 5, 10], [5, 7, 13, 23])
    assert (line.slope, line.intercept, line.r2) == pytest.approx((2, 3, 1))
    assert measure.fit_line([1, 2, 3], [1, 4, 9]).r2 < 0.99


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["matchin"], "section 'matchin' is unknown"),
        (["--precision", "fp16"], "expected fp32, bf16"),
        (["--sides", "big"], "expected numbers"),
        (["--repeats", "0"], "--repeats 0: expected at least 1"),
        (["--sides", "16"], "expected at least 33"),
    ],
)
def test_wrong_arguments_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        benchmark.main(arguments)
    assert message in capsys.readouterr().err
