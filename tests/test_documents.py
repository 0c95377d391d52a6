"""The documents in Portuguese say what the English ones say, and their links lead to the pages in their own language.

What a translation keeps: headings, commands, names in code, figures, and where links lead.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from helpers.project import ROOT

DOCS = ROOT / "docs"
FROM_THE_PROGRAM = {DOCS / "cli.md", DOCS / "cli.pt-BR.md", DOCS / "agents.md"}
ONE_PAGE = {DOCS / "glossario.md"}  # in both languages at once
COMMENT = re.compile(r"(^|\s+)#\s.*$", re.M)
NUMBER = re.compile(r"(?<!\w)\d+(?:[.,]\d+)*(?:e-?\d+)?")
PORTUGUESE_NAMES = {"meu-filosofo": "my-philosopher"}  # what a page in Portuguese calls a project of one's own


@dataclass
class Section:
    """A heading and what stands below it, up to the next heading."""

    level: int
    anchor: str  # as GitHub makes it
    commands: list[str] = field(default_factory=list)  # blocks of code without their comments; a drawing by its height
    names: set[str] = field(default_factory=set)  # `code` within sentences
    figures: Counter[str] = field(default_factory=Counter)  # as English writes them: 4087, 0.70
    links: set[str] = field(default_factory=set)  # targets as they are written


@cache
def sections_of(page: Path) -> list[Section]:
    """The sections of a page, in order. Every page begins with a heading."""
    portuguese = is_portuguese(page)
    tokens = MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))
    found: list[Section] = []
    for before, token in zip([None, *tokens], tokens, strict=False):
        if before is not None and before.type == "heading_open":
            found.append(Section(int(before.tag[1:]), anchor(token.content)))
        if token.type in ("fence", "code_block"):
            found[-1].commands.append(commands(token, portuguese))
        for child in token.children or ():
            if child.type == "code_inline":
                found[-1].names.add(in_english(child.content) if portuguese else child.content)
            elif child.type == "text":
                found[-1].figures.update(figure(number, portuguese) for number in NUMBER.findall(child.content))
            elif child.type in ("link_open", "image"):
                found[-1].links.add(unquote(str(child.attrs.get("href") or child.attrs["src"])))
    return found


def is_portuguese(page: Path) -> bool:
    return page.name.endswith(".pt-BR.md")


def translation_of(page: Path) -> Path:
    """The page in the other language, whether it exists or not."""
    name = page.name.removesuffix(".pt-BR.md") + ".md" if is_portuguese(page) else page.stem + ".pt-BR.md"
    return page.with_name(name)


def anchor(heading: str) -> str:
    """The fragment by which GitHub links to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def commands(block: Token, portuguese: bool) -> str:
    """A block of code without comments. One marked `text` is a drawing, whose words are translated: its height only."""
    if block.info == "text":
        return f"{block.content.count(chr(10))} lines"
    lines = (line.rstrip() for line in COMMENT.sub("", block.content).splitlines())
    text = "\n".join(line for line in lines if line)
    return in_english(text) if portuguese else text


def in_english(code: str) -> str:
    for name, english in PORTUGUESE_NAMES.items():
        code = code.replace(name, english)
    return code


def figure(number: str, portuguese: bool) -> str:
    """A number as English writes it, without separators of thousands: 4.087 and 4,087 are 4087, 0,70 is 0.70."""
    thousands, decimal = (".", ",") if portuguese else (",", ".")
    if re.fullmatch(rf"\d{{1,3}}(\{thousands}\d{{3}})+(\{decimal}\d+)?", number):
        number = number.replace(thousands, "")
    return number.replace(decimal, ".")


EVERY_PAGE = [*ROOT.glob("README*.md"), *(p for p in DOCS.rglob("*.md") if p.parent != DOCS / "decisions")]
ALL = [page for page in EVERY_PAGE if page not in FROM_THE_PROGRAM]
ENGLISH = sorted(page for page in ALL if not is_portuguese(page) and page not in ONE_PAGE)
PORTUGUESE = [translation_of(page) for page in ENGLISH]


def by_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


