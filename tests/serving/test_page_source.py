"""The page of `noesis serve --ui` as it is written: it loads nothing, sets no markup, and has a word for everything."""

from __future__ import annotations

import re

from noesis.serving.page.load import load_page

PAGE = load_page()


def test_the_page_needs_nothing_from_elsewhere_and_sets_no_markup():
    forbidden = r"https?://|@import|url\(|src=|<link|HTML\b|insertAdjacent|document\.write|eval\(| on[a-z]+=\"|style=\""
    assert not re.search(forbidden, PAGE.html)
    policy = PAGE.headers["Content-Security-Policy"]
    assert "'unsafe" not in policy and "connect-src 'self'" in policy and "default-src 'none'" in policy


def test_every_word_stands_in_both_languages():
    for table in ("WORDS", "FAILURES"):
        words = re.search(rf"const {table} = \{{\n  en: \{{(.*?)\n  \}},\n  pt: \{{(.*?)\n  \}},", PAGE.html, re.DOTALL)
        names = [re.findall(r"(\w+): \"", part) for part in words.groups()]
        assert names[0] == names[1]
        if table == "WORDS":
            used = set(re.findall(r'data-t="(\w+)"', PAGE.html)) | set(re.findall(r'\bt\("(\w+)"\)', PAGE.html))
            assert used <= set(names[0]) and len(used) > 40


def test_the_page_can_be_used_without_seeing_or_pointing():
    assert all(f"<{name}" in PAGE.html for name in ("header", "main", "h1", "h2"))
    fields = re.findall(r'<(?:input|textarea|select) id="(\w+)"', PAGE.html)
    assert len(fields) > 8 and all(f'<label for="{field}"' in PAGE.html for field in fields)
    assert not re.findall(r"<(?:div|span|p)[^>]*(?:onclick|tabindex)", PAGE.html)
