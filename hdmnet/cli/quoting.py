"""File names on a command line as a user types them: what Hydra's grammar refuses is quoted for it.

Hydra takes letters beyond ASCII, `=`, `#`, `[` or a quote inside a value only between quotes, which a shell takes away.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

_BETWEEN = re.compile(r"[^,{}\[\]]+")  # an item of a list
_NUMBER = re.compile(r"[\s\d.+-]+")


def quote_paths(word: str) -> str:
    """Quote what Hydra's grammar has no letters for: `query=[größe (1).jpg]` becomes `query=['größe (1).jpg']`.

    A word that is plain, quoted already, or refers to other keys stays as it is.
    """
    key, equals, value = word.partition("=")
    call = re.fullmatch(r"\w+\(.*\)", value)  # choice(a,b), glob(*)
    if not equals or call or re.search(r"['\"]|\$\{", value):
        return word

    def quote(match: re.Match[str]) -> str:
        text = match[0].strip()
        path = re.search(r"[()]", text) and re.search(r"[\s/.]", text)
        return f"'{text}'" if path or not text.isascii() else match[0]

    return f"{key}={_BETWEEN.sub(quote, value)}"


def quote_files(words: Sequence[str], keys: Iterable[str]) -> list[str]:
    """Quote the file names among a command line's words, e.g. `["ckpt=a=b.ckpt", "query=[käfer.png]"]`.

    Values of the `keys` are file names, lists of them in brackets, split by commas, or such lists by class. Words that
    Hydra would take, or that quotes do not mend, stay as they are.
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
