"""The keys of an entry point's config with what its file says of them, for `--help`."""

from __future__ import annotations

import re
import shutil
import textwrap

from hdmnet.config.paths import conf_dir

_LINE = re.compile(r"(?P<indent> *)(?P<key>\w+):(?: +(?P<value>[^ #](?:(?! #).)*))?(?: +# (?P<text>.*))?$")
_NOT_SETTINGS = ("defaults", "hydra")  # blocks that no user sets a key of from the command line


def key_help(config_name: str) -> str:
    """One paragraph a key of `conf/<config_name>.yaml`: `key=default` and the comment beside it, as wide as the screen.

    The file is the one place where a key's meaning stands; keys without a comment are left out.
    """
    paragraphs, block = [], ""
    width = min(max(shutil.get_terminal_size((100, 24)).columns, 60), 120)
    for line in (conf_dir() / f"{config_name}.yaml").read_text(encoding="utf-8").splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        key, value, text = match["key"], match["value"], match["text"]
        if not match["indent"]:
            block = key if value is None else ""
        if text is None or (key if not match["indent"] else block) in _NOT_SETTINGS:
            continue
        name = f"{block}.{key}" if match["indent"] else key
        first = f"  {name}" if value is None else f"  {name}={value.strip()}"
        body = textwrap.wrap(text, width - 6, break_long_words=False, break_on_hyphens=False)
        paragraphs.append("\n".join([first, *(f"      {one}" for one in body)]))
    return "\n".join(paragraphs).replace("$", "$$")  # Hydra fills in what a template names after a dollar
