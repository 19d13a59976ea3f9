"""The command for a GPU machine: its plan, what it keeps when it is cut off, how it reads a trace; and a rehearsal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.benchmarks import gpu

ROOT = Path(__file__).parents[2]
# Names of modules as the script itself imports them: one copy of each.
import gpu_speed  # noqa: E402
import gpu_trace  # noqa: E402

# Stands for the sections: a, b find something and end; f fails; c never ends; d finds nothing.
FAKE = """
import argparse, json, sys, time
from hdmnet.runtime import ranks
parser = argparse.ArgumentParser()
for name in ("section", "spool", "limit", "work"):
    parser.add_argument(f"--{name}")
given, _ = parser.parse_known_args()
ranks.end_with_parent()
def say(**line):
    with open(given.spool, "a") as file:
        file.write(json.dumps(line) + "\\n")
if given.section != "d":
    row = {"key": "speed", "label": "speed", "value": 12.0, "unit": "", "target": "≥ 10"}
    say(machine={"gpu": "H100", "torch": "2.11"})
    say(row={**row, "value": 1.0})
    say(row=row)  # the same figure again: it counts
    say(note="so it is")
if given.section == "f":
    print("it broke")
    sys.exit("because of this")
if given.section == "c":
    time.sleep(600)
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return sys.executable, str(script)


def read(folder):
    return json.loads((folder / gpu.JSON).read_text(encoding="utf-8"))


# ---------------------------------------------------------------------------------------------------------------- plan


def test_the_time_goes_to_what_is_worth_most():
    letters = [section.letter for section in gpu.SECTIONS]
    needs = {section.letter: section for section in gpu.SECTIONS}
    assert list(gpu.plan(letters, 3600)) == letters
    assert gpu.plan(letters, 3600) == {letter: needs[letter].wanted for letter in letters}
    for minutes in (3, 6, 9, 10):
        planned = gpu.plan(letters, 60 * minutes)
        assert sum(planned.values()) <= 60 * minutes
        assert all(needs[letter].least <= seconds <= needs[letter].wanted for letter, seconds in planned.items())
    assert list(gpu.plan(letters, 180))[:3] == letters[:3]  # no room for the long ones
    assert "d" not in gpu.plan(letters, 180)
    assert list(gpu.plan(letters, 540)) == letters
    assert gpu.plan(["d"], 200) == {"d": 200}
    assert gpu.plan(letters, 10) == {}


# ------------------------------------------------------------------------------------------------------------- cut off


def test_a_section_that_fails_or_has_no_end_harms_no_other(fake, tmp_path, monkeypatch, capsys):
    limits = {"a": 20, "c": 4, "f": 20, "d": 20, "b": 20}
    monkeypatch.setattr(gpu, "GRACE", 0.3)
    monkeypatch.setattr(gpu, "SECTIONS", tuple(gpu.Section(x, f"title {x}", n, n) for x, n in limits.items()))
    findings = gpu.Findings(folder=tmp_path / "out")
    gpu.Runner(findings, tmp_path, False, fake).run(list(limits), 100)
    content = read(tmp_path / "out")
    sections = content["sections"]
    assert {letter: entry["status"] for letter, entry in sections.items()} == {
        "a": "done", "c": "cut off at its limit", "f": "FAILED", "d": "done", "b": "done",
    }  # fmt: skip
    for letter in "acfb":
        assert [row["value"] for row in sections[letter]["rows"]] == [12.0]
    assert sections["d"]["rows"] == []
    assert sections["f"]["notes"] == ["so it is", "exit code 1: it broke / because of this"]
    assert sections["c"]["seconds"] < 6
    assert content["about"] == {"gpu": "H100", "torch": "2.11"}
    page = (tmp_path / "out" / gpu.MARKDOWN).read_text(encoding="utf-8")
    assert page.count("| 12 | ≥ 10 | met |") == 4
    assert "## f: title f\n\nFAILED" in page
    assert "a title a: done" in capsys.readouterr().out


