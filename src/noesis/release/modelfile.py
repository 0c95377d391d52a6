"""Ollama's Modelfile beside a GGUF: always with a TEMPLATE, since Ollama guesses one by likeness otherwise, or falls to a bare prompt.

The template is taken from what the model's own chat template makes of marked messages, so that it holds for any family.
https://github.com/ollama/ollama/blob/main/docs/modelfile.mdx
"""

from __future__ import annotations

from typing import Any

from noesis.constitution.conversation import render
from noesis.errors import ModelError

SYSTEM, USER, ASSISTANT = "\ue000SYSTEM\ue000", "\ue000USER\ue000", "\ue000ASSISTANT\ue000"


def modelfile(file: str, tokenizer: Any, *, system: str, context: int, licence: str = "") -> str:
    """The Modelfile's text.

    Args:
        file: the GGUF's name, in the same folder.
        tokenizer: the model's own.
        system: Noesis's system prompt.
        context: tokens.
    """
    lines = [f"FROM ./{file}", f"TEMPLATE {_quoted(go_template(tokenizer))}", f"SYSTEM {_quoted(system)}", f"PARAMETER num_ctx {context}"]
    lines += [f"PARAMETER stop {_quoted(token, multiline=False)}" for token in stops(tokenizer)]
    if licence:
        lines.append(f"LICENSE {_quoted(licence)}")
    return "\n".join(lines) + "\n"


def go_template(tokenizer: Any) -> str:
    """The chat template in Ollama's language, for one turn; Ollama joins the turns.

    Raises:
        ModelError: the model's template moves or drops a message, so that no such template says the same.
    """
    with_system = _cut(tokenizer, [{"role": "system", "content": SYSTEM}, {"role": "user", "content": USER}], (SYSTEM, USER))
    alone = _cut(tokenizer, [{"role": "user", "content": USER}], (USER,))
    turns = _cut(
        tokenizer,
        [{"role": "user", "content": USER}, {"role": "assistant", "content": ASSISTANT}, {"role": "user", "content": "\ue001"}],
        (USER, ASSISTANT, "\ue001"),
    )
    bos = tokenizer.special.get("bos_token") or "\0"
    opening = with_system[0].removeprefix(bos)  # Ollama adds the BOS of itself
    between, first, generation = with_system[1], alone[0].removeprefix(bos), with_system[2]
    # what ends an answer also begins the next question
    user = first if turns[2].endswith(first) and first else ""
    after = turns[2].removesuffix(user)
    if between.endswith(user) and user:
        system_part = f"{opening}{{{{ .System }}}}{between.removesuffix(user)}"
        head = f"{{{{ if .System }}}}{system_part}{{{{ end }}}}{user}"
    else:
        head = f"{{{{ if .System }}}}{opening}{{{{ .System }}}}{between}{{{{ else }}}}{first}{{{{ end }}}}"
    return f"{head}{{{{ .Prompt }}}}{generation}{{{{ .Response }}}}{after}"


def stops(tokenizer: Any) -> list[str]:
    """Each token that ends an answer: the end of a turn as the template writes it, and the model's EOS."""
    pieces = _cut(tokenizer, [{"role": "user", "content": USER}, {"role": "assistant", "content": ASSISTANT}], (USER, ASSISTANT), generation=False)
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
