"""Quotes file and class names on a command line where Hydra's grammar would refuse them.

Hydra takes letters beyond ASCII, `=`, `~`, `#`, `(`, `[` or a quote inside a value only between quotes, which a shell
takes away.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser, create_functions
from hydra.errors import HydraException

_ITEM = re.compile(r"'[^']*'|\"[^\"]*\"|[^,{}\[\]'\"]+")  # of a list; it may have its quotes
_NUMBER = re.compile(r"[\s\d.+-]+")
_PLAIN = re.compile(r"[\w\s/\\+.$%*@?|:()-]*", re.ASCII)  # what needs no quotes; parentheses may call a function
_CLASS = re.compile(r"([^\[\]{},]+):\s*\[([^][]*)\]")  # NAME:[IMG:MASK,…]


def quote_paths(word: str) -> str:
    """Quote what Hydra's grammar has no letters for: `query=[größe (1).jpg]` becomes `query=['größe (1).jpg']`.

    What is plain or quoted already stays as it is, as does a word that refers to other keys.
    """
    key, equals, value = word.partition("=")
    if not equals or _is_call(value) or "${" in value or value.count("'") % 2 or value.count('"') % 2:
        return word

    def quote(match: re.Match[str]) -> str:
        text = match[0].strip()
        # Half a call, which a comma has cut in two, stays.
        name = "(" in text and not _is_call(text) and (text.count("(") == text.count(")") or re.search(r"[\s/.]", text))
        return f"'{text}'" if text[:1] not in "'\"" and (name or not _PLAIN.fullmatch(text)) else match[0]

    return f"{key}={_ITEM.sub(quote, value)}"


def _is_call(text: str) -> bool:
    """Whether it is a call of one of Hydra's functions: `choice(a,b)`, `glob(*)`."""
    call = re.fullmatch(r"(\w+)\(.*\)", text)
    return call is not None and call[1] in create_functions().functions


def quote_files(words: Sequence[str], keys: Iterable[str]) -> list[str]:
    """Quote the file names among a command line's words, e.g. `["ckpt=a=b.ckpt", "query=[käfer.png]"]`.

    Values of the `keys` are file names, lists of them in brackets, split by commas, or such lists by class: where
    Hydra does not take a class's name, `{NAME:[…],…}` becomes `[[NAME,…],…]`. Words that Hydra would take, or that
    quotes do not mend, stay as they are.
    """
    known = frozenset(keys)
    return [_quote_word(word) if word.partition("=")[0] in known and not _parses(word) else word for word in words]


def _parses(word: str) -> bool:
    try:
        OverridesParser.create().parse_override(word)
    except HydraException:
        return False
    return True


def _quote_word(word: str) -> str:
    key, _, value = word.partition("=")
    if value.startswith("[") and value.endswith("]"):
        quoted = _quote_list(value[1:-1])
    elif value.startswith("{"):
        quoted = re.sub(r"\[([^][]*)\]", lambda found: _quote_list(found[1]), value)
        if not _parses(f"{key}={quoted}") and _CLASS.sub("", value).strip("{}, ") == "":
            quoted = (
                f"[{','.join(f'[{_quote(name)},{_quote_list(items)[1:]}' for name, items in _CLASS.findall(value))}]"
            )
    else:
        quoted = value if value.startswith("[") else _quote(value)
    return f"{key}={quoted}" if _parses(f"{key}={quoted}") else word


def _quote_list(items: str) -> str:
    return f"[{','.join(map(_quote, items.split(',')))}]"


def _quote(text: str) -> str:
    """One name in quotes; a number as it is, for it may be part of a box, and a name that has its quotes."""
    text = text.strip()
    if _NUMBER.fullmatch(text) or (len(text) > 1 and text[0] == text[-1] and text[0] in "'\""):
        return text
    return "'" + text.replace("'", "\\'") + "'"
