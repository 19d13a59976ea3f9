"""What README and the docs name is there: links, anchors, files, modules, and commands whose words compose."""

from __future__ import annotations

import ast
import importlib
import re
import shlex

import pytest
import torch
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import open_dict

from hdmnet.cli.main import COMMANDS
from hdmnet.cli.quoting import quote_files, quote_paths
from hdmnet.config.checks import validate
from hdmnet.config.paths import conf_dir
from tests.helpers.commands import ROOT
from tests.helpers.official_files import write_official

PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "hdmnet" / "models").glob("*/README.md")),
]
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}
COMPOSED = ("train", "evaluate", "predict", "demo")
# In tests/entry_points/test_readme.py, test_outside.py, and below. `py` blocks are parts of a program.
RUN_ELSEWHERE = {"README.md": 1, "docs/own_pictures.md": 2, "docs/extending.md": 3, "docs/fidelity.md": 1}


def name_of(page):
    return page.relative_to(ROOT).as_posix()


def without_blocks(text):
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text):
    """Of a page's headings, as GitHub and MkDocs make them."""
    headings = re.findall(r"^#+ (.+)$", without_blocks(text), re.MULTILINE)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_link_is_dead(page):
    for address in re.findall(r"\]\(([^)\s]+)\)", without_blocks(TEXTS[page])):
        if "://" in address:
            continue
        path, _, anchor = address.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), address
        assert not anchor or anchor in anchors(TEXTS[target]), address


# The two others tell of what there was.
@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in ("log.md", "CHANGELOG.md")], ids=name_of)
def test_files_and_modules_that_a_page_names_are_there(page):
    for word in re.findall(r"`([^`\s]+)`", without_blocks(TEXTS[page])):
        if re.match(r"(hdmnet|conf|scripts|tests|docs)/[^<{…$]*$", word):
            assert list(ROOT.glob(word.rstrip("/"))), word
        elif re.match(r"hdmnet(\.\w+)+$", word) and not word.startswith("hdmnet.extensions"):
            assert is_there(word), word


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent.parent.name == "models"], ids=name_of)
def test_a_methods_page_names_its_own_files(page):
    cells = re.findall(r"^\| ([^|]+) \|", TEXTS[page], re.MULTILINE)
    named = [word for cell in cells for word in re.findall(r"`((?:\.\./)?\w+\.py)`", cell)]
    assert [word for word in named if not (page.parent / word).is_file()] == []


def is_there(dotted):
    """Whether a module, or a name in one, is there."""
    module, names = dotted, []
    while not list(ROOT.glob(f"{module.replace('.', '/')}.py")) and not (ROOT / module.replace(".", "/")).is_dir():
        module, _, name = module.rpartition(".")
        names.insert(0, name)
    found = importlib.import_module(module)
    for name in names:
        found = getattr(found, name, None)
    return found is not None


def commands():
    """The words of each command of all `sh` blocks and of the indented ones."""
    seen = set()
    for page, text in TEXTS.items():
        variables = {}
        for fenced, indented in re.findall(
            r"^ *```sh\n(.*?)^ *```|^ {4}(python [^\n]*)", text, re.MULTILINE | re.DOTALL
        ):
            for line in (fenced or indented).replace("\\\n", " ").splitlines():
                if assigned := re.match(r'(\w+)="(.*)"$', line):
                    variables[assigned[1]] = assigned[2]
                for name, value in variables.items():
                    line = line.replace(f"${name}", value)
                words = shlex.split(line, comments=True)
                if (key := " ".join(words)) not in seen:
                    seen.add(key)
                    yield pytest.param(words, id=f"{name_of(page)}: {key[:60]}")


def door_and_words(words):
    """`python -m hdmnet.train …` and `hdmnet train …`, whatever starts them; None: another command."""
    for place, word in enumerate(words):
        if word.startswith("hdmnet.") and words[place - 1] == "-m":
            return word.removeprefix("hdmnet."), words[place + 1 :]
        if word == "hdmnet" and place == 0 and words[1:2] and words[1] in COMMANDS:
            return words[1], words[2:]
    return None


ALL = list(commands())
ENTRY = [one for one in ALL if (door_and_words(one.values[0]) or ("",))[0] in COMPOSED]
SCRIPTS = [one for one in ALL if any(word.startswith("scripts/") for word in one.values[0])]


@pytest.fixture
def loader():
    with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
        yield GlobalHydra.instance().config_loader()


@pytest.mark.long
@pytest.mark.parametrize("words", ENTRY)
def test_commands_compose(words, loader):
    if "model=cosine" in words:
        pytest.skip("of the page's own files: tests/entry_points/test_outside.py")
    door, words = door_and_words(words)
    words = [word for word in words if word not in ("-m", "--multirun")]
    words = [quote_paths(word) for word in quote_files(words, ("ckpt", "support", "query", "output", "save"))]
    parsed = OverridesParser.create(loader).parse_overrides(words)
    first = [next(one.sweep_string_iterator()) if one.is_sweep_override() else None for one in parsed]
    words = [
        f"{one.key_or_group}={value}" if value else word for one, value, word in zip(parsed, first, words, strict=True)
    ]
    cfg = loader.load_configuration(door, words, run_mode=RunMode.RUN)
    with open_dict(cfg):
        del cfg["hydra"]
    validate(cfg)


@pytest.mark.parametrize("words", SCRIPTS)
def test_scripts_and_their_options_are_there(words):
    (script,) = (word for word in words if word.startswith("scripts/"))
    text = (ROOT / script).with_suffix(".py").read_text(encoding="utf-8")  # gpu.sh hands its options to gpu.py
    for flag in (word for word in words if word.startswith("--")):
        assert flag in text, flag


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_is_python_and_some_test_runs_it(page):
    blocks = re.findall(r"^```(py|python)\n(.*?)^```", TEXTS[page], re.MULTILINE | re.DOTALL)
    for _, block in blocks:
        ast.parse(block)
    assert [kind for kind, _ in blocks].count("python") == RUN_ELSEWHERE.get(name_of(page), 0), (
        "a new example: let a test run it"
    )


@pytest.mark.long
def test_the_example_of_the_authors_checkpoints_runs(tmp_path, monkeypatch):
    write_official(tmp_path / "official.pth", "coco_r50_1shot")
    monkeypatch.chdir(tmp_path)
    names = {
        "query_image": torch.zeros(1, 3, 65, 65),
        "support_images": torch.zeros(1, 1, 3, 65, 65),
        "support_masks": torch.ones(1, 1, 65, 65, dtype=torch.uint8),
    }
    (example,) = re.findall(r"^```python\n(.*?)^```", TEXTS[ROOT / "docs" / "fidelity.md"], re.MULTILINE | re.DOTALL)
    with torch.no_grad():
        exec(compile(example, "fidelity.md", "exec"), names)
    assert names["out"].logits.shape == (1, 2, 65, 65)
    assert [len(names["out"].maps[name]) for name in ("correlation", "prior")] == [3, 2]
