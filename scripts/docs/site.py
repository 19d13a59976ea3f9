"""What the documentation's site has beside docs/: README, changes, each method's own page, and the reference.

Run by MkDocs (mkdocs.yml). Links that lead out of docs/ in the repository lead to the page that stands for their file;
a link to a file that has no page becomes its name.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

import mkdocs_gen_files

ROOT = Path(__file__).resolve().parents[2]
PAGES = {  # of the repository's files: their places on the site
    "README.md": "index.md",
    "CHANGELOG.md": "changes.md",
    "CONTRIBUTING.md": "contributing.md",
    **{
        file.relative_to(ROOT).as_posix(): f"methods/{file.parent.name}.md"
        for file in sorted((ROOT / "hdmnet" / "models").glob("*/README.md"))
    },
}
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


def page_of(path: str) -> str | None:
    """Where the site has a file of the repository, both as paths from the top; None: nowhere."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return PAGES.get(path) or PAGES.get(f"{path}/README.md")


def move_links(text: str, source: str, target: str) -> str:
    """The text of a file `source` with its links as they are on the page `target`."""

    def moved(link: re.Match[str]) -> str:
        shown, address = link[2], link[3]
        path, _, anchor = address.partition("#")
        if not path or "://" in path:
            return link[0]
        page = page_of(posixpath.normpath(posixpath.join(posixpath.dirname(source), path)))
        if page is None:
            return shown
        relative = posixpath.relpath(page, posixpath.dirname(target) or ".")
        return f"{link[1]}[{shown}]({relative}{'#' + anchor if anchor else ''})"

    return _LINK.sub(moved, text)


def write(target: str, text: str, source: str | None = None) -> None:
    """Add a page to the site, or replace it; `source` is the file in the repository that it is made of."""
    with mkdocs_gen_files.open(target, "w") as page:
        page.write(text if source is None else move_links(text, source, target))


def main() -> None:
    """Write all pages that docs/ does not hold as they are."""
    for own in sorted((ROOT / "docs").glob("*.md")):
        write(own.name, own.read_text(encoding="utf-8"), f"docs/{own.name}")
    for source, target in PAGES.items():
        write(target, (ROOT / source).read_text(encoding="utf-8"), source)
    names = sorted(target for target in PAGES.values() if target.startswith("methods/"))
    write("methods/SUMMARY.md", "".join(f"* [{Path(one).stem}]({Path(one).name})\n" for one in names))
    navigation = mkdocs_gen_files.Nav()
    for file in sorted((ROOT / "hdmnet").rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        if parts[-1] in ("__init__", "__main__") and len(parts) > 2:
            continue
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        page = "/".join(parts) + ".md" if len(parts) > 1 else "hdmnet/index.md"
        navigation[parts] = page
        write(f"reference/{page}", f"::: {'.'.join(parts)}\n")
    with mkdocs_gen_files.open("reference/SUMMARY.md", "w") as page:
        page.writelines(navigation.build_literate_nav())


main()
