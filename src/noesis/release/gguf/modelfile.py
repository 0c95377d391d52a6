"""Ollama's Modelfile for a GGUF. It always has a TEMPLATE: Ollama would guess one, or fall back to a bare prompt.

The template is derived from what the model's own chat template makes of marked messages, so it works for any family.
https://github.com/ollama/ollama/blob/main/docs/modelfile.mdx and parser/parser.go: what stands in quotes is taken as it
is, without escapes, but characters that Go does not call printable are dropped.
"""

from __future__ import annotations

import unicodedata
from typing import Any

from noesis.core.errors import ModelError
from noesis.core.i18n import _
from noesis.core.messages import Message
from noesis.core.text import common_prefix
from noesis.llm.chat_template import render
from noesis.release.gguf.vocabulary import adds_bos

SYSTEM, USER, ASSISTANT, NEXT = (f"\ue000{word}\ue000" for word in ("SYSTEM", "USER", "ASSISTANT", "NEXT"))


def modelfile(file: str, tokenizer: Any, *, system: str, context: int, licence: str = "") -> str:
    """The Modelfile's text.

    Args:
        file: name of the GGUF in the same folder.
        tokenizer: the model's own.
        system: the constitution's system prompt.
        context: tokens.

    Raises:
        ModelError: as `go_template`, or Ollama would drop a part of the template.
    """
    template, stops = go_template(tokenizer), stop_tokens(tokenizer)
    if any(_dropped(c) for text in (template, *stops) for c in text):
        raise ModelError(
            _("the model's chat template has characters that Ollama drops: no Ollama template is equivalent")
        )
    spaced = "".join(" " if _dropped(c) and unicodedata.category(c) == "Zs" else c for c in system)
    lines = [
        f"FROM ./{file}",
        f"TEMPLATE {_quoted(template)}",
        f"SYSTEM {_quoted(spaced)}",
        f"PARAMETER num_ctx {context}",
    ]
    lines += [f'PARAMETER stop "{token}"' for token in stops]
    if licence:
        lines.append(f"LICENSE {_quoted(licence)}")
    return "\n".join(lines) + "\n"


def go_template(tokenizer: Any) -> str:
    """The chat template in Ollama's language (Go templates), for one turn; Ollama joins the turns.

    Raises:
        ModelError: the model's template moves or drops a message, so no such template is equivalent.
    """
    question: Message = {"role": "user", "content": USER}
    answer: Message = {"role": "assistant", "content": ASSISTANT}
    system: Message = {"role": "system", "content": SYSTEM}
    follow_up: Message = {"role": "user", "content": NEXT}
    opening, between, generation = _split_at_marks(tokenizer, [system, question], (SYSTEM, USER))
    # Between an answer and the next question stand the end of the answer's turn, which is there even when nothing
    # follows, and the start of the question's.
    followed = _split_at_marks(tokenizer, [question, answer, follow_up], (USER, ASSISTANT, NEXT))[2]
    last = _split_at_marks(tokenizer, [question, answer], (USER, ASSISTANT), generation=False)[2]
    after = followed[: common_prefix(followed, last)]
    user = followed.removeprefix(after)
    if adds_bos(tokenizer):
        opening = opening.removeprefix(tokenizer.special["bos_token"])  # Ollama adds it by itself
    if user and between.endswith(user):
        head = f"{{{{ if .System }}}}{opening}{{{{ .System }}}}{between.removesuffix(user)}{{{{ end }}}}{user}"
    else:  # the system prompt is part of the first question
        head = f"{{{{ if .System }}}}{opening}{{{{ .System }}}}{between}{{{{ else }}}}{user}{{{{ end }}}}"
    return f"{head}{{{{ .Prompt }}}}{generation}{{{{ .Response }}}}{after}"


def stop_tokens(tokenizer: Any) -> list[str]:
    """The tokens that end an answer: the end of a turn as the template writes it, and the model's EOS."""
    pieces = _split_at_marks(
        tokenizer,
        [{"role": "user", "content": USER}, {"role": "assistant", "content": ASSISTANT}],
        (USER, ASSISTANT),
        generation=False,
    )
    ids = tokenizer(pieces[2], add_special_tokens=False)["input_ids"]
    turn = next((i for i in ids if i in tokenizer.control_ids), None)
    found = [tokenizer.decode([turn])] if turn is not None else []
    eos = tokenizer.special.get("eos_token")
    return list(dict.fromkeys([*found, *([eos] if eos else [])]))


def _split_at_marks(
    tokenizer: Any, messages: list[Message], marks: tuple[str, ...], *, generation: bool = True
) -> list[str]:
    """The rendered conversation, split at the marks: one piece more than marks."""
    rest, pieces = render(tokenizer, messages, add_generation_prompt=generation), []
    for mark in marks:
        before, found, rest = rest.partition(mark)
        if not found:
            raise ModelError(_("the model's chat template moves or drops a message: no Ollama template is equivalent"))
        pieces.append(before)
    return [*pieces, rest]


def _quoted(text: str) -> str:
    """In three quotes, as Ollama reads text of several lines."""
    return '"""' + text.replace('"""', "'''") + '"""'


def _dropped(c: str) -> bool:
    """Whether Ollama's parser drops a character: what Go's strconv.IsPrint refuses, but line breaks and tabs."""
    return c not in " \n\r\t" and unicodedata.category(c)[0] not in "LMNPS"
