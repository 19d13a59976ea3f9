from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
import time

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from hdmnet.config.paths import conf_dir
from hdmnet.sweeps.launcher import SweepJob, _write_job, job_digest, job_name, slots
from tests.helpers.sweeps import ENTRY_POINT, alive, environment, sweep, wait_until_gone

SWEEPS = sorted(file.stem for file in (conf_dir() / "sweep").glob("*.yaml"))


@pytest.mark.long
def test_every_combination_is_a_job_in_a_folder_of_its_name(tmp_path):
    words = ("fold=1", "loss.temperature=0.5,1", "ablation=none,no_distillation")
    done = sweep(tmp_path, "-m", "model.num_stages=2", *words)
    assert (done.code, done.err) == (0, "")
    expected = {
        f"loss.temperature={t},ablation={a}": [1, float(t), 2, "resnet_narrow", None if a == "none" else a, 3e-4]
        for t, a in itertools.product(("0.5", "1"), ("none", "no_distillation"))
    }
    # Folder names without "=" and ",", which a ckpt=PATH would have to quote.
    in_folders = {name.replace("=", "-").replace(",", "_"): config for name, config in expected.items()}
    assert {name: seen["config"] for name, seen in done.seen().items()} == in_folders
    assert done.states() == [[name, "done"] for name in expected]
    folder = next(done.folder.glob("loss.temperature-0.5_ablation-none_*"))
    assert OmegaConf.load(folder / ".hydra" / "overrides.yaml") == [
        *("model.num_stages=2", "fold=1", "loss.temperature=0.5", "ablation=none")
    ]
    assert OmegaConf.load(folder / ".hydra" / "config.yaml").paths.run_dir == str(folder)


@pytest.mark.slow
def test_a_finished_job_is_not_run_again(tmp_path):
    first = sweep(tmp_path, "-m", "fold=0,1", FAIL_FOLD="1")
    assert first.states() == [["fold=0", "done"], ["fold=1", "failed"]]
    pid = first.seen()["fold-0"]["pid"]

    # Other keys that vary, another number of workers: the same jobs, and a new one.
    second = sweep(tmp_path, "-m", "fold=0,1,2", "num_workers=0", "logger=wandb")
    assert second.code == 0
    assert second.states() == [["fold=0", "skipped"], ["fold=1", "done"], ["fold=2", "done"]]
    assert second.seen()["fold-0"]["pid"] == pid
    assert "fold=0  skipped  10.0\n" in second.out  # its mIoU is shown all the same
    attempts = [name for name in second.folders() if name.startswith("fold-1_")]
    assert attempts[1] == f"{attempts[0]}.1"  # what the failed one has left is kept

    assert sweep(tmp_path, "-m", "fold=0", "shot=5").states() == [["job", "done"]]  # another setting

    third = sweep(tmp_path, "-m", "fold=0,2", "rerun=true")
    assert third.states() == [["fold=0", "done"], ["fold=2", "done"]]
    assert third.seen()["fold-0"]["pid"] != pid
    aside = next(third.folder.glob("fold-0_*.1"))
    assert (aside / "result.replaced.json").is_file()
    assert not (aside / "result.json").is_file()


@pytest.mark.slow
def test_an_unfinished_job_goes_on_in_its_folder_when_asked_to(tmp_path):
    done = sweep(tmp_path, "-m", "fold=0,1", KILL_FOLD="1")
    assert done.states() == [["fold=0", "done"], ["fold=1", "failed"]]
    (folder,) = done.folder.glob("fold-1_*")
    (folder / "checkpoints").mkdir()
    again = sweep(tmp_path, "-m", "fold=0,1", "resume=auto")
    assert again.states() == [["fold=0", "skipped"], ["fold=1", "done"]], again.err
    assert again.folders() == done.folders()  # nothing was moved aside
    assert (folder / "checkpoints").is_dir()
    assert OmegaConf.load(folder / ".hydra" / "job.yaml").resume == str(folder)


@pytest.mark.long
def test_a_failed_job_does_not_stop_the_others(tmp_path):
    done = sweep(tmp_path, "-m", "fold=0,9,1,2", FAIL_FOLD="0", KILL_FOLD="1")
    assert done.code == 1
    assert done.states() == [["fold=0", "failed"], ["fold=9", "failed"], ["fold=1", "failed"], ["fold=2", "done"]]
    assert "exit code 1" in done.out
    assert "fold=9: expected 0 to 3, shapes has 4 folds" in done.out
    assert "killed by SIGKILL" in done.out
    assert done.err.endswith("error: 3 of 4 jobs failed or did not run: fold=0; fold=9; fold=1\n")
    assert list(done.seen()) == ["fold-2"]


