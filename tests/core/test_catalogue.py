"""The catalogue is complete and fits the code, and no message goes past it."""

from __future__ import annotations

import ast
import re
import runpy
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from string import Formatter

import pytest
from babel.messages.catalog import Catalog
from babel.messages.pofile import read_po

import noesis
from helpers.project import ROOT
from noesis.core.i18n.catalogue import FOLDER
from noesis.core.i18n.speech import LOCALES

SRC = Path(noesis.__file__).parent
MARKS = {"_", "N_", "ngettext"}


@pytest.fixture(scope="module")
def catalogue() -> Catalog:
    with (FOLDER / LOCALES["pt"] / "LC_MESSAGES" / "noesis.po").open("rb") as file:
        return read_po(file)


def pairs(catalogue: Catalog) -> Iterator[tuple[str, str]]:
    for message in catalogue:
        if message.id:
            ids, texts = (x if isinstance(x, tuple) else (x,) for x in (message.id, message.string))
            yield from zip(ids, texts, strict=True)


def fields(text: str) -> list[tuple[str, str, str]]:
    """Name, conversion and format of each field; how a date is written is the language's choice."""
    found = [part for part in Formatter().parse(text) if part[1] is not None]
    if not all(re.fullmatch(r"[\w.]+", str(name)) and " " not in str(spec) for _text, name, spec, _conversion in found):
        return []  # braces that stand for themselves
    return sorted(
        (str(name), conversion or "", "date" if (spec or "").startswith("%") else spec or "")
        for _text, name, spec, conversion in found
    )


def test_every_message_is_translated_with_its_fields_and_its_indent(catalogue: Catalog):
    wrong = [
        english
        for english, text in pairs(catalogue)
        if not text
        or fields(english) != fields(text)
        or len(english) - len(english.lstrip()) != len(text) - len(text.lstrip())
        or english[-1:].isspace() != text[-1:].isspace()
        or english.count("\n\n") != text.count("\n\n")
    ]
    assert wrong == []
    assert not catalogue.obsolete
    assert [message.id for message in catalogue if message.fuzzy and message.id] == []


def test_the_catalogue_is_that_of_the_code_and_compiled(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["make_messages.py", "--check"])
    main = runpy.run_path(str(ROOT / "docs" / "make_messages.py"))["main"]
    assert main() == 0, capsys.readouterr().err


# --- nothing goes past it -----------------------------------------------------------------------------------------

SPEAKING = {"say", "complain", "heading", "require_consent", "Check", "Finding", "Progress", "BadParameter", "_line"}
NOT_SPOKEN = {  # bugs, and what programs read: the protocol of the API is English, as OpenAI's is
    "ApiError", "AssertionError", "AttributeError", "KeyError", "OSError", "RuntimeError", "SystemError", "TypeError",
}  # fmt: skip
WORDS = re.compile(r"[A-Za-z]{2,},? (?:· )?[a-zA-Z]{2,}")
COMMAND = re.compile(r"(?:pip install|modal token|python -m|export) ")  # to be typed as it stands


@cache
def modules() -> dict[str, ast.Module]:
    return {file.relative_to(SRC).as_posix(): ast.parse(file.read_text(encoding="utf-8")) for file in SRC.rglob("*.py")}


