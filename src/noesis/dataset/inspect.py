"""`noesis data inspect`: what the model reads, token by token, and which tokens it is trained on.

The rows are made by the function that training uses, and a row that training would refuse is shown with the reason. On
a terminal, alternating shades separate the tokens, and trained ones are green and underlined; elsewhere bars stand
between them. `--html` writes one page that needs neither network nor JavaScript and escapes everything that it shows:
examples and vocabularies are hostile text.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from noesis.constitution.document import Constitution, load_constitution
from noesis.core.config import Config
from noesis.core.console import printable, say, say_coloured, say_text
from noesis.core.errors import TrainingError, UsageError
from noesis.core.files import require_output, write_text
from noesis.core.i18n import _, ngettext, number, spoken
from noesis.core.project import Project
from noesis.dataset.checks.validate import validate
from noesis.dataset.encode import prompt_messages, target_text
from noesis.dataset.export import raise_on_errors
from noesis.dataset.schema import Example
from noesis.llm.chat_template import encode, end_of_turn, refusal_reason, takes_system
from noesis.llm.hub import find_model, find_tokenizer
from noesis.llm.token_rows import IGNORED, TokenRow
from noesis.llm.tokenizer import ChatTokenizer, load_tokenizer

TEMPLATE = Path(__file__).with_name("inspect.html")
FIRST = 3  # rows shown where none is named
PART = "░"  # in place of a token that completes no character
NEWLINE = "⏎"
# Foreground and background of the 256 colours, so that dark and light terminals show the same; two shades take turns.
MASKED = ("\x1b[38;5;250;48;5;236m", "\x1b[38;5;250;48;5;239m")
TRAINED = ("\x1b[4;38;5;231;48;5;22m", "\x1b[4;38;5;231;48;5;28m")
CONTROL, PLAIN = "\x1b[1;38;5;221m", "\x1b[0m"  # control: bold yellow over either


@dataclass(frozen=True)
class Token:
    """One token of a row: its place, its id, the text that it adds, and its name in the vocabulary."""

    index: int
    id: int
    text: str
    name: str
    trained: bool
    control: bool

    @property
    def shown(self) -> str:
        """The text with what can't be seen made visible; a newline keeps its effect."""
        return printable(self.text).replace("\t", "⇥\t").replace("\n", f"{NEWLINE}\n") or PART


@dataclass(frozen=True)
class Row:
    """An example as training gets it; `refusal` says why training would not take it."""

    id: str
    language: str
    category: str
    tokens: tuple[Token, ...]
    refusal: str | None

    @property
    def trained(self) -> int:
        return sum(token.trained for token in self.tokens)

    @property
    def share(self) -> float:
        """Trained tokens of all, 0 to 1."""
        return self.trained / max(len(self.tokens), 1)

    @property
    def counts(self) -> str:
        ends = _(", ends with {text!r}", text=self.tokens[-1].text) if self.tokens else ""
        return _(
            "{tokens:,} tokens, {trained:,} trained ({share:.0%}){ends}",
            tokens=len(self.tokens),
            trained=self.trained,
            share=self.share,
            ends=ends,
        )


def show(
    project: Project, config: Config, ids: list[str], *, everything: bool = False, html: Path | None = None
) -> list[Row]:
    """Print the rows of `ids` (default: the first three examples); with `html`, write a page and print the counts.

    Returns:
        the rows shown.

    Raises:
        UsageError: an id that no example has.
    """
    if ids and everything:
        raise UsageError(_("give ids or --all, not both"))
    constitution = load_constitution(project.constitution)
    report = validate(
        project.sources(config.training.data.language),
        constitution,
        config.training.data.categories,
        whole=False,
        keep_examples=True,
    )
    raise_on_errors(report, _("nothing can be shown"))
    examples = report.table.examples
    if missing := [i for i in ids if i not in {e.id for e in examples}]:
        raise UsageError(
            _(
                "no example with the id {missing!r} in {language}; ids look like {id!r}",
                missing=missing[0],
                language=config.training.data.language,
                id=examples[0].id,
            )
        )
    chosen = examples if everything else [e for e in examples if e.id in ids] if ids else examples[:FIRST]
    tokenizer = _tokenizer(config)
    rows = make_rows(chosen, tokenizer, constitution, config)
    if html is not None:
        require_output(html, "--html", inputs=(project.training, project.constitution), starts=b"<!DOCTYPE html>")
    notes = _notes(tokenizer, config)
    for note in notes:
        say(note)
    if html is None:
        say(_legend())
    for row in rows:
        if html is None:
            say()
        say(f"{row.id} · {row.language} · {row.category}: {row.counts}")
        if row.refusal:
            say(_("  REFUSED {refusal}", refusal=row.refusal))
        if html is None:
            say_coloured(painted(row)) if _colour() else say_text(barred(row))
    say()
    say(f"{total(rows, config.training.max_length)}")
    if html is not None:
        write_page(html, rows, notes, config)
        say(f"  → {html}")
    return rows


