"""A Markdown page as the parts that a translation keeps: headings, commands, names in code, figures, links."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from urllib.parse import unquote

from markdown_it import MarkdownIt
from markdown_it.token import Token

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
    """The sections of a page, in order; what stands before the first heading belongs to none and is not allowed."""
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