per_page = pytest.mark.parametrize("page", ENGLISH, ids=by_name)
per_page_in_both = pytest.mark.parametrize("page", ENGLISH + PORTUGUESE, ids=by_name)


def destination(page: Path, link: str) -> tuple[Path, str]:
    """The file that a link leads to, and the heading's anchor in it or ""."""
    path, _, fragment = link.partition("#")
    return (page.parent / path).resolve() if path else page, fragment


def place(page: Path, link: str) -> str:
    """Where a link leads, said alike for both languages: a file by its English name, a heading by its number."""
    if "://" in link:
        return link
    target, fragment = destination(page, link)
    if target == translation_of(page):  # "In English", "Em português"
        return "the other language"
    number = [section.anchor for section in sections_of(target)].index(fragment) if fragment else 0
    return f"{translation_of(target) if is_portuguese(target) else target}#{number}"


def pairs(page: Path) -> list[tuple[Section, Section]]:
    """Each section of an English page with that of its translation."""
    return list(zip(sections_of(page), sections_of(translation_of(page)), strict=True))


def test_every_document_is_there_in_both_languages():
    assert {page for page in ALL if is_portuguese(page)} == {*PORTUGUESE}


@per_page
def test_headings_form_the_same_tree(page: Path):
    english, portuguese = ([s.level for s in sections_of(p)] for p in (page, translation_of(page)))
    assert portuguese == english


@per_page
def test_commands_are_the_same(page: Path):
    for english, portuguese in pairs(page):
        assert portuguese.commands == english.commands, portuguese.anchor


@per_page
def test_no_name_in_code_is_left_out(page: Path):
    """A translation may name more: it explains what stays English."""
    for english, portuguese in pairs(page):
        assert english.names - portuguese.names == set(), portuguese.anchor


@per_page
def test_figures_are_the_same(page: Path):
    for english, portuguese in pairs(page):
        missing, added = english.figures - portuguese.figures, portuguese.figures - english.figures
        assert (missing, added) == (Counter(), Counter()), portuguese.anchor


@per_page
def test_links_lead_to_the_same_places(page: Path):
    for english, portuguese in pairs(page):
        targets = [
            {place(p, link) for link in s.links} for p, s in ((page, english), (translation_of(page), portuguese))
        ]
        assert targets[1] == targets[0], portuguese.anchor


@per_page_in_both
def test_links_exist_and_stay_in_the_language(page: Path):
    for link in (link for section in sections_of(page) for link in section.links if "://" not in link):
        target, fragment = destination(page, link)
        assert target.exists(), link
        assert not fragment or fragment in [section.anchor for section in sections_of(target)], link
        if target in ENGLISH + PORTUGUESE and target != translation_of(page):
            assert is_portuguese(target) == is_portuguese(page), link


@pytest.mark.parametrize("page", PORTUGUESE, ids=by_name)
def test_the_glossary_is_obeyed(page: Path):
    """What its last table calls wrong, unless a note in brackets says in which sense only."""
    table = (DOCS / "glossario.md").read_text(encoding="utf-8").rpartition("\n## ")[2]
    cells = re.findall(r"^\| (.+?) \|", table, re.M)[1:]
    words = {word for cell in cells for word in cell.split(", ") if "(" not in word}
    assert {"placa", "treinamento", "portão"} <= words
    text = page.read_text(encoding="utf-8").lower()
    assert [word for word in sorted(words) if re.search(rf"\b{re.escape(word)}s?\b", text)] == []


@pytest.mark.parametrize(
    ("portuguese", "english", "number"),
    [
        ("4.087", "4,087", "4087"),
        ("0,70", "0.70", "0.70"),
        ("4,087", "4.087", "4.087"),
        ("1.234,50", "1,234.50", "1234.50"),
    ],
)
def test_figures_are_compared_as_numbers(portuguese: str, english: str, number: str):
    assert (figure(portuguese, portuguese=True), figure(english, portuguese=False)) == (number, number)


def test_anchors_are_githubs():
    assert anchor("Mais de uma máquina") == "mais-de-uma-máquina"
    assert anchor('"Dataset not found"') == "dataset-not-found"
