"""Ollama's Modelfile beside a GGUF: always with a TEMPLATE, since Ollama guesses one by likeness otherwise, or falls to a bare prompt.

The template is taken from what the model's own chat template makes of marked messages, so that it holds for any family.
https://github.com/ollama/ollama/blob/main/docs/modelfile.mdx
"""

from __future__ import annotations

from typing import Any

from noesis.core.errors import ModelError
from noesis.core.messages import Message
from noesis.llm.chat_template import render
from noesis.release.gguf.vocabulary import adds_bos

SYSTEM, USER, ASSISTANT, NEXT = (f"\ue000{word}\ue000" for word in ("SYSTEM", "USER", "ASSISTANT", "NEXT"))


def modelfile(file: str, tokenizer: Any, *, system: str, context: int, licence: str = "") -> str:
    """The Modelfile's text.

    Args:
        file: the GGUF's name, in the same folder.
        tokenizer: the model's own.
        system: Noesis's system prompt.
        context: tokens.
    """
    lines = [
        f"FROM ./{file}",
        f"TEMPLATE {_quoted(go_template(tokenizer))}",
        f"SYSTEM {_quoted(system)}",
        f"PARAMETER num_ctx {context}",
    ]
    lines += [f"PARAMETER stop {_quoted(token, multiline=False)}" for token in stop_tokens(tokenizer)]
    if licence:
        lines.append(f"LICENSE {_quoted(licence)}")
    return "\n".join(lines) + "\n"


def go_template(tokenizer: Any) -> str:
    """The chat template in Ollama's language, for one turn; Ollama joins the turns.

    Raises:
        ModelError: the model's template moves or drops a message, so that no such template says the same.
    """
    question: Message = {"role": "user", "content": USER}
    answer: Message = {"role": "assistant", "content": ASSISTANT}
    opening, between, generation = _cut(tokenizer, [{"role": "system", "content": SYSTEM}, question], (SYSTEM, USER))
    onward = _cut(tokenizer, [question, answer, {"role": "user", "content": NEXT}], (USER, ASSISTANT, NEXT))[2]
    # what stands between an answer and the next question: the end of the one, which is there also when nothing follows, and the beginning of the other
    alone = _cut(tokenizer, [question, answer], (USER, ASSISTANT), generation=False)[2]
    shared = next(
        (i for i, (a, b) in enumerate(zip(onward, alone, strict=False)) if a != b), min(len(onward), len(alone))
    )
    after = onward[:shared]
    user = onward[len(after) :]
    if adds_bos(tokenizer):
        opening = opening.removeprefix(tokenizer.special["bos_token"])  # Ollama adds it of itself
    if user and between.endswith(user):
        head = f"{{{{ if .System }}}}{opening}{{{{ .System }}}}{between.removesuffix(user)}{{{{ end }}}}{user}"
    else:  # the system prompt stands in the first question
        head = f"{{{{ if .System }}}}{opening}{{{{ .System }}}}{between}{{{{ else }}}}{user}{{{{ end }}}}"
    return f"{head}{{{{ .Prompt }}}}{generation}{{{{ .Response }}}}{after}"


def stop_tokens(tokenizer: Any) -> list[str]:
    """Each token that ends an answer: the end of a turn as the template writes it, and the model's EOS."""
    pieces = _cut(
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


def _cut(tokenizer: Any, messages: list[Any], marks: tuple[str, ...], *, generation: bool = True) -> list[str]:
    """The rendered conversation, cut at the marks: one piece more than marks."""
    rest, pieces = render(tokenizer, messages, add_generation_prompt=generation), []
    for mark in marks:
        before, found, rest = rest.partition(mark)
        if not found:
            raise ModelError("the model's chat template moves or drops a message: no Ollama template says the same")
        pieces.append(before)
    return [*pieces, rest]


def _quoted(text: str, *, multiline: bool = True) -> str:
    """As Ollama reads it: three quotes around a text, one pair around a word."""
    if multiline:
        return '"""' + text.replace('"""', "'''") + '"""'
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