def begin(fake, tmp_path):
    """The whole command, of which section c never ends; returns the process once c has found something."""
    driver = tmp_path / "driver.py"
    driver.write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom scripts.benchmarks import gpu\n"
        f"gpu.COMMAND = {fake!r}\ngpu.driver = lambda: '580'\n"
        f"sys.exit(gpu.main(['--out', {str(tmp_path / 'out')!r}, '--sections', 'b,c,d']))\n"
    )
    process = subprocess.Popen([sys.executable, str(driver)], stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if (tmp_path / "out" / gpu.JSON).is_file() and read(tmp_path / "out")["sections"]["c"]["rows"]:
            return process
        time.sleep(0.1)
    process.kill()
    raise AssertionError("section c never began")


def fakes_running(fake):
    """Processes that run the stand-in."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode().split("\0")
        except OSError:  # it has just ended
            continue
        if fake[1] in words:
            found.append(words)
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_lost_when_the_whole_is_ended(fake, tmp_path, number):
    process = begin(fake, tmp_path)
    process.send_signal(number)
    error = process.communicate(timeout=30)[1]
    sections = read(tmp_path / "out")["sections"]
    assert sections["b"]["status"] == "done"
    assert [len(sections[letter]["rows"]) for letter in "bcd"] == [1, 1, 0]
    assert sections["d"]["status"] == "not run"
    assert not list((tmp_path / "out").glob(".*.tmp"))
    if number == signal.SIGTERM:
        assert process.returncode == 1
        assert "cut off; what was found until now is in" in error
        assert sections["c"]["status"] == "cut off from outside"
    end = time.monotonic() + 10
    while fakes_running(fake) and time.monotonic() < end:
        time.sleep(0.1)
    assert fakes_running(fake) == []  # what it started ends with it


def test_results_of_several_calls_become_one_page(tmp_path):
    row = {"key": "speed", "label": "speed", "unit": "", "target": "≥ 10"}

    def write(name, card, sections):
        entry = {"title": "t", "status": "done", "seconds": 1.0, "limit": 2.0, "notes": []}
        content = {"about": {"gpu": card}, "sections": {k: {**entry, "rows": rows} for k, rows in sections.items()}}
        (tmp_path / name).write_text(json.dumps(content))
        return str(tmp_path / name)

    first = write("1.json", "H100", {"a": [], "b": [{**row, "value": 5.0}], "d": []})
    second = write("2.json", "H100", {"b": [], "d": [{**row, "value": 20.0}]})
    assert gpu.main(["--out", str(tmp_path), "--merge", first, second]) == 0
    sections = read(tmp_path)["sections"]
    assert {letter: [one["value"] for one in entry["rows"]] for letter, entry in sections.items()} == {
        "a": [], "b": [5.0], "d": [20.0],
    }  # fmt: skip
    page = (tmp_path / gpu.MARKDOWN).read_text(encoding="utf-8")
    assert "| b: speed | 5 | ≥ 10 | **missed** |" in page
    assert "| d: speed | 20 | ≥ 10 | met |" in page
    assert gpu.main(["--out", str(tmp_path), "--merge", first, write("3.json", "H200", {"a": []})]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sections", "a,z"], "--sections a,z: expected some of a,b,f,c,g,d,e"),
        (["--sections", ","], "expected some of"),
        (["--minutes", "0", "--rehearse"], "--minutes 0.0: expected more than 0"),
        (["--merge", "none.json"], "none.json"),
        ([], "nvidia-smi finds no GPU; --rehearse"),
    ],
)
def test_wrong_arguments_are_named(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "driver", lambda: None)
    assert gpu.main(["--out", str(tmp_path), *arguments]) == 1
    assert message in capsys.readouterr().err


def test_a_folder_is_needed(monkeypatch, capsys):
    monkeypatch.delenv("OUT", raising=False)
    assert gpu.main(["--rehearse"]) == 1
    assert "--out is missing" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------------------- trace


def event(category, name, start, length):
    return {"ph": "X", "cat": category, "name": name, "ts": start, "dur": length}


def test_a_trace_by_hand():
    """Two steps of 1 ms: two streams that overlap, launches, a graph, waits, copies."""
    events = [
        {"ph": "M", "name": "process_name"},
        event("cpu_op", "aten::conv2d", 0, 2000),
        event("kernel", "gemm", 100, 400),
        event("kernel", "add", 300, 400),  # beside it, on another stream
        event("kernel", "gemm", 1100, 600),
        event("gpu_memcpy", "Memcpy DtoH (Device -> Pinned)", 1800, 100),
        event("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", 2000, 100),
        event("gpu_memset", "Memset (Device)", 700, 50),
        *(event("cuda_runtime", name, 0, 1) for name in ("cudaLaunchKernel", "cudaLaunchKernelExC", "cudaGraphLaunch")),
        event("cuda_driver", "cuLaunchKernel", 0, 1),
        event("cuda_runtime", "cudaStreamSynchronize", 0, 1),
        event("cuda_runtime", "cudaEventSynchronize", 0, 1),
        event("cuda_runtime", "cudaDeviceSynchronize", 0, 1),  # the trace's own end
        event("cuda_runtime", "cudaMemcpyAsync", 0, 1),
    ]
    found = gpu_trace.read_trace(events, 2, on_gpu=True)
    assert found.span_ms == pytest.approx(1.0)  # from 100 to 2100 µs
    assert found.busy_ms == pytest.approx((600 + 50 + 600 + 100 + 100) / 2 / 1e3)
    assert found.idle == pytest.approx(1 - 0.725)
    assert (found.kernels, found.launches, found.waits) == (1.5, 2.0, 1.0)
    assert (found.to_host, found.to_device) == (0.5, 0.5)
    assert found.largest == [("gemm", 1000 / 1400, 0.5, 1.0), ("add", 400 / 1400, 0.2, 0.5)]
    assert gpu_trace.read_trace([], 2, on_gpu=True).idle == 0


def test_calls_are_traced_here_too():
    import torch

    weight = torch.randn(32, 32)
    found = gpu_trace.trace_calls(lambda: (weight @ weight).relu(), 4, "cpu")
    assert 0 < found.busy_ms <= found.span_ms
    assert {"aten::mm", "aten::relu"} <= {name for name, *_ in found.largest}
    assert found.launches == found.waits == 0


# ----------------------------------------------------------------------------------------------------------- rehearsal


def test_number_formats_are_taken_back():
    import torch

    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    for name, expected in (("fp32", ("highest", False)), ("tf32", ("high", True)), ("bf16", ("highest", True))):
        with gpu_speed.number_format(name):
            assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == expected
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


@pytest.mark.slow
def test_a_rehearsal_from_start_to_end(tmp_path):
    """All sections, as on the day but for the sizes; nothing may fail, be cut off or be left out."""
    script = str(ROOT / "scripts" / "benchmarks" / "gpu.sh")
    left_out = ("HDMNET_DATA", "HDMNET_WEIGHTS", "HDMNET_OUTPUT", "HDMNET_CONF", "HDMNET_EXTENSIONS")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    environment |= {"PYTHON": sys.executable, "OUT": str(tmp_path / "out")}
    done = subprocess.run([script, "--rehearse"], env=environment, capture_output=True, text=True, check=False)
    content = read(tmp_path / "out")
    remarks = {letter: entry["notes"] for letter, entry in content["sections"].items()}
    assert {letter: entry["status"] for letter, entry in content["sections"].items()} == dict.fromkeys(
        "abfcgde", "done"
    ), remarks
    assert done.returncode == 0, done.stderr
    assert content["about"]["rehearsal"] is True
    rows = {letter: {row["key"]: row for row in entry["rows"]} for letter, entry in content["sections"].items()}
    assert rows["a"]["passed"]["value"] >= 20, remarks
    assert rows["a"]["failed"]["value"] == rows["a"]["skipped"]["value"] == 0, remarks
    assert 0 < rows["a"]["test_outputs_in_float32[a]/parity"]["value"] < 1e-4
    assert rows["b"]["65_1shot_batch2/ours_bf16_ratio"]["value"] > 0
    assert rows["b"]["matching/fp32_memory_ratio"]["value"] > 0
    assert rows["c"]["1shot_bf16-mixed/ratio"]["value"] > 0
    assert rows["g"]["aot_eager/kernels"]["value"] > 100
    assert rows["d"]["steps"]["value"] == 4
    assert {"miou", "time_train", "time_test", "stage1", "episodes_per_second"} <= rows["d"].keys()
    assert {"with_0", "without_0", "difference"} <= rows["e"].keys()
    assert rows["f"]["run/kernels"]["value"] > 100
    assert sum(key.startswith("run/kernel") for key in rows["f"]) == 11
    assert rows["f"]["step_65_1shot/kernels"]["value"] > 100
    assert "A rehearsal in tiny sizes" in (tmp_path / "out" / gpu.MARKDOWN).read_text(encoding="utf-8")
