"""The site's sources: each link of each document leads somewhere, in both languages; and the check of what was built."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from helpers.project import ROOT

sys.path.insert(0, str(ROOT / "docs"))
from check_site import broken_links
from make_site import BrokenLink, Rewriter, api_page, configuration
from site_pages import LANGUAGES, find_pages

PAGES = find_pages()


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_document_links_to_what_is_not_there(language: str):
    rewriter = Rewriter(PAGES, language)
    for page in PAGES.values():
        source = page.source_in(language)
        rewriter.rewrite((ROOT / source).read_text(encoding="utf-8"), source, page.target)


def test_links_follow_the_site_and_the_language():
    english, portuguese = Rewriter(PAGES, "en"), Rewriter(PAGES, "pt-BR")
    text = "[a](decisions/0011-planner.md) [b](../benchmarks/README.md#x) [c](../LICENSE) [d](https://example.org/)"
    expected = "[a](decisions/0011-planner.md) [b](benchmarks.md#x) c [d](https://example.org/)"
    assert english.rewrite(text, "docs/scale.md", "scale.md") == expected
    assert english.rewrite("[p](modal.pt-BR.md)", "docs/modal.md", "modal.md") == '<a href="pt-BR/modal.html">p</a>'
    assert portuguese.rewrite("[p](modal.md)", "docs/modal.pt-BR.md", "modal.md") == '<a href="../modal.html">p</a>'
    assert portuguese.rewrite("[p](modal.pt-BR.md)", "docs/tribunal.pt-BR.md", "tribunal.md") == "[p](modal.md)"
    code = "```\n[x](nowhere.md)\n```"
    assert english.rewrite(code, "docs/scale.md", "scale.md") == code
    with pytest.raises(BrokenLink, match=r"docs/scale\.md: \[x\]\(nowhere\.md\) leads to no file"):
        english.rewrite("[x](nowhere.md)", "docs/scale.md", "scale.md")


def test_every_document_is_in_the_navigation_of_both_languages():
    for language in LANGUAGES:
        shown = str(configuration(language, PAGES)["nav"])
        assert [page.target for page in PAGES.values() if f"'{page.target}'" not in shown] == []
    documents = {file.relative_to(ROOT).as_posix() for file in (ROOT / "docs").rglob("*.md")}
    assert {name for name in documents if ".pt-BR." not in name} <= set(PAGES)


def test_the_reference_names_what_can_be_imported():
    import noesis

    named = [line.removeprefix("::: ").rpartition(".") for line in api_page("").splitlines() if line]
    assert {name for _, _, name in named} == {name for name in noesis.__all__ if not name.startswith("__")}
    for module, _, name in named:
        assert getattr(getattr(noesis, name), "__module__", None) == module or hasattr(sys.modules[module], name)


def test_a_link_that_leads_nowhere_is_found_in_what_was_built(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "index.html").write_text('<h1 id="top"></h1>', encoding="utf-8")
    good = '<a href="folder/#top">a</a><a href="https://elsewhere.example/">b</a><a href="#here" id="here">c</a>'
    (tmp_path / "index.html").write_text(good, encoding="utf-8")
    assert broken_links(tmp_path) == []
    bad = '<img src="no.png"><a href="folder/index.html#no">a</a><a href="#no">b</a>'
    (tmp_path / "index.html").write_text(good + bad, encoding="utf-8")
    assert broken_links(tmp_path) == [f"index.html: {link}" for link in ("#no", "folder/index.html#no", "no.png")]