def name_of(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")


def texts(node: ast.AST) -> Iterator[ast.AST]:
    """The literals and f-strings of an argument that reach the user as they stand."""
    if isinstance(node, ast.Constant | ast.JoinedStr):
        yield node
    if isinstance(node, ast.Call) and name_of(node) in {*MARKS, "retold", "command", "shell_command"}:
        return
    for child in ast.iter_child_nodes(node):
        if not (isinstance(node, ast.JoinedStr) and isinstance(child, ast.Constant)):
            yield from texts(child)


def in_words(node: ast.AST) -> bool:
    if isinstance(node, ast.JoinedStr):
        text = "".join(v.value if isinstance(v, ast.Constant) else "·" for v in node.values)
    else:
        text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
    return bool(WORDS.search(text)) and not COMMAND.match(text)


def unspoken(tree: ast.AST) -> Iterator[ast.AST]:
    """Texts that a call says, or raises, in English only."""
    for call in ast.walk(tree):
        if isinstance(call, ast.Call):
            name = name_of(call)
            raised = name.endswith(("Error", "Extra")) and name[:1].isupper() and name not in NOT_SPOKEN
            if raised or name in SPEAKING:
                for argument in (*call.args, *(keyword.value for keyword in call.keywords)):
                    yield from (text for text in texts(argument) if in_words(text))


def test_unspoken_finds_what_goes_past_the_catalogue():
    code = 'say("two words"); say(_("two words")); say(f"{n} of them"); raise UsageError(f"not {x} here" + _("a b"))'
    assert [ast.unparse(node) for node in unspoken(ast.parse(code))] == [
        "'two words'",
        "f'{n} of them'",
        "f'not {x} here'",
    ]


def test_whatever_is_said_goes_through_the_catalogue():
    found = [
        f"{file}:{node.lineno}: {ast.unparse(node)[:80]}" for file, tree in modules().items() for node in unspoken(tree)
    ]
    assert found == []


def marked(tree: ast.AST) -> Iterator[tuple[ast.Call, bool]]:
    """Calls that look a text up, and whether they are made when the module is imported."""

    def walk(node: ast.AST, inside: bool) -> Iterator[tuple[ast.Call, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Call) and isinstance(child.func, ast.Name) and child.func.id in MARKS:
                yield child, not inside
            yield from walk(child, inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))

    return walk(tree, False)


def test_what_is_looked_up_is_a_text_and_not_before_the_language_is_known():
    wrong = []
    for file, tree in modules().items():
        for call, at_import in marked(tree):
            if any(isinstance(a, ast.JoinedStr) for a in call.args[:1]):
                wrong.append(f"{file}:{call.lineno}: {ast.unparse(call)[:60]}")
            if at_import and ast.unparse(call.func) != "N_":
                wrong.append(f"{file}:{call.lineno}: at import: {ast.unparse(call)[:60]}")
    assert wrong == []


def test_no_marked_text_stands_where_it_is_not_gathered(catalogue: Catalog):
    """Babel sees none inside an f-string, nor inside the arguments of some other calls."""
    known = {text for text, _translation in pairs(catalogue)}
    texts = {
        f"{file}:{call.lineno}": argument.value
        for file, tree in modules().items()
        for call, _at_import in marked(tree)
        for argument in call.args[:1]
        if isinstance(argument, ast.Constant)
    }
    assert {place: text for place, text in texts.items() if text not in known} == {}


SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def own_nodes(scope: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a function, without those of the scopes inside it."""
    for child in ast.iter_child_nodes(scope):
        yield child
        if not isinstance(child, SCOPES):
            yield from own_nodes(child)


def hides_the_lookup(scope: ast.AST) -> bool:
    """Whether a throwaway `_` of the scope takes the place of the function that it calls, or one inside it does."""
    bound = any(
        (isinstance(node, ast.Name) and node.id == "_" and isinstance(node.ctx, ast.Store))
        or (isinstance(node, ast.arg) and node.arg == "_")
        for node in own_nodes(scope)
    )
    return bound and any(isinstance(node, ast.Call) and name_of(node) == "_" for node in ast.walk(scope))


def test_no_throwaway_hides_the_lookup():
    assert hides_the_lookup(ast.parse("def f():\n a, _ = g()\n def h(): return _('x')").body[0])
    found = [
        f"{file}:{scope.lineno}"
        for file, tree in modules().items()
        for scope in ast.walk(tree)
        if isinstance(scope, SCOPES) and hides_the_lookup(scope)
    ]
    assert found == []