@pytest.mark.slow
def test_a_ready_made_sweep_needs_no_m_and_takes_a_plus(tmp_path):
    done = sweep(tmp_path, "+sweep=table9", "fold=2", name="table9")
    assert done.code == 0
    names = [f"ablation=table9_t{t}" for t in ("0.5", "1", "2", "5")]
    assert done.states() == [[name, "done"] for name in names]
    configs = {name: seen["config"][:2] for name, seen in done.seen().items()}
    assert configs == {f"ablation-table9_t{t}": [2, t] for t in (0.5, 1, 2, 5)}


@pytest.mark.slow
def test_ablations_by_a_pattern_and_one_job_for_the_same_config_twice(tmp_path):
    done = sweep(tmp_path, "-m", "ablation=glob(table8_*)", "fold=1,1")
    assert [state for _, state in done.states()] == ["done", "done"]
    assert len(done.folders()) == 2


@pytest.mark.slow
def test_side_by_side_jobs_share_the_machine_and_keep_their_lines_apart(tmp_path):
    words = ("launcher=local_parallel", "hydra.launcher.jobs=2", "trainer=cpu")
    done = sweep(tmp_path, "-m", "fold=0,1,2", *words, FAIL_FOLD="1", SLEEP="1", OMP_NUM_THREADS="3", RANK="7")
    assert done.states() == [["fold=0", "done"], ["fold=1", "failed"], ["fold=2", "done"]]
    assert done.out.index("begins: fold=1") < done.out.index("done: fold=0")
    assert "Traceback" not in done.err
    console = next(done.folder.glob("fold-1_*/console.log"))
    assert "RuntimeError: a bug" in console.read_text()
    assert f"exit code 1, see {console}" in done.out
    for seen in done.seen().values():
        assert seen["environment"] == {"OMP_NUM_THREADS": "3", "CUDA_VISIBLE_DEVICES": None, "RANK": None}


