"""Gather the messages of the package and compile their translations: `make messages`; --check only compares.

Messages are what `_`, `ngettext` and `N_` are called with, the comments of the settings files, the help of every
command and option, and the words of typer and pydantic that reach a user. New ones are appended to the `.po` files
without a translation; those that are gone are dropped. Babel does the work:
https://babel.pocoo.org/en/latest/api/messages/index.html
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import typer.main
from babel.messages.catalog import Catalog
from babel.messages.extract import extract_from_dir
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po

from noesis.cli import app
from noesis.core.i18n import speak
from noesis.core.i18n.catalogue import DOMAIN, FOLDER
from noesis.core.i18n.speech import LOCALES
from noesis.core.project import Project
from noesis.workspace.comments import comments

PROJECT = Project(Path(__file__).resolve().parents[1])
SOURCE = PROJECT.root / "src" / "noesis"
KEYWORDS = {"_": None, "N_": None, "ngettext": (1, 2)}
EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
HEADER = """\
# What Noesis says, in Brazilian Portuguese, in the words of docs/glossario.md. `make messages` adds what is new.
msgid ""
msgstr ""
"Language: pt_BR\\n"
"Content-Type: text/plain; charset=utf-8\\n"
"Content-Transfer-Encoding: 8bit\\n"
"Plural-Forms: nplurals=2; plural=(n != 1);\\n"

"""
TEMPLATES = ("stages/page.html", "dataset/inspect.html")
METHODS = [("**.py", "python"), *((f"**/{name}", "jinja2.ext:babel_extract") for name in TEMPLATES)]
NOUN = re.compile(r"counted\('([\w -]+)'\)")  # of templates, which count what they name
FOREIGN = (  # typer's
    "Usage: ",
    "[OPTIONS]",
    "COMMAND [ARGS]...",
    "Options",
    "Arguments",
    "Commands",
    "Show this message and exit.",
    "default: {default}",
    "required",
    "env var: {var}",
    "Try '{command} {option}' for help.",
    "Error: {message}",
    "Missing command.",
    "No such command {name!r}.",
    "No such option: {name}",
    "{message} Did you mean {possibilities}?",
    "{message} (Possible options: {possibilities})",
    "Got unexpected extra argument(s) ({arguments})",
    "Invalid value: {message}",
    "Invalid value for {hint}: {message}",
    "Missing argument {hint}.",
    "Missing argument {hint}. {message}",
    "Missing option {hint}.",
    "Missing option {hint}. {message}",
    "Option {name!r} requires an argument.",
    "Option {name!r} does not take a value.",
    # pydantic's
    "Input should be a valid integer",
    "Input should be a valid integer, unable to parse string as an integer",
    "Input should be a valid number",
    "Input should be a valid number, unable to parse string as a number",
    "Input should be a finite number",
    "Input should be a valid string",
    "Input should be a valid boolean",
    "Input should be a valid boolean, unable to interpret input",
    "Input should be a valid list",
    "Input should be a valid tuple",
    "Input should be a valid array",
    "Input should be a valid dictionary",
    "Input should be an object",
    "Input should be greater than {bound}",
    "Input should be greater than or equal to {bound}",
    "Input should be less than {bound}",
    "Input should be less than or equal to {bound}",
    "Input should be {choices}",
    "Input should be a valid path for file or directory",
    "Input is not a valid path",
    "String should have at least 1 character",
    "String should have at least {least} characters",
    "String should have at most {most} characters",
    "String should match pattern '{pattern}'",
    "List should have at least {least} item after validation, not {found}",
    "List should have at least {least} items after validation, not {found}",
    "List should have at most {most} items after validation, not {found}",
    "Extra inputs are not permitted",
    "Field required",
    "Value error, {message}",
    # what records and settings say
    "done",
    "stale",
    "changed",
    "interrupted",
    "failed",
    "killed",
    "base",
    "tuned",
    "revised",
    "initial",
    "running",
    "all",
    "arithmetic",
    "dates",
    "facts",
    "format",
    "harmless",
    "logic",
    "strings",
    "words",
    "the price list of Modal",
    "the adapter on its base in float32",
    "the merged model in float32",
    "no judge is seated: name one with --judge; the Tribunal needs a language model that was shown to be fit to judge",
    # the operating system's
    "Permission denied",
    "Operation not permitted",
    "Read-only file system",
    "No such file or directory",
    "File exists",
    "Is a directory",
    "Not a directory",
    "Directory not empty",
    "Input/output error",
    "Connection refused",
)


def messages() -> Catalog:
    """Everything that the package says, in the order of its files."""
    found = Catalog()
    for file, _line, text, _comments, context in extract_from_dir(SOURCE, METHODS, keywords=KEYWORDS):
        found.add(text, locations=[(f"noesis/{file}", None)], context=context)
    for noun in sorted(
        {noun for file in SOURCE.rglob("*.html") for noun in NOUN.findall(file.read_text(encoding="utf-8"))}
    ):
        found.add(
            (f"{{count:,}} {noun}", f"{{count:,}} {noun}s"), locations=[("noesis/pipeline/stages/page.html", None)]
        )
    for file in (PROJECT.training_yaml, PROJECT.lora_yaml):
        for text in comments(file.read_text(encoding="utf-8")):
            found.add(text, locations=[(file.name, None)])
    speak("en")
    for text in _help(typer.main.get_command(app)):
        found.add(text, locations=[("noesis --help", None)])
    for text in FOREIGN:
        found.add(text, locations=[("typer, pydantic", None)])
    return found


def _help(command: object) -> Iterator[str]:
    """What the help of a command, of its options, and of the commands below it says."""
    if command.help:
        yield command.help
    yield from (param.help for param in command.params if getattr(param, "help", None))
    for child in getattr(command, "commands", {}).values():
        yield from _help(child)


def updated(file: Path, locale: str, template: Catalog) -> tuple[bytes, bytes]:
    """Today's `.po` file and what it compiles to; without dates, so that equal messages are equal files."""
    with file.open("rb") as f:
        catalogue = read_po(f, locale=locale, domain=DOMAIN)
    catalogue.update(template, no_fuzzy_matching=True)
    catalogue.obsolete.clear()
    catalogue.creation_date = catalogue.revision_date = EPOCH
    source, compiled = io.BytesIO(), io.BytesIO()
    write_po(source, catalogue, width=120, omit_header=True, include_lineno=False, ignore_obsolete=True)
    write_mo(compiled, catalogue)
    return HEADER.encode() + source.getvalue(), compiled.getvalue()


def main() -> int:
    """Write or compare."""
    template = messages()
    for locale in LOCALES.values():
        file = FOLDER / locale / "LC_MESSAGES" / f"{DOMAIN}.po"
        for target, content in zip((file, file.with_suffix(".mo")), updated(file, locale, template), strict=True):
            if "--check" not in sys.argv:
                target.write_bytes(content)
            elif not target.is_file() or target.read_bytes() != content:
                print(f"{target.relative_to(SOURCE)} is stale: run  make messages", file=sys.stderr)
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
