"""Which documents the site and llms.txt show, in which order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DEFAULT, LANGUAGES = "en", {"en": "English", "pt-BR": "Português"}
SECTIONS = {  # documents in the order of the navigation; a folder stands for what is in it
    ("Start here", "Comece aqui"): ["docs/site/index.md", "README.md"],
    ("Guides", "Guias"): [
        *("docs/constitution.md", "docs/tribunal.md", "docs/modal.md", "docs/release.md", "docs/integrate.md"),
        *("docs/run", "docs/verify.md", "docs/scale.md", "docs/families.md", "docs/glossario.md", "docs"),
    ],
    ("Reference", "Referência"): ["docs/cli.md", "docs/site/api.md", "docs/agents.md"],
    ("The project", "O projeto"): [
        *("CHANGELOG.md", "CONTRIBUTING.md", "CODE_OF_CONDUCT.md", "SECURITY.md"),
        *("benchmarks/README.md", "tests/wild/README.md", "docs/decisions"),
    ],
}
NAMES = {  # pages that are not named after their file
    "README.md": "overview.md",
    "docs/site/index.md": "index.md",
    "docs/site/api.md": "api.md",
    "benchmarks/README.md": "benchmarks.md",
    "tests/wild/README.md": "wild.md",
    "docs/decisions/README.md": "decisions/index.md",
}
TITLES = {"overview.md": ("Overview", "Visão geral")}
FOLDERS = {
    "docs/decisions": ("Decisions", "Decisões"),
    "docs/run": ("Where models are run", "Onde rodar os modelos"),
}


@dataclass(frozen=True)
class Page:
    """A document and its place in the site: `source` in the repository, `target` in each language's folder."""

    source: str
    target: str

    def source_in(self, language: str) -> str:
        """The document of a language, or the English one."""
        translated = self.source.removesuffix(".md") + f".{language}.md"
        return translated if language != DEFAULT and (ROOT / translated).is_file() else self.source


def find_pages() -> dict[str, Page]:
    """Every page by its document, in the order of the navigation."""
    pages = {}
    for sources in SECTIONS.values():
        for source in sources:
            for name in documents(source):
                if name not in pages:
                    pages[name] = Page(name, NAMES.get(name) or name.removeprefix("docs/").lower())
    return pages


def documents(source: str) -> list[str]:
    """The document of that name, or those in the folder of that name, its README.md first."""
    if not (ROOT / source).is_dir():
        return [source] if (ROOT / source).is_file() else []
    names = sorted(file.relative_to(ROOT).as_posix() for file in (ROOT / source).glob("*.md"))
    listed = {source for sources in SECTIONS.values() for source in sources}
    names = [name for name in names if name not in listed and not is_translation(name)]
    return sorted(names, key=lambda name: not name.endswith("README.md"))


def is_translation(name: str) -> bool:
    return any(name.endswith(f".{language}.md") for language in LANGUAGES)
