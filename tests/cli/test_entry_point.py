from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from hdmnet.cli.entry_point import available_cpus, entry_point, job_overrides
from hdmnet.cli.quoting import quote_paths
from hdmnet.config.instantiate import instantiate
from tests.helpers.commands import call

ROOT = Path(__file__).resolve().parents[2]
DATASETS = ", ".join(sorted(file.stem for file in (ROOT / "conf" / "dataset").glob("*.yaml")))


@pytest.fixture
def run_command(monkeypatch, capfd, tmp_path):
    """Run an entry point in this process: `run_command(job, "fold=1")` gives (exit code, stdout, stderr)."""
    handlers = logging.getLogger().handlers[:]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # restored afterwards
    monkeypatch.delenv("HDMNET_JOB_CONFIG", raising=False)

    def run(job, *words):
        monkeypatch.setattr(sys, "argv", ["train", *words])
        code = 0
        try:
            entry_point("train")(job)()
        except SystemExit as stop:
            code = stop.code
        return (code, *capfd.readouterr())

    yield run
    logging.getLogger().handlers[:] = handlers  # Hydra's write to a stdout that pytest has closed by now


def never(cfg):
    raise AssertionError("the job must not begin")


@pytest.mark.long
@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("fodl=1", "fodl: no such key; did you mean 'fold'? (--cfg job shows all keys)"),
        (
            "dataset=pascl",
            f"dataset=pascl: no such option; did you mean 'pascal'? (dataset can be {DATASETS})",
        ),
        ("dataste=coco", "dataste: no such key; did you mean 'dataset'? (--cfg job shows all keys)"),
        (
            "loss.temprature=2",
            "loss.temprature: no such key; did you mean 'loss.temperature'? (--cfg job shows all keys)",
        ),
        ("temperature=2", "temperature: no such key; did you mean 'loss.temperature'? (--cfg job shows all keys)"),
        (
            "trainer.max_step=4",
            "trainer.max_step: no such key; did you mean 'trainer.max_steps'? (--cfg job shows all keys)",
        ),
        ("zzz=1", "zzz: no such key (--cfg job shows all keys)"),
        ("fold=7", "fold=7: expected 0 to 3, shapes has 4 folds"),
        ("shot=0", "shot=0: expected an integer of at least 1"),
        ("shot=abc", "shot=abc: Value 'abc' of type 'str' could not be converted to Integer"),
        ("fold=0,1", "fold=0,1: several values; add -m to run one after another, or write fold=[0,1] for a list"),
        ("ablation=null", "a config group cannot be null; expected one of its options, e.g. ablation=none"),
        ("fold", "fold: expected key=value; quote special characters, e.g. \"ckpt='a=b.ckpt'\""),
        ("dataset.root=${nowhere}", "dataset.root: Interpolation key 'nowhere' not found"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_runs_nothing(run_command, word, line):
    code, out, err = run_command(never, word)
    assert (code, out, err) == (2, "", f"error: {line}\n")


@pytest.mark.long
def test_the_suggestion_knows_the_chosen_groups(run_command):
    _, _, err = run_command(never, "logger=wandb", "logger.wandb.projct=x")
    assert "did you mean 'logger.wandb.project'" in err


@pytest.mark.long
def test_the_job_gets_a_checked_config_with_absolute_folders(run_command, tmp_path):
    seen = []
    assert run_command(seen.append, "fold=2", "trainer=cpu")[0] == 0
    cfg = seen[0]
    run_dir = Path(cfg.paths.run_dir)
    assert cfg.fold == 2
    assert cfg.paths.data_dir == str(tmp_path / "data")
    assert run_dir.parent == tmp_path / "outputs" / "shapes" / "resnet_narrow_fold2_1shot_seed0"
    assert OmegaConf.load(run_dir / ".hydra" / "overrides.yaml") == ["fold=2", "trainer=cpu"]
    assert OmegaConf.load(run_dir / ".hydra" / "job.yaml") == cfg
    assert not list(run_dir.glob("*.log"))


def test_what_the_job_refuses_is_one_line(run_command):
    def job(cfg):
        instantiate(cfg.paths)

    assert run_command(job)[::2] == (2, "error: paths cannot be built: it has no _target_\n")


@pytest.mark.long
def test_a_bug_keeps_its_traceback(run_command):
    def job(cfg):
        int("x")

    with pytest.raises(ValueError, match="invalid literal"):
        run_command(job)


@pytest.mark.long
def test_tracebacks_can_be_asked_for(run_command, monkeypatch):
    monkeypatch.setenv("HDMNET_TRACEBACK", "1")
    with pytest.raises(ValueError, match="fold=7"):
        run_command(never, "fold=7")


def test_an_interrupt_is_no_traceback(run_command):
    def job(cfg):
        raise KeyboardInterrupt

    assert run_command(job)[::2] == (130, "error: interrupted\n")


def test_threads_are_shared_out_and_the_environment_is_restored(run_command, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before, seen = dict(os.environ), {}
    run_command(lambda cfg: (seen.update(os.environ), os.environ.update(LOCAL_RANK="0")), "trainer.devices=2")
    assert int(seen["OMP_NUM_THREADS"]) == max(1, available_cpus() // 2)
    assert seen["HDMNET_JOB_CONFIG"].endswith("job.yaml")
    assert "LOCAL_RANK" not in os.environ
    assert seen["HDMNET_PARENT"] == str(os.getpid())
    assert not {"HDMNET_JOB_CONFIG", "HDMNET_PARENT"} & os.environ.keys()
    assert before.keys() - os.environ.keys() == set()


@pytest.mark.long
def test_another_rank_takes_the_config_of_the_first(run_command, monkeypatch):
    first, other = [], []
    run_command(first.append, "fold=1", "loss.temperature=2")
    monkeypatch.setenv("HDMNET_JOB_CONFIG", f"{first[0].paths.run_dir}/.hydra/job.yaml")
    monkeypatch.setenv("LOCAL_RANK", "1")
    run_command(other.append, "-m", "fold=0,1,2,3")
    assert other == first


def test_an_overridden_command_line_is_known_to_the_job_and_to_its_other_ranks(run_command, monkeypatch):
    seen = []
    run_command(lambda cfg: seen.append((job_overrides(cfg), cfg.paths.run_dir)), "fold=1", "shot=5")
    monkeypatch.setenv("HDMNET_JOB_CONFIG", f"{seen[0][1]}/.hydra/job.yaml")
    monkeypatch.setenv("LOCAL_RANK", "1")
    run_command(lambda cfg: seen.append((job_overrides(cfg), cfg.paths.run_dir)), "fold=3")
    assert seen[0][0] == ["fold=1", "shot=5"]
    assert seen[1] == seen[0]


def test_flags_may_stand_anywhere_among_the_words(run_command):
    assert run_command(never, "shot=5", "--cfg", "job", "fold=2")[0] == 0
    # What Hydra reads, which takes flags only before or after all words.
    assert sys.argv[1:] == ["--cfg", "job", "shot=5", "fold=2"]


def test_ranks_that_the_trainer_does_not_want_are_refused(run_command, monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "1", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    code, _, err = run_command(never, "trainer=ddp_cpu", "trainer.devices=2")
    assert code == 2
    assert err.startswith("error: torchrun started 1 processes, but trainer.devices=2 and trainer.num_nodes=1 make 2; ")


def test_called_with_a_config_an_entry_point_just_runs():
    seen = []
    entry_point("train")(seen.append)(OmegaConf.create({"a": 1}))
    assert seen == [{"a": 1}]


# ------------------------------------------------------------------------------------------------- other processes


@pytest.mark.long
def test_help_is_quick_and_loads_nothing_heavy(tmp_path):
    code = (
        "import sys, runpy; sys.argv = ['train', '--help']\n"
        "try: runpy.run_module('hdmnet.train', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as stop: assert not stop.code\n"
        "heavy = {'torch', 'lightning', 'wandb', 'cv2', 'matplotlib', 'numpy'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    before = os.times().children_user
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert "python -m hdmnet.train dataset=coco fold=2 shot=5" in done.stdout
    assert f"dataset: {DATASETS}\n" in done.stdout
    assert done.stderr == "[]\n"
    assert os.times().children_user - before < 6  # seconds of computing: the machine may be busy with other tests
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("query=[größe (1).jpg,b c.jpg]", ["größe (1).jpg", "b c.jpg"]),
        ("paths.data_dir=/daten/größe/a b", "/daten/größe/a b"),
        ("ckpt=/a b/c (2)/x.ckpt", "/a b/c (2)/x.ckpt"),
        ("query=[/d/日本/x.jpg]", ["/d/日本/x.jpg"]),
        ("support={cat:[ä.jpg:b.png]}", {"cat": ["ä.jpg:b.png"]}),
        ("ckpt='ä'", "ä"),
        ("fold=1", 1),
        ("dataset.image_size=[65,97]", [65, 97]),
        ("dataset.root=~/data", "~/data"),
        ("support=[~/a.png:~/b.png,c.png:1,2,3,4]", ["~/a.png:~/b.png", "c.png:1", 2, 3, 4]),
        ("dataset.classes=[bow_(weapon),cat]", ["bow_(weapon)", "cat"]),
        ("dataset.name=bow_(weapon)", "bow_(weapon)"),
        ("ckpt=runs/lr=2/a#b.ckpt", "runs/lr=2/a#b.ckpt"),
        ("ckpt=null", None),
        ("paths.data_dir=/plain/a b/c-d_e.f", "/plain/a b/c-d_e.f"),
    ],
)
def test_paths_of_any_letters_need_no_quotes(word, value):
    assert OverridesParser.create().parse_override(quote_paths(word)).value() == value


@pytest.mark.parametrize(
    "word",
    [
        *("fold=0,1,2", "a=choice(1,2)", "a=range(1,3)", "ablation=glob(table5_*)", "x=${oc.env:Ä}", "-m", "~a", "a"),
        *("x=tag(log, interval(1e-5,1e-3))", "x=[sort(3,1),2]", "x=-1.5e-3", "x=[a.b-c_d/e+f%g@h?i|j\\k]"),
    ],
)
def test_what_hydra_means_something_by_stays(word):
    assert quote_paths(word) == word


@pytest.mark.parametrize("words", [["--fold", "1"], ["--frobnicate"], ["-h=1"]])
def test_flags_that_are_none_are_one_line(tmp_path, words):
    line = call("train", tmp_path, *words).refusal()
    assert words[0].split("=")[0] in line
    assert "expected group=option and key=value, e.g. fold=1" in line
