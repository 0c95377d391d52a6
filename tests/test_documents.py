"""The documents in Portuguese say what the English ones say, and their links lead to the pages in their own language."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from helpers.documents import Section, anchor, figure, is_portuguese, sections_of, translation_of
from helpers.project import ROOT

DOCS = ROOT / "docs"
ONE_PAGE = {DOCS / "cli.md", DOCS / "glossario.md"}  # made from the program; in both languages at once
ENGLISH = [ROOT / "README.md", *sorted(p for p in DOCS.glob("*.md") if not is_portuguese(p) and p not in ONE_PAGE)]
PORTUGUESE = [translation_of(page) for page in ENGLISH]
per_page = pytest.mark.parametrize("page", ENGLISH, ids=lambda page: page.stem)
per_page_in_both = pytest.mark.parametrize("page", ENGLISH + PORTUGUESE, ids=lambda page: page.name)


def pairs(page: Path) -> list[tuple[Section, Section]]:
    """Each section of an English page with that of its translation."""
    return list(zip(sections_of(page), sections_of(translation_of(page)), strict=True))


def test_every_document_is_there_in_both_languages():
    assert {*ROOT.glob("*.pt-BR.md"), *DOCS.glob("*.pt-BR.md")} == {*PORTUGUESE}


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
        path, _, fragment = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if fragment:
            assert fragment in [section.anchor for section in sections_of(target)], link
        if target in ENGLISH + PORTUGUESE and target != translation_of(page):
            assert is_portuguese(target) == is_portuguese(page), link


def place(page: Path, link: str) -> str:
    """Where a link leads, in the same words for both languages: a file by its English name, a heading by its number."""
    if "://" in link:
        return link
    path, _, fragment = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    anchors = [section.anchor for section in sections_of(target)] if fragment else []
    english = translation_of(target) if is_portuguese(target) else target
    both = target == translation_of(page)  # "In English", "Em português"
    return (
        "the other language" if both else f"{english.relative_to(ROOT)}#{anchors.index(fragment) if fragment else ''}"
    )


@pytest.mark.parametrize("page", PORTUGUESE, ids=lambda page: page.name)
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