@pytest.mark.long
@pytest.mark.parametrize(("signal_number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_no_job_outlives_its_sweep(tmp_path, signal_number, code):
    (tmp_path / "command.py").write_text(ENTRY_POINT)
    words = ("-m", "fold=0,1,2", "launcher=local_parallel", "hydra.launcher.jobs=2", "trainer=cpu")
    command = [sys.executable, "command.py", *words]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(SLEEP="60"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        end = time.monotonic() + 60
        while len(files := list(tmp_path.rglob("pid"))) < 2:
            assert time.monotonic() < end
            time.sleep(0.1)
        time.sleep(0.2)
        pids = [int(file.read_text()) for file in files]
        assert len(alive(pids)) == 2
        process.send_signal(signal_number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == code
    wait_until_gone(pids)
    if signal_number == signal.SIGINT:
        assert err.splitlines()[-1].startswith("error: interrupted")
        assert "fold=2  not run" in out


@pytest.mark.long
def test_a_search_proposes_from_results_and_repeats_itself(tmp_path):
    words = ("sweep=optuna", "hydra.sweeper.n_trials=3", "shot=5")
    first = sweep(tmp_path, *words, name="optuna")
    assert first.code == 0, first.err
    configs = [seen["config"] for seen in first.seen().values()]
    assert len({tuple(config) for config in configs}) == 3
    for config in configs:
        assert 0.25 <= config[1] <= 8
        assert 1e-5 <= config[5] <= 1e-3
    best = OmegaConf.load(first.folder / "optimization_results.yaml")
    assert best.best_value == pytest.approx(max(config[1] for config in configs) / 10)

    again = sweep(tmp_path, *words, name="optuna")
    assert [name for name, _ in again.states()] == [name for name, _ in first.states()]
    assert {state for _, state in again.states()} == {"skipped"}


@pytest.mark.slow
def test_a_search_goes_on_after_a_failed_job_and_refuses_what_it_cannot_search(tmp_path):
    done = sweep(tmp_path, "sweep=optuna", "hydra.sweeper.n_trials=2", name="optuna", FAIL_FOLD="0")
    assert done.code == 1
    assert [state for _, state in done.states()] == ["failed", "failed"]
    refused = sweep(tmp_path, "sweep=optuna", "loss.temperature=1", "optim.lr=1e-4")
    assert refused.code == 2
    assert refused.err.startswith("error: nothing to search for; expected a key with interval(")


# ------------------------------------------------------------------------------------------------------------ parts


def test_a_job_is_its_config_without_folders(compose_config):
    base = job_digest(compose_config("train"))
    same = ("paths.output_dir=/elsewhere", "num_workers=3", "logger=wandb", "rerun=true", "trainer.log_every_n_steps=1")
    for word in same:
        assert job_digest(compose_config("train", word)) == base, word
    other = ("fold=1", "seed=1", "loss.temperature=2", "trainer.max_steps=3", "ablation=table9_t1", "trainer.devices=2")
    assert len({base, *(job_digest(compose_config("train", word)) for word in other)}) == 1 + len(other)


def test_names_hold_what_varies_and_fit_a_folder():
    words = ["dataset=coco", "fold=1", "+model.x='a/b c'"]
    assert job_name(words, {"fold", "model.x"}) == "fold=1,model.x=-a-b-c-"
    assert job_name(words, set()) == "job"
    assert len(job_name(["a=" + "x" * 300], {"a"})) == 120


@pytest.mark.parametrize(
    ("wanted", "gpus", "devices", "expected"),
    [
        (1, ["0", "1"], 1, [(None, None)]),
        (None, ["0", "1", "5"], 1, [("0", "4"), ("1", "4"), ("5", "4")]),
        (None, ["0", "1", "2", "3"], 2, [("0,1", "3"), ("2,3", "3")]),
        (3, ["0", "1"], 1, [("0", "4"), ("1", "4"), ("0", "4")]),
        (None, [], 1, [(None, "2")] * 6),
        (2, [], 2, [(None, "3"), (None, "3")]),
    ],
)
def test_places_for_jobs_on_a_machine_of_twelve_cores(monkeypatch, wanted, gpus, devices, expected):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    places = slots(wanted, gpus, devices, 12)
    assert [(place.get("CUDA_VISIBLE_DEVICES"), place.get("OMP_NUM_THREADS")) for place in places] == expected


@pytest.mark.long
@pytest.mark.parametrize("name", SWEEPS)
def test_every_sweep_composes_and_names_itself(name):
    with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
        cfg = compose("train", overrides=[f"sweep={name}"], return_hydra_config=True)
        jobs_of = {"table3": "table1", "table7_methods": "table7"}.get(name, name)  # where jobs are shared
        assert (cfg.sweep, cfg.hydra.mode.name) == (jobs_of, "MULTIRUN")
        params = OmegaConf.to_container(cfg.hydra.sweeper.params)
        for option in str(params.get("ablation", "none")).split(","):
            expected = None if option == "none" else option
            assert compose("train", overrides=[f"ablation={option}"]).ablation == expected


def test_the_papers_tables_are_complete():
    params = {
        name: OmegaConf.load(conf_dir() / "sweep" / f"{name}.yaml").hydra.sweeper.params
        for name in SWEEPS
        if name.startswith("table")
    }
    assert sorted(params) == [*(f"table{number}" for number in range(1, 8)), "table7_methods", "table8", "table9"]
    rows = {name: [f"{name}_" in row for row in str(p.get("ablation", "")).split(",")] for name, p in params.items()}
    assert [len(rows[f"table{n}"]) for n in range(4, 10)] == [5, 4, 4, 4, 2, 4]
    assert all(all(rows[f"table{n}"]) for n in range(4, 10))
    for name in ("table1", "table2"):
        own = {key: value for key, value in params[name].items() if key != "model"}
        assert own == {"backbone": "vgg16,resnet50", "shot": "1,5", "fold": "0,1,2,3"}
    assert {**params["table3"]} == {**params["table1"], "backbone": "resnet50"}


def test_the_tables_methods_are_all_that_a_paper_has_by_discovery():
    from fnmatch import fnmatch

    from hydra.core.override_parser.overrides_parser import OverridesParser

    methods = {file.stem for file in (conf_dir() / "model").glob("*.yaml")}
    published = {file.stem.split("_")[1] for file in (conf_dir() / "recipe_on_dataset").glob("published_*.yaml")}
    for name in ("table1", "table2", "table3"):
        asked = OmegaConf.load(conf_dir() / "sweep" / f"{name}.yaml").hydra.sweeper.params.model
        found = OverridesParser.create().parse_override(f"model={asked}").value()
        chosen = {one for one in methods if fnmatch(one, *found.include) and one not in found.exclude}
        assert chosen == (methods & published) - {"baseline"}


@pytest.mark.long
@pytest.mark.parametrize("name", ["local", "local_parallel", "slurm"])
def test_every_launcher_composes_and_is_built(name):
    from hydra.utils import instantiate

    import hydra_plugins.hdmnet_sweeps as plugins

    with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
        node = compose("train", overrides=[f"launcher={name}"], return_hydra_config=True).hydra.launcher
    assert isinstance(instantiate(node), (plugins.LocalLauncher, plugins.SlurmLauncher))


def test_a_result_is_read_back(tmp_path):
    from hdmnet.sweeps.launcher import read_job_result

    assert read_job_result(tmp_path) is None
    (tmp_path / "result.json").write_text(json.dumps({"test": {"miou": 0.5}}))
    assert read_job_result(tmp_path) == {"test": {"miou": 0.5}}


def test_a_job_of_an_evaluation_is_written_which_has_no_training_to_go_on_with(compose_config, tmp_path):
    cfg = compose_config("evaluate", "ckpt=best.ckpt", "protocol=hsnet")
    job = SweepJob("protocol=hsnet", cfg, OmegaConf.create(), ["protocol=hsnet"], tmp_path / "0")
    _write_job(job)
    written = OmegaConf.load(tmp_path / "0" / ".hydra" / "job.yaml")
    assert (written.protocol.name, "resume" in written) == ("hsnet", False)
