"""Build the site from the documents of this repository, English and Portuguese: `make site` writes site/.

    python -m http.server --directory site       English; Portuguese below pt-BR/

Every page is a document that also reads well in the repository: this file gathers them, turns their links into links of
the site, and lets Zensical build each language strictly. A document without `X.pt-BR.md` beside it stands in the
Portuguese site in English, and says so. Links to files that are no pages become plain text; a link to a file that does
not exist ends the build. Zensical: https://zensical.org/docs/
"""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath
from typing import Any

import yaml
from make_llms import llms_txt
from site_pages import DEFAULT, FOLDERS, LANGUAGES, ROOT, SECTIONS, TITLES, Page, documents, find_pages

SITE, WORK = ROOT / "site", ROOT / "build" / "site"
THEMES = (("Dark", "Light"), ("Escuro", "Claro"))  # the two buttons' names
IN_BOTH = ("docs/glossario.md",)  # one document in two languages
ONLY_ENGLISH = '<div class="admonition note"><p>Esta página só existe em inglês.</p></div>\n\n'
LINK = re.compile(r"(!?)\[([^\]\[]{0,200})\]\(([^()\s]+)\)")
FENCED = re.compile(r"^(```.*?^```$)", re.M | re.S)


class BrokenLink(Exception):
    """A link of a document leads to no file."""


class Rewriter:
    """Turns the links of documents into links of one language's site."""

    def __init__(self, pages: dict[str, Page], language: str) -> None:
        self.language = language
        self.places = {}  # document → (language, page)
        for page in pages.values():
            self.places[page.source] = (DEFAULT, page.target)
            for other in LANGUAGES:
                if page.source_in(other) != page.source:
                    self.places[page.source_in(other)] = (other, page.target)

    def rewrite(self, text: str, source: str, target: str) -> str:
        """The text of a document with links that work where its page is. Raises: BrokenLink."""
        parts = FENCED.split(text)  # prose, code, prose, …
        parts[::2] = [LINK.sub(lambda match: self._link(match, source, target), part) for part in parts[::2]]
        return "".join(parts)

    def _link(self, match: re.Match[str], source: str, target: str) -> str:
        image, text, address = match.groups()
        if "://" in address or address.startswith(("#", "mailto:")):
            return match.group()
        path, _, fragment = address.partition("#")
        file = normpath(PurePosixPath(source).parent / path)
        if not (ROOT / file).exists():
            raise BrokenLink(f"{source}: {match.group()} leads to no file of this repository")
        if image:
            return f"![{text}]({relpath(file.removeprefix('docs/'), PurePosixPath(target).parent)})"
        if file not in self.places:
            return text
        language, page = self.places[file]
        fragment = f"#{fragment}" if fragment else ""
        here = PurePosixPath(target).parent
        if language == self.language or page == "index.md" or not self._translates(source, file):
            return f"[{text}]({relpath(page, here)}{fragment})"
        other = PurePosixPath(language if language != DEFAULT else "..") / page.replace(".md", ".html")
        return f'<a href="{relpath(other, here)}{fragment}">{text}</a>'

    def _translates(self, source: str, file: str) -> bool:
        """Is one document the other in another language?"""
        return self.places[source][1] == self.places[file][1]


def api_page(template: str) -> str:
    """The API's page: each public name of `noesis`, by the module that it is imported from."""
    tree = ast.parse((ROOT / "src" / "noesis" / "__init__.py").read_text(encoding="utf-8"))
    values = {
        target.id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and target.id in ("__all__", "_MODULES")
    }
    imported = {
        name.name: f"{node.module}.{name.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }
    places = imported | {name: f"{module}.{name}" for name, module in values["_MODULES"].items()}
    return template + "".join(f"\n::: {places[name]}\n" for name in values["__all__"] if name in places)


def write_sources(language: str, pages: dict[str, Page]) -> Path:
    """One language's Markdown files and configuration. Returns: the configuration. Raises: BrokenLink."""
    folder = WORK / language
    rewriter = Rewriter(pages, language)
    for page in pages.values():
        source = page.source_in(language)
        text = (ROOT / source).read_text(encoding="utf-8")
        if page.target == "api.md":
            text = api_page(text)
        text = rewriter.rewrite(text, source, page.target)
        if language != DEFAULT and source == page.source and source not in IN_BOTH:
            head, _, rest = text.partition("\n")
            text = f"{head}\n\n{ONLY_ENGLISH}{rest}"
        file = folder / "docs" / page.target
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    shutil.copy(ROOT / "docs" / "report.png", folder / "docs")
    shutil.copytree(ROOT / "docs" / "site" / "overrides", folder / "overrides")
    file = folder / "mkdocs.yml"
    file.write_text(json.dumps(configuration(language, pages), indent=2), encoding="utf-8")  # JSON is YAML
    return file


def configuration(language: str, pages: dict[str, Page]) -> dict[str, Any]:
    """What docs/site/mkdocs.yml says, in one language."""
    config = yaml.safe_load((ROOT / "docs" / "site" / "mkdocs.yml").read_text(encoding="utf-8"))
    column = list(LANGUAGES).index(language)
    config["theme"]["language"] = language
    for palette, name in zip(config["theme"]["palette"], THEMES[column], strict=True):
        palette["toggle"]["name"] = name
    python = config["plugins"]["mkdocstrings"]["handlers"]["python"]
    python["paths"] = [str(ROOT / "src")]
    python["options"]["extensions"] = [str(ROOT / "docs" / "site" / "doctests.py")]
    to_root = "" if language == DEFAULT else "../"
    config["extra"]["alternate"] = [
        {"name": name, "lang": code, "link": to_root + ("" if code == DEFAULT else f"{code}/")}
        for code, name in LANGUAGES.items()
    ]
    config["nav"] = [
        {titles[column]: [entry for source in sources for entry in _entries(source, pages, column)]}
        for titles, sources in SECTIONS.items()
    ]
    return config


def _entries(source: str, pages: dict[str, Page], column: int) -> list[Any]:
    """A document's line of the navigation; a folder's lines, under the folder's title if it has one."""
    targets = [pages[name].target for name in documents(source)]
    lines = [{TITLES[target][column]: target} if target in TITLES else target for target in targets]
    return [{FOLDERS[source][column]: lines}] if lines and source in FOLDERS else lines


def main() -> int:
    """Gather, build, join."""
    for folder in (SITE, WORK):
        shutil.rmtree(folder, ignore_errors=True)
    pages = find_pages()
    try:
        configs = {language: write_sources(language, pages) for language in LANGUAGES}
    except BrokenLink as error:
        print(error, file=sys.stderr)
        return 1
    for language, config in configs.items():
        done = subprocess.run([sys.executable, "-m", "zensical", "build", "--strict", "-f", str(config)], check=False)
        if done.returncode:
            print(f"the site in {LANGUAGES[language]} was not built", file=sys.stderr)
            return 1
        shutil.copytree(config.parent / "site", SITE if language == DEFAULT else SITE / language, dirs_exist_ok=True)
    places = {name: page.target.replace(".md", ".html") for name, page in pages.items()}
    (SITE / "llms.txt").write_text(llms_txt(places), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
