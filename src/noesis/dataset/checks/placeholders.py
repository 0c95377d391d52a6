"""Finds what an author meant to fill in and did not: `{concept}`, `[TODO: …]`, `<insira …>`, `XXX`, `___`.

Braces and blanks that mean something else are text: code (in backticks, fences, f-strings), LaTeX, and sets in logic.
"""

from __future__ import annotations

import re

_BRACES = (
    r"\{\{?\s{0,9}[A-Za-zÀ-ÿ_][\wÀ-ÿ .-]{0,40}\}?\}|\{\{[^{}\\\n]{1,80}\}\}|\{%[^{}\n]{1,80}%\}|%\(\w{1,40}\)[sdfr]"
)
_NOTES = r"TODO|FIXME|TBD|XXX|PENDENTE|PLACEHOLDER|COMPLETAR|A COMPLETAR|FILL IN"
_ASKS = r"INSERT|INSERIR|INSIRA|PREENCHER|PREENCHA"
_PLACEHOLDER = re.compile(
    rf"{_BRACES}"
    rf"|\[(?:{_NOTES}|{_NOTES.lower()})\]|\[(?:{_NOTES})(?![\w-])[^\]\n]{{0,200}}\]|\[(?i:todo|fixme|tbd):[^\]\n]{{0,200}}\]"
    rf"|\[(?i:{_ASKS})(?![^\W_]|-)[^\]]{{0,200}}\]"
    r"|\[(?:YOUR|SEU|SUA) [^\]\n]{1,60}\]|\[(?i:your|seu) (?i:name|nome)\]"
    r"|<(?i:insert|inserir|insira|preencher|preencha|your|seu|sua|todo|placeholder)\b[^>]{0,60}>"
    r"|\b(?:TODO|FIXME):"
    r"|(?<!\w)XXX+(?!\w)"
    r"|(?<![\w_])_{3,}(?![\w_])"
    r"|(?i:\blorem ipsum\b)"
)
_MAY_HOLD_ONE = re.compile(r"[\[{<]|%\(|XXX|___|TODO:|FIXME:|psum|PSUM")  # a quick test before the search
# Code and formulas; each search ends at the next mark of its kind, so that it takes linear time on any text.
_WRITTEN = re.compile(
    r"```(?:[^`]|`(?!``))*(?:```|\Z)|(?m:^)[ \t]{0,3}~~~(?:[^~]|~(?!~~))*(?:~~~|\Z)"
    r"|``(?:[^`\n]|`(?!`))+``|`[^`\n]+`"
    r"|\b(?:[rR]?[fF]|[fF][rR])(?:\"[^\"\n]*\"|'[^'\n]*')|(?:\"[^\"\n]*\"|'[^'\n]*')\.format\("
    r"|\$\$[^$]+\$\$|\\\((?:[^\\]|\\(?![()]))*\\\)|\\\[(?:[^\\]|\\(?![\[\]]))*\\\]"
    r"|(?<![\w\\$])\$(?=[^\s$])(?=[^$\n]{0,500}[\\^_=])[^$\n]{1,500}(?<=\S)\$(?!\d)"
)
_BEFORE_GROUP = re.compile(r"(?:\\[A-Za-z]{1,30}\*?(?:\[[^\]\n]{0,40}\])?|\\|\^|(?:\b\w|[)}\]])_|[^\s{]\})\Z")
_BEFORE_BLOCK = re.compile(r"(?:\)|[=-]>|\b(?:else|try|do|finally))\s?\Z")
_BEFORE_SET = re.compile(
    r"(?:[∈∉∋⊂⊆⊄⊊⊃⊇∪∩∖×≡]\s?|\b[A-Z]\d?\s?(?::=|==?|≔)\s?"
    r"|\b(?:(?:the )?(?:set|singleton)s?|[Oo]s? conjuntos?|(?:member|element|subset|power set)s? of"
    r"|(?:membro|elemento|subconjunto|conjunto das parte)s? d[eo])\s|\}(?:,| e| ou| and| or)\s)\Z"
)
_AFTER_SET = re.compile(r"\s?[∈∉⊂⊆⊄⊊⊃⊇∪∩∖×≠≡]")
_SET = re.compile(r"\{[^{}\n]{1,80}\}")
_ELEMENT = re.compile(r"\s{0,9}(?:[A-ZÀ-Ý][\w .-]{0,40}|\w)\s{0,9}")  # a name or a letter, as in {Socrates} or {a}