def make_rows(
    examples: Sequence[Example], tokenizer: ChatTokenizer, constitution: Constitution, config: Config
) -> list[Row]:
    """The rows of `examples`, each with the reason if training would refuse it; one that can't be rendered is empty."""
    broken_template = None
    try:
        stop = end_of_turn(tokenizer, name="(any)")
    except TrainingError as error:  # every row is shown with this reason
        stop, broken_template = -1, str(error)
    rows = []
    for example in examples:
        tokens: tuple[Token, ...] = ()
        try:
            answer = target_text(example, include_critique=config.training.constitutional_ai.include_critique)
            row = encode(tokenizer, prompt_messages(constitution, example), answer, name=example.id)
            tokens = _tokens(tokenizer, row)
            refusal = broken_template or refusal_reason(row, stop=stop, max_length=config.training.max_length)
        except TrainingError as error:
            refusal = str(error)
        rows.append(Row(example.id, example.language, example.category, tokens, refusal))
    return rows


def barred(row: Row) -> str:
    """The row as plain text: `│` before a token, `┃` before a trained one, ⟦ ⟧ around a control token."""
    return "".join(("┃" if t.trained else "│") + (f"⟦{t.shown}⟧" if t.control else t.shown) for t in row.tokens)


def painted(row: Row) -> str:
    """The row in colours; shades alternate, and each colour ends before a newline, else it would fill the line."""
    parts = []
    for token in row.tokens:
        style = (TRAINED if token.trained else MASKED)[token.index % 2] + (CONTROL if token.control else "")
        lines = token.shown.split("\n")
        parts.append("\n".join(f"{style}{line}{PLAIN}" if line else "" for line in lines))
    return "".join(parts)


def total(rows: list[Row], max_length: int) -> str:
    """Sums over rows in one line."""
    tokens, trained = sum(len(r.tokens) for r in rows), sum(r.trained for r in rows)
    refused = sum(r.refusal is not None for r in rows)
    longest = max(len(r.tokens) for r in rows)
    rows_of = ngettext("{count:,} row", "{count:,} rows", len(rows))
    counts = _(
        "{rows}: {tokens:,} tokens, {trained:,} trained ({share:.0%}); "
        "longest {longest:,} of max_length {max_length:,}",
        rows=rows_of,
        tokens=tokens,
        trained=trained,
        share=trained / max(tokens, 1),
        longest=longest,
        max_length=max_length,
    )
    return counts + (
        _("; training would refuse {refused}", refused=refused) if refused else _("; training takes them all")
    )


def write_page(file: Path, rows: list[Row], notes: list[str], config: Config) -> None:
    """Write the rows as one HTML page."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda v: printable(v) if type(v) is str else v,
    )
    environment.globals.update(_=_, lang=spoken())
    environment.filters.update(grouped=lambda count: number(count, ","))
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        rows=rows,
        notes=notes,
        model=config.training.model,
        max_length=config.training.max_length,
        languages=sorted({r.language for r in rows}),
        categories=list(dict.fromkeys(r.category for r in rows)),
        tokens=sum(len(r.tokens) for r in rows),
        trained=sum(r.trained for r in rows),
        longest=max(len(r.tokens) for r in rows),
        refused=[r for r in rows if r.refusal],
        stops=" ".join(sorted({r.tokens[-1].text for r in rows if r.tokens})),
    )
    write_text(file, page)


def _tokens(tokenizer: ChatTokenizer, row: TokenRow) -> tuple[Token, ...]:
    names, pieces = tokenizer.convert_ids_to_tokens(row.input_ids), tokenizer.pieces(row.input_ids)
    return tuple(
        Token(index, i, piece, name, label != IGNORED, i in tokenizer.control_ids)
        for index, (i, piece, name, label) in enumerate(zip(row.input_ids, pieces, names, row.labels, strict=True))
    )


def _tokenizer(config: Config) -> ChatTokenizer:
    """The tokenizer of the configured model; its weights are fetched only where the tokenizer can't be had without."""
    folder = (
        find_tokenizer(config.training.model, config.training.revision)
        or find_model(config.training.model, config.training.revision).path
    )
    return load_tokenizer(folder)


def _notes(tokenizer: ChatTokenizer, config: Config) -> list[str]:
    """Notes that are printed once, before the rows."""
    notes = [
        _(
            "{model}, language {language}, its own chat template",
            model=config.training.model,
            language=config.training.data.language,
        )
    ]
    if not takes_system(tokenizer):
        notes.append(_("this template has no place for a system prompt: it opens the first user message"))
    if config.training.constitutional_ai.include_critique:
        notes.append(_("answers begin with the critique (include_critique: true)"))
    return notes


def _colour() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def _legend() -> str:
    if _colour():
        return _(
            "trained tokens are green and underlined, control tokens bold; shades separate tokens; "
            "{newline} newline, {part} part of a character",
            newline=NEWLINE,
            part=PART,
        )
    legend = _(
        "│ token  ┃ trained token  ⟦control token⟧  {newline} newline  {part} part of a character",
        newline=NEWLINE,
        part=PART,
    )
    return _("{legend} that a later token completes", legend=legend)
