"""Finds what an author meant to fill in and did not. `placeholder` finds what is refused, `doubtful` what is warned of.

Refused, for surely unfinished: `{concept}`, `{{ name }}`, `%(name)s`, `[TODO: …]`, `[INSERT …]`, `<insert …>`, `TODO:`,
`XXX`, filler text, and a blank `___` outside of an exercise (a row whose prompt has a blank).

Warned of, for it may be meant: `{0}`, `{s}`, `%s`, `[CONCEPT]`, `<concept>`, `YOUR_NAME`, `(TODO)`, ` ??? `,
`[to be completed]`, "lorem ipsum" by name, the `[Insert]` key, blanks of an exercise, XXX beside kisses and films, the
Portuguese word TODO beside other quantifiers, and whatever stands beside words about forms, software or notation.

Text: code (in backticks, fences, f-strings, percent forms in quotation marks), LaTeX, sets in logic, Roman numerals.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_BRACES = (
    r"\{\{?\s{0,9}[A-Za-zÀ-ÿ_][\wÀ-ÿ .-]{0,40}\}?\}|\{\{(?!c\d)[^{}\\\n]{1,80}\}\}|\{%[^{}\n]{1,80}%\}"
    r"|%\(\w{1,40}\)[sdfr]"
)
_NOTES = r"TODO|FIXME|TBD|XXX|PENDENTE|PLACEHOLDER|COMPLETAR|A COMPLETAR|FILL IN"
_ASKS = r"INSERT|INSERIR|INSIRA|PREENCHER|PREENCHA"
_LATER = r"(?:a |por |para )?(?:completar|preencher)|to be (?:completed|filled|written|added)|fill in"
_BLANK = re.compile(r"(?<![\w_])_{3,}(?![\w_])")
_PLACEHOLDER = re.compile(
    rf"{_BRACES}"
    rf"|\[(?:{_NOTES}|{_NOTES.lower()})\]|\[(?:{_NOTES})(?![\w-])[^\]\n]{{0,200}}\]|\[(?i:todo|fixme|tbd):[^\]\n]{{0,200}}\]"
    rf"|\[(?i:{_ASKS})(?![^\W_]|-|\s{{0,3}}[>→›|])[^\]]{{0,200}}\]"  # [Insert > Table] is a menu
    r"|\[(?:YOUR|SEU|SUA) [^\]\n]{1,60}\]|\[(?i:your|seu) (?i:name|nome)\]"
    r"|<(?i:insert|inserir|insira|preencher|preencha|your|seu|sua|todo|placeholder)\b[^>]{0,60}>"
    r"|\b(?:TODO|FIXME):"
    r"|(?<!\w)XXX+(?!\w)"
    rf"|{_BLANK.pattern}"
    r"|(?i:\blorem ipsum dolor sit amet\b)"
)
_DOUBTFUL = re.compile(
    r"\{\d{1,2}\}|(?<![\w%])%[sd](?!\w)"
    r"|\((?:TODO|FIXME|TBD|XXX|PENDENTE)(?::[^)\n]{0,100})?\)"
    rf"|\[(?i:{_LATER})(?!\w)[^\]\n]{{0,100}}\]"
    r"|(?<=[^\s.!?:;] )"  # else it is a heading
    r"\[(?!(?:[IVXLCDM]{1,9}|INST|MASK|VERITAS|SOPHIA|DIK[EĒÊ])\])[A-ZÀ-Ý]{4}[A-ZÀ-Ý_ ]{0,40}\]"
    r"|(?<!\w)<(?!(?:sic|img|input|link|meta|wbr|bos|eos|pad|unk|think)>)[A-Za-zÀ-ÿ]{3}[\w -]{0,40}>"
    r"|(?<=\s)\?{3,}(?=,?\s[a-zà-ÿ])"
    r"|(?i:\blorem ipsum\b)|(?<!\w)(?:YOUR|REPLACE|INSERT|CHANGE)_[A-Z_]{2,40}(?!\w)"
)
# What each of them begins with: literals alone, which are searched for ten times as fast.
_BEGINNING = re.compile(
    r"\[|\{|<|___|XXX|TODO|FIXME|\?\?\?|%s|%d|%\(|\((?=TODO|FIXME|TBD|XXX|PENDENTE)"
    r"|YOUR_|REPLACE_|INSERT_|CHANGE_|lorem ipsum|Lorem ipsum|Lorem Ipsum|LOREM IPSUM"
)
# Code and formulas; each search ends at the next mark of its kind, so that it takes linear time on any text.
_WRITTEN = re.compile(
    r"```(?:[^`]|`(?!``))*(?:```|\Z)|(?m:^)[ \t]{0,3}~~~(?:[^~]|~(?!~~))*(?:~~~|\Z)"
    r"|``(?:[^`\n]|`(?!`))+``|`[^`\n]+`"
    r"|\b(?:[rR]?[fF]|[fF][rR])(?:\"[^\"\n]*\"|'[^'\n]*')|(?:\"[^\"\n]*\"|'[^'\n]*')\.format\("
    r"|\"%(?:\(\w{1,40}\))?[sdfr]\"|'%(?:\(\w{1,40}\))?[sdfr]'"
    r"|\$\$[^$]+\$\$|\\\((?:[^\\]|\\(?![()]))*\\\)|\\\[(?:[^\\]|\\(?![\[\]]))*\\\]"
    r"|(?<![\w\\$])\$(?=[^\s$])(?=[^$\n]{0,500}[\\^_=])[^$\n]{1,500}(?<=\S)\$(?!\d)"
)
_BEFORE_GROUP = re.compile(r"(?:\\[A-Za-z]{1,30}\*?(?:\[[^\]\n]{0,40}\])?|\\|\^|(?:\b\w|[)}\]'′])_|[^\s{]\})\Z")
_BEFORE_BLOCK = re.compile(r"(?:\)|[=-]>|\b(?:else|try|do|finally))\s?\Z")
_BEFORE_SET = re.compile(
    r"(?:[∈∉∋⊂⊆⊄⊊⊃⊇∪∩∖×≡]\s?|\b[A-Z]\d?\s?(?::=|==?|≔)\s?"
    r"|\b(?:(?:the )?(?:set|singleton)s?|[Oo]s? conjuntos?|(?:member|element|subset|power set)s? of"
    r"|(?:membro|elemento|subconjunto|conjunto das parte)s? d[eo])\s|\}(?:,| e| ou| and| or)\s)\Z"
)
_AFTER_SET = re.compile(r"\s?[∈∉⊂⊆⊄⊊⊃⊇∪∩∖×≠≡]")
_SET = re.compile(r"\{[^{}\n]{1,80}\}")
_LIST = re.compile(r"\{[\w .-]{1,40}(?:,[\w .-]{1,40}){1,20}\}")
_ELEMENT = re.compile(r"\s{0,9}(?:[A-ZÀ-Ý][\w .-]{0,40}|\w)\s{0,9}")  # a name or a letter, as in {Socrates} or {a}


def placeholder(text: str, *, elements: frozenset[str] = frozenset(), exercise: bool = False) -> str | None:
    """The first surely unfilled placeholder in `text`; None if there is none.

    Args:
        elements: of the sets that other texts of the row define, from `set_elements`; `{Socrates}` is then a set here.
        exercise: blanks are meant.
    """
    return next((p for p, sure in _found(text, elements) if sure and not (exercise and p.startswith("___"))), None)


def doubtful(text: str, *, elements: frozenset[str] = frozenset()) -> str | None:
    """The first piece of `text` that a person should look at: a placeholder, unless it is meant; None if there is none.

    Blanks are among them, for those that are not meant were refused by `placeholder`.
    """
    return next((piece for piece, sure in _found(text, elements) if not sure or piece.startswith("___")), None)


def has_blank(text: str) -> bool:
    """Whether `text` has a blank, `___`, as the prompts of exercises do."""
    return bool(_BLANK.search(text))


def _found(text: str, elements: frozenset[str]) -> Iterator[tuple[str, bool]]:
    """(piece, whether it is surely unfilled) of what looks like a placeholder; the sure forms come first."""
    if not any(True for pattern in (_PLACEHOLDER, _DOUBTFUL) for _ in _matches(pattern, text)):
        return
    elements |= set_elements(text)
    prose = _WRITTEN.sub(lambda m: "\0" * len(m.group()), text)
    for pattern in (_PLACEHOLDER, _DOUBTFUL):
        for match in _matches(pattern, prose):
            if not _means_something(prose, match, elements):
                yield match.group(), pattern is _PLACEHOLDER and not _may_be_meant(prose, match)


def _matches(pattern: re.Pattern[str], text: str) -> Iterator[re.Match[str]]:
    """What `pattern.finditer` finds."""
    end = 0
    for beginning in _BEGINNING.finditer(text):
        if beginning.start() >= end and (match := pattern.match(text, beginning.start())):
            end = match.end()
            yield match


def set_elements(text: str) -> frozenset[str]:
    """The elements of the sets that `text` defines: of `A = {Socrates, Plato}`, or the list alone, both names."""
    found: set[str] = set()
    for match in _SET.finditer(text) if "{" in text else ():
        if _LIST.fullmatch(match.group()) or _is_set(text, match.start(), match.end()):
            found |= {part.strip() for part in match.group()[1:-1].split(",")}
    return frozenset(found)


def _means_something(text: str, match: re.Match[str], elements: frozenset[str]) -> bool:
    """Whether a match is part of a formula, a set, an element of markup, a Roman numeral, or a line across the page."""
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
    if found.startswith("<"):
        end = f"</{found[1:]}"
        return text.find(end, match.end(), match.end() + 2000) >= 0  # a tag with its end
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
    r"|paradiso|purgat[óo]rio|paraíso|olimp[íi]adas?|olympiad|olympics)\s)\Z|\b[IVXLC]{1,7}(?:,| e| and|-|–)\s?\Z"
)
_MORE_NUMERALS = re.compile(
    r"(?:,| e| and|-|–)\s?[IVXLC]{1,7}\b|,\s?\d|\s(?i:olimp[íi]ada|olympiad|congresso|congress|encontro|simpósio)\b"
)


def _is_numeral(before: str, after: str) -> bool:
    """Whether XXX is the number thirty: of a chapter, a psalm, or beside another Roman numeral."""
    return bool(_NUMBERED.search(before) or _MORE_NUMERALS.match(after))


_SIGNS = re.compile(  # words of a text that is about forms, software, notation
    r"(?i:\b(?:forms?|formulários?|carta-modelo|templates?|placeholders?|marcador de posição|tags?|tokens?|teclas?"
    r"|keyboard|bot(?:ão|ões)|buttons?|menus?|código-fonte|source code|python|javascript|html|css|sql|jinja|latex|anki"
    r"|regex|morfemas?|morphemes?|fonemas?|phonemes?|chaves|colchetes|braces|brackets|designers?|tipografia|typography)\b)"
)
_QUANTIFIERS = re.compile(r"\b(?:ALGU(?:M|MA|NS|MAS)|NENHUM|NENHUMA|QUALQUER|CADA|SOME|EVERY|NONE)\b")
_ALL = re.compile(r"[*_\s]{0,4}(?i:todo|toda|todos|todas|tudo|cada|qualquer)\b")
_LETTERS = re.compile(
    r"(?i:\b(?:beijos?|bjs|kiss(?:es)?|love|abraços?|filmes?|films?|movies?|classificação|rat(?:ed|ing))\b)"
)
_KEY = re.compile(r"\[[A-Z][a-z]+\]|\{\w\}")


def _may_be_meant(text: str, match: re.Match[str]) -> bool:
    """Whether an unfilled form may be what the text is about; it is then for a person to look at."""
    found = match.group()
    before = text[max(0, match.start() - 60) : match.start()].rpartition("\n")[2]
    after = text[match.end() : match.end() + 60].partition("\n")[0]
    about = [_SIGNS]
    if "TODO" in found:
        about.append(_QUANTIFIERS)
    if found.startswith("XXX"):
        about.append(_LETTERS)
    return bool(
        any(words.search(side) for words in about for side in (before, after))
        or (found == "TODO:" and _ALL.match(after))
        or _KEY.fullmatch(found)
    )
