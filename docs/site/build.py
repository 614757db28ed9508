"""The site: the pages of the repository, the commands' options and the docstrings, built strictly by Zensical.

``make docs`` runs it in an environment of its own. The source of the site is a copy of the files that its pages link
to, at the same places as in the repository, so that a link is right in both or in neither. A link that leads nowhere
ends the build: Zensical knows of pages and headings, ``find_broken`` of everything that a page refers to. So does a
picture that is not that of its tables.

Zensical, because it makes pages of docstrings without importing the package (mkdocstrings reads the source): the site
needs neither torch nor a compiler. Its version is below 0.1, therefore it is pinned in requirements.docs.lock.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from docs.site.commands import fill_places
from docs.site.picture import draw_all

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "docs" / "site"
BUILD = ROOT / "build" / "docs"
"""Ignored by git."""
FIRST = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LOG.md", "SECURITY.md")]

LINK = re.compile(r"\]\(([^)\s]+)\)|^\[[^\]]+\]: (\S+)$|(?:src|srcset|href)=\"([^\"]+)\"", re.MULTILINE)
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.DOTALL | re.MULTILINE)


def links_of(text: str) -> Iterator[tuple[str, str]]:
    """(path, heading) of every relative link and picture of a page; the path is "" within the page."""
    for match in LINK.finditer(CODE.sub("", text)):
        link = urlsplit(next(filter(None, match.groups())))
        if not link.scheme:
            yield unquote(link.path), link.fragment


def find_files() -> set[Path]:
    """The pages of the site and every file that one of them links to, however far."""
    waiting = [*FIRST, *sorted((ROOT / "docs").rglob("*.md"))]
    found: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        if not path.is_file() or not path.is_relative_to(ROOT):
            raise SystemExit(f"docs: {path} is linked and is no file of the repository")
        found.add(path)
        if path.suffix == ".md":
            waiting += [(path.parent / link).resolve() for link, _ in links_of(path.read_text()) if link]
    return found


def stage(files: set[Path], source: Path) -> None:
    """Copy the files to the places that they have in the repository, the pages' comments filled."""
    for path in files:
        target = source / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".md":
            target.write_text(fill_places(path.read_text()))
        else:
            shutil.copyfile(path, target)


class Page(HTMLParser):
    """What a page of the site refers to, and what can be referred to in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.targets: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Collect both."""
        for name, value in attributes:
            if name == "id" and value:
                self.ids.add(value)
            elif name in ("href", "src", "srcset") and value:
                self.targets.add(value)


def find_broken(site: Path) -> list[str]:
    """Every reference of a page to a file or a heading that is not there; the page of errors is left out."""
    pages = {path: Page(path.read_text()) for path in site.rglob("*.html") if path.name != "404.html"}
    broken = []
    for path, page in pages.items():
        for target in sorted(page.targets):
            link = urlsplit(target)
            if link.scheme or link.netloc:
                continue
            other = (path.parent / unquote(link.path)).resolve() if link.path else path
            if other.is_dir():
                other /= "index.html"
            ids = pages[other].ids if other in pages else {""}
            # The parser's own ids of headings are what Zensical compares with; "#" alone is the top of the page.
            if not other.is_file() or (link.fragment and other in pages and unquote(link.fragment) not in ids):
                broken.append(f"{path.relative_to(site)}: {target}")
    return sorted(broken)


def main() -> None:
    """Build the site in build/docs/site; anything wrong ends with exit code 1."""
    old = [path.name for path, text in draw_all() if not path.exists() or path.read_text() != text]
    if old:
        raise SystemExit(f"docs: {', '.join(old)} differ from the tables: python -m docs.site.picture draws them again")
    shutil.rmtree(BUILD, ignore_errors=True)
    stage(find_files(), BUILD / "source")
    shutil.copyfile(HERE / "zensical.toml", BUILD / "zensical.toml")
    shutil.copyfile(HERE / "site.css", BUILD / "source" / "site.css")
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    finished = subprocess.run(command, cwd=BUILD, env=os.environ | {"NO_COLOR": "1"}, check=False)
    if finished.returncode != 0:
        raise SystemExit("docs: the site is not built; what is wrong stands above")
    broken = find_broken(BUILD / "site")
    if broken:
        raise SystemExit("\n".join(["docs: these links lead nowhere:", *broken]))
    print(f"docs: {BUILD / 'site' / 'index.html'}")


if __name__ == "__main__":
    main()