def placeholder(text: str, *, elements: frozenset[str] = frozenset()) -> str | None:
    """The first unfilled placeholder in `text`; None if there is none.

    Args:
        elements: of the sets that other texts of the row define, from `set_elements`; `{Socrates}` is then a set here.
    """
    if not _MAY_HOLD_ONE.search(text):
        return None
    if not _PLACEHOLDER.search(text):
        return None
    elements |= set_elements(text)
    prose = _WRITTEN.sub(lambda m: "\0" * len(m.group()), text)
    found = (match for match in _PLACEHOLDER.finditer(prose) if not _means_something(prose, match, elements))
    return next((match.group() for match in found), None)


def set_elements(text: str) -> frozenset[str]:
    """The elements of the sets that `text` defines: of `A = {Socrates, Plato}`, both names."""
    found: set[str] = set()
    for match in _SET.finditer(text) if "{" in text else ():
        if _is_set(text, match.start(), match.end()):
            found |= {part.strip() for part in match.group()[1:-1].split(",")}
    return frozenset(found)


def _means_something(text: str, match: re.Match[str], elements: frozenset[str]) -> bool:
    """Whether a match is part of a formula, a set, a Roman numeral, or a line across the page."""
    found, before = match.group(), text[max(0, match.start() - 80) : match.start()]
    if found.startswith("{"):
        inside = found.strip("{}").strip()
        return bool(
            inside in elements
            or _BEFORE_GROUP.search(before)
            or _is_set(text, match.start(), match.end())
            or (found.startswith("{ ") and _BEFORE_BLOCK.search(before))
            or (
                before.rstrip()[-1:] in ("{", ",")
                and before.count("{") > before.count("}")
                and _ELEMENT.fullmatch(inside)
            )
            or (" for " in inside and " in " in inside)  # a comprehension
        )
    if found == "XXX":
        return _is_numeral(before, text[match.end() : match.end() + 20])
    if found.startswith("___"):
        line_start, line_end = text.rfind("\n", 0, match.start()) + 1, text.find("\n", match.end())
        line = text[line_start : line_end if line_end >= 0 else len(text)]
        return line.strip() == found
    return False


def _is_set(text: str, start: int, end: int) -> bool:
    before = _BEFORE_SET.search(text[max(0, start - 40) : start])
    if not before:
        return bool(_AFTER_SET.match(text, end))
    by_word = before.group()[-1:].isspace() and before.group().strip()[-1:].isalpha()
    return not by_word or bool(_ELEMENT.fullmatch(text[start + 1 : end - 1]) or "," in text[start:end])


_NUMBERED = re.compile(
    r"(?i:\b(?:cap[íi]tulo|chapter|livro|book|canto|s[ée]culo|century|salmo|psalm|carta|letter|ep[íi]stola|epistle|soneto"
    r"|sonnet|super bowl|parte|part|tomo|volume|vol\.|cap\.|ch\.|art\.|artigo|article|§|n\.|n[ºo°]|lei|ato|act|inferno"
    r"|paradiso|purgatorio|purgatório|paraíso)\s)\Z|\b[IVXLC]{1,7}(?:,| e| and|-|–)\s?\Z"
)
_MORE_NUMERALS = re.compile(r"(?:,| e| and|-|–)\s?[IVXLC]{1,7}\b|,\s?\d")


def _is_numeral(before: str, after: str) -> bool:
    """Whether XXX is the number thirty: of a chapter, a psalm, or beside another Roman numeral."""
    return bool(_NUMBERED.search(before) or _MORE_NUMERALS.match(after))
