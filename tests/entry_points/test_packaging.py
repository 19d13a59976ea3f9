from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import hdmnet

ROOT = Path(__file__).resolve().parents[2]

# Where no other part of the package is installed, the network alone must still import.
NOT_NEEDED_BY_MODELS = (
    "albumentations", "cv2", "hydra", "lightning", "matplotlib", "omegaconf", "pycocotools", "scipy", "torchmetrics",
    "tqdm", "wandb", "hdmnet.config.values", "hdmnet.data", "hdmnet.metrics", "hdmnet.tasks",
)  # fmt: skip


def run(*command, cwd, **environment):
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HDMNET_JOB_CONFIG")}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**clean, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The file that HDMNET_WHEEL names, as the release workflow does with the one that it publishes, or a new one."""
    if given := os.environ.get("HDMNET_WHEEL"):
        return Path(given).absolute()
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=ROOT)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed_python(wheel, tmp_path_factory):
    """Interpreter of a fresh environment with the wheel in it; what it depends on is seen from the current one."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    with zipfile.ZipFile(wheel) as archive:  # a pure wheel is installed by unpacking it
        archive.extractall(site)
    # The wheel's folder comes first on the path, so an editable hdmnet of the current environment is not what runs.
    here = Path(importlib.metadata.distribution("torch").locate_file(""))
    (site / "dependencies.pth").write_text(f"{here}\n")
    return python


@pytest.mark.slow
def test_the_wheel_holds_the_configs_and_nothing_private(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    configs = {f"hdmnet/conf/{file.relative_to(ROOT / 'conf')}" for file in (ROOT / "conf").rglob("*.yaml")}
    assert {name for name in configs if "/local/" not in name} <= names
    assert "hdmnet/py.typed" in names
    lists = {str(file.relative_to(ROOT)) for file in (ROOT / "hdmnet" / "data" / "datasets" / "lists").glob("*.txt")}
    assert lists
    assert lists <= names
    sources = {
        str(file.relative_to(ROOT)) for folder in ("hdmnet", "hydra_plugins") for file in (ROOT / folder).rglob("*.*")
    }
    assert {
        name for name in sources if name.endswith((".py", ".json", ".safetensors", ".html", ".js", ".css"))
    } <= names
    assert not [name for name in names if re.search(r"(^|/)(tests|outputs|local)/", name)]
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_commands_of_an_installed_wheel_work_in_another_folder(installed_python, tmp_path):
    where = run(installed_python, "-c", "import hdmnet.config.paths as c; print(c.conf_dir())", cwd=tmp_path).strip()
    assert where.endswith("site-packages/hdmnet/conf")
    assert str(ROOT) not in where
    shown = run(installed_python, "-m", "hdmnet.train", "--help", cwd=tmp_path)
    assert re.search(r"^dataset: .*coco, .*folder, .*pascal, .*shapes$", shown, re.MULTILINE)
    composed = run(installed_python, "-m", "hdmnet.train", "--cfg", "job", "dataset=coco", "fold=2", cwd=tmp_path)
    assert "fold: 2" in composed
    run(installed_python, "-m", "hdmnet.evaluate", "--help", cwd=tmp_path)
    plugins = run(installed_python, "-m", "hdmnet.train", "--info", "plugins", cwd=tmp_path)
    assert "LocalSweepLauncher" in plugins
    run(installed_python, "-c", "from hdmnet.reporting import paper; assert paper.paper_tables()", cwd=tmp_path)
    run(installed_python, "-c", "from hdmnet.run.pretrained import build_pretrained as b; b()", cwd=tmp_path)


@pytest.mark.slow
def test_the_network_needs_only_torch_and_torchvision(tmp_path):
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({NOT_NEEDED_BY_MODELS!r}))\n"
        "import pkgutil, importlib, hdmnet.models as models\n"
        "names = [m.name for m in pkgutil.walk_packages(models.__path__, 'hdmnet.models.')]\n"
        "[importlib.import_module(name) for name in names]\n"
        "print(len(names))"
    )
    assert int(run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(ROOT))) >= 8


@pytest.mark.slow
def test_what_only_segments_starts_without_what_trains(tmp_path):
    trains = {"lightning", "torchmetrics", "matplotlib", "albumentations"}
    code = f"import sys, hdmnet.apps.predict; print(sorted({trains} & set(sys.modules)))"
    assert run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(ROOT)).strip() == "[]"


def test_importing_the_package_is_cheap(tmp_path):
    code = "import sys; before = set(sys.modules); import hdmnet; print(sorted(set(sys.modules) - before))"
    assert run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(ROOT)).strip() == "['hdmnet']"


def test_versions_and_licence_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["dynamic"] == ["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", hdmnet.__version__)
    assert f"\nversion: {hdmnet.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert project["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_every_dependency_gives_its_reason():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    for requirement in wanted:
        assert re.search(rf'"{re.escape(requirement)}",\s*# \S.{{10}}', text), f"{requirement} has no reason beside it"
    lightning = next(requirement for requirement in wanted if requirement.startswith("lightning"))
    assert lightning == "lightning>=2.6.6"  # 2.6.2 and 2.6.3 were malicious uploads


def test_every_make_target_says_what_it_does():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: (.+)$", text, re.MULTILINE)[1].split()
    shown = run("make", "help", cwd=ROOT)
    for target in phony:
        assert re.search(rf"^{target}:.*## \S", text, re.MULTILINE), f"{target} has no ## help"
        assert re.search(rf"^  {target} ", shown, re.MULTILINE)
    assert {"help", "setup", "train", "test", "test-full", "lint", "type", "clean"} <= set(phony)
