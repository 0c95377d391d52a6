"""Every reason that a record can hold is told again whole, alone and joined with others, its numbers once."""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from string import Formatter
from typing import Any

import noesis
from helpers.command import speaking
from noesis.core.i18n import Message, _, in_english, joined, retold

SRC = Path(noesis.__file__).parent
NUMERIC = re.compile(r".*[,dfgeE%]")  # format specifications
INTERVALS = {"d", "share", "margin", "loss"}
REASONS = {"why", "out", "said", "reason", "inexact", "drop", "mean", "note_on", "on", "among", "into", "compare"}
DIRECTLY = {"{name}: missing", "{name}: changed", "{name} request"}  # looked up by their key, and never stored


@cache
def templates() -> list[str]:
    """What `N_` is called with anywhere, help of several lines aside."""
    calls = (node for file in SRC.rglob("*.py") for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    found = {
        call.args[0].value
        for call in calls
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "N_"
        if isinstance(call.args[0], ast.Constant) and isinstance(call.args[0].value, str)
    }
    return sorted(text for text in found if "\n" not in text and ":%" not in text)  # dates stay as they were written


def fields(template: str) -> Iterator[tuple[str, str, str]]:
    """Name, format and conversion of each."""
    for _text, name, specification, conversion in Formatter().parse(template):
        if name is not None:
            yield name, specification or "", conversion or ""


def interval(draw: random.Random) -> str:
    mean, low, high = draw.uniform(-1, 1), draw.uniform(-1, 0), draw.uniform(0, 1)
    return Message(f"{mean:.4f} [{low:.4f}, {high:.4f}]".replace(".", ","), f"{mean:.4f} [{low:.4f}, {high:.4f}]")


def filling(template: str, draw: random.Random) -> dict[str, Any]:
    """Values for the fields as the rules give them: numbers, names, intervals, and other reasons."""
    plain = [text for text in templates() if " " in text and not re.search(r"[;:,] |\{", text)]
    values: dict[str, Any] = {}
    for name, specification, conversion in fields(template):
        if conversion:
            values[name] = "gelu_new"
        elif NUMERIC.fullmatch(specification):
            values[name] = draw.choice([2, 11, 4087] if "," in specification else [0.05, 0.125, 2, 0.7])
        elif name in INTERVALS:
            values[name] = interval(draw)
        elif name in REASONS:
            values[name] = _(draw.choice(plain))
        else:
            values[name] = draw.choice(["epoch_0", "Dikē", 11])
    return values


def said(template: str, draw: random.Random) -> str:
    return _(template, **filling(template, draw))


def wrongly_told(reasons: Iterable[str]) -> list[tuple[str, str]]:
    return [(retold(in_english(reason)), reason) for reason in reasons if retold(in_english(reason)) != reason]


def test_each_is_told_as_if_it_had_been_said():
    draw = random.Random(20)
    with speaking("pt"):
        assert len(templates()) > 200
        assert wrongly_told(said(template, draw) for template in templates() if template not in DIRECTLY) == []


def test_several_are_told_each_for_itself():
    draw, some = random.Random(7), [text for text in templates() if text[0] != ";" and text not in DIRECTLY]
    with speaking("pt"):
        assert (
            wrongly_told(
                joined("; ", [said(template, draw) for template in draw.choices(some, k=draw.randint(2, 4))])
                for _case in range(60)
            )
            == []
        )
