from __future__ import annotations

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from hdmnet.cli.quoting import quote_files

KEYS = ("ckpt", "query", "support")


def parsed(word):
    return OverridesParser.create().parse_override(word).value()


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("ckpt=runs/seed=1,lr=2/best.ckpt", "runs/seed=1,lr=2/best.ckpt"),
        ("ckpt=käfer.ckpt", "käfer.ckpt"),
        ("query=quote's.png", "quote's.png"),
        ("query=[飛行機.png, a#1.png]", ["飛行機.png", "a#1.png"]),
        ("query=[a[1].png]", ["a[1].png"]),
        ("support=[ä.png:10,20,30.5,40,b=c.png:m.png]", ["ä.png:10", 20, 30.5, 40, "b=c.png:m.png"]),
        ("support={cat:[ä.png:m.png],dog:[b.png:1,2,3,4]}", {"cat": ["ä.png:m.png"], "dog": ["b.png:1", 2, 3, 4]}),
        ("support={ä:[a.png:m.png],b (c):[~/b.png:1,2,3,4]}", [["ä", "a.png:m.png"], ["b (c)", "~/b.png:1", 2, 3, 4]]),
    ],
)
def test_names_that_hydra_refuses_are_quoted(word, value):
    (quoted,) = quote_files([word], KEYS)
    assert parsed(quoted) == value


@pytest.mark.parametrize(
    "word",
    [
        "ckpt=a.ckpt",
        "query=[a.png,'käfer,1.png']",  # Hydra takes it
        "support={cat:[a.png:m.png]}",
        "output=käfer",  # no key of ours
        "query=[a.png",  # beyond mending: Hydra's refusal names it
        "support={ä:a.png:m.png}",  # no list
        "--help",
    ],
)
def test_all_else_stays_as_it_is(word):
    assert quote_files([word], KEYS) == [word]
