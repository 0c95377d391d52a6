"""The only place where a conversation is rendered to text and tokens, always by the model's own chat template.

The trained part is everything after the generation prompt, up to and including the token that ends the assistant's
turn: exactly what the model has to produce when it is served. It is found by comparing two renderings (with and without
the answer) and by probing the template, never by a model's name. It therefore works for templates that have no place
for a system prompt (Gemma 2), move it (Mistral), trim the answer (Llama 3.1) or add text after the end of the turn
(ChatML). A row that can't be masked safely is refused by name.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, Protocol

from noesis.core.console import command
from noesis.core.errors import ModelError, TrainingError
from noesis.core.i18n import _
from noesis.core.messages import Message
from noesis.core.text import any_of, break_control_tokens
from noesis.llm.token_rows import IGNORED, TokenRow

PROBE = "noesis-probe-7c41"  # a text that no template contains


class Tokenizer(Protocol):
    """The part of `ChatTokenizer` that rendering needs."""

    bos_token_id: int | None
    control_ids: frozenset[int]

    def __hash__(self) -> int: ...

    def apply_chat_template(
        self, conversation: list[Message], *, tokenize: bool, add_generation_prompt: bool
    ) -> Any: ...

    def __call__(self, text: str, *, add_special_tokens: bool) -> Any: ...

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]: ...

    def decode(self, ids: list[int]) -> str: ...


def render(tokenizer: Tokenizer, messages: list[Message], *, add_generation_prompt: bool) -> str:
    """The conversation as the text that the model reads; with special tokens, so tokenise without adding any.

    Where the template has no place for a system prompt, the first user message begins with it.
    """
    if messages[0]["role"] == "system" and not takes_system(tokenizer):
        messages = fold_system(messages)
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt))


def break_controls(tokenizer: Tokenizer, messages: list[Message]) -> list[Message]:
    """The messages with a space inside each of the model's control tokens: no text of theirs begins or ends a turn."""
    special = _control_tokens(tokenizer, breakable=True)
    return [message | {"content": break_control_tokens(message["content"], special)} for message in messages]


@lru_cache(maxsize=8)
def _control_tokens(tokenizer: Tokenizer, *, breakable: bool = False) -> re.Pattern[str]:
    """Matches what becomes a control token of this model anywhere in a text."""
    return any_of(tokenizer.convert_ids_to_tokens(sorted(tokenizer.control_ids)), breakable=breakable)


@lru_cache(maxsize=8)
def takes_system(tokenizer: Tokenizer) -> bool:
    """Whether the template has a place for a system prompt: it neither refuses one nor drops it."""
    probe = [{"role": "system", "content": PROBE}, {"role": "user", "content": "a"}]
    try:
        return PROBE in tokenizer.apply_chat_template(probe, tokenize=False, add_generation_prompt=True)
    except ModelError:
        return False


def fold_system(messages: list[Message]) -> list[Message]:
    """`[system, user, …]` → `[user, …]`: system prompt, blank line, user's text, as Gemma 3's own template does."""
    system, user, *later = messages
    return [{"role": "user", "content": f"{system['content']}\n\n{user['content']}"}, *later]


def encode(tokenizer: Tokenizer, messages: list[Message], answer: str, *, name: str) -> TokenRow:
    """Render `messages` and `answer`; labels begin after the generation prompt and include the end of turn.

    A row without an end-of-turn token is returned as it is; `refusal_reason` says what is wrong with it.

    Args:
        name: the row's id, for errors.

    Raises:
        TrainingError: the template refuses the conversation or rewrites it, or its text contains one of the model's
            control tokens.
    """
    for role, text in [*((m["role"], m["content"]) for m in messages), ("answer", answer)]:
        if forged := _control_tokens(tokenizer).search(text):
            raise TrainingError(
                _(
                    "row {name}: the {role} text holds {group!r}, a control token of this model: "
                    "remove it or write it differently",
                    name=name,
                    role=role,
                    group=forged.group(),
                )
            )
    if not answer.strip():
        raise TrainingError(
            _("row {name} has no trained token: its answer is empty; write one, or take the example out", name=name)
        )
    try:
        prompt, rest = _prompt_and_rest(tokenizer, messages, answer)
    except ModelError as error:
        raise TrainingError(
            _("row {name}: {error}; correct the row's turns, or choose another model", name=name, error=error)
        ) from None
    if rest is None:
        raise TrainingError(
            _(
                "row {name}: this model's chat template renders the prompt differently once an answer follows; "
                "it can't be masked safely",
                name=name,
            )
        )
    start = _ids(tokenizer, prompt)
    if start[:2] == [tokenizer.bos_token_id] * 2:
        token = tokenizer.convert_ids_to_tokens(start[:1])[0]
        raise TrainingError(
            _(
                "row {name}: this model's chat template begins with two {token} tokens: fix the template",
                name=name,
                token=token,
            )
        )
    head = _head(tokenizer, tuple(m["role"] for m in messages))
    if rest and not (rest.startswith(head) and rest[len(head) :].lstrip().startswith(answer.strip())):
        raise TrainingError(
            _(
                "row {name}: this model's chat template changes the text of the answer, "
                "so what would be trained on is not what was written",
                name=name,
            )
        )
    ids = _join(tokenizer, prompt, start, rest, name)
    # The turn ends with the first control token after the answer; what a template writes after it is not trained on.
    framing = len(_control_tokens(tokenizer).findall(head))
    controls = [i for i in range(len(start), len(ids)) if ids[i] in tokenizer.control_ids]
    if len(controls) > framing:
        ids = ids[: controls[framing] + 1]
    return TokenRow(ids, [IGNORED] * len(start) + ids[len(start) :])


def end_of_turn(tokenizer: Tokenizer, *, name: str = "(any)") -> int:
    """The id of the token that ends an assistant's turn in this model's template.

    Args:
        name: a row's id, for errors: what is wrong with a template is wrong with every row.

    Raises:
        TrainingError: the template ends a turn with ordinary text, so a trained model would never stop, or it leaves
            answers out.
    """
    probe = [{"role": "user", "content": "a"}]
    row = encode(tokenizer, probe, "b", name=name)
    if not row.trained:
        raise TrainingError(
            _(
                "row {name} has no trained token: this model's chat template leaves out the answers; "
                "use the template of an instruct model",
                name=name,
            )
        )
    if row.input_ids[-1] not in tokenizer.control_ids:
        raise TrainingError(
            _(
                "row {name}: this model's chat template puts no end-of-turn token after an answer, "
                "so there is none to train and the model would never stop; use the template of an instruct model",
                name=name,
            )
        )
    return row.input_ids[-1]


def refusal_reason(row: TokenRow, *, stop: int, max_length: int) -> str | None:
    """Why training would refuse `row`, and what to do about it; None if it may be trained on.

    Args:
        stop: the id of the end-of-turn token, from `end_of_turn`.
        max_length: tokens.
    """
    if not row.trained:
        return _(
            "has no trained token: the model's chat template leaves nothing of its answer; "
            "use the template of an instruct model"
        )
    if row.labels[-1] != stop:
        return _(
            "its end-of-turn token is not trained, so the model would never stop; look at it with  {command}",
            command=command("data", "inspect"),
        )
    if len(row.input_ids) > max_length:
        return _(
            "has {input_ids} tokens, more than max_length {max_length} in training_config.yaml: "
            "raise it or shorten the example; answers are never cut",
            input_ids=len(row.input_ids),
            max_length=max_length,
        )
    return None


def _prompt_and_rest(tokenizer: Tokenizer, messages: list[Message], answer: str) -> tuple[str, str | None]:
    """The text that the model continues, and the text that it should write; None where the template does not append."""
    reply = {"role": "assistant", "content": answer}
    prompt = render(tokenizer, messages, add_generation_prompt=True)
    whole = render(tokenizer, [*messages, reply], add_generation_prompt=False)
    if whole.startswith(prompt):
        return prompt, whole[len(prompt) :]
    # Mistral puts the system prompt into the last user message, and drops it when an answer follows. The answer's own
    # rendering does not depend on it: it is taken from the conversation without a system prompt.
    bare = messages[messages[0]["role"] == "system" :]
    before = render(tokenizer, bare, add_generation_prompt=True)
    after = render(tokenizer, [*bare, reply], add_generation_prompt=False)
    return prompt, after[len(before) :] if after.startswith(before) else None


@lru_cache(maxsize=64)
def _head(tokenizer: Tokenizer, roles: tuple[str, ...]) -> str:
    """What the template writes between the generation prompt and an answer, such as an empty block of thoughts."""
    _, rest = _prompt_and_rest(tokenizer, [{"role": role, "content": "a"} for role in roles], PROBE)
    head, found, _ = (rest or "").partition(PROBE)
    return head if found else ""


def _join(tokenizer: Tokenizer, prompt: str, start: list[int], rest: str, name: str) -> list[int]:
    """Tokens of the whole conversation; they begin with `start`, the prompt's tokens, which a served model gets."""
    whole = _ids(tokenizer, prompt + rest)
    if whole[: len(start)] == start:
        return whole
    # One token would span the border, such as one of two newlines: the parts are tokenised separately.
    apart = [*start, *_ids(tokenizer, rest)]
    if tokenizer.decode(apart) != tokenizer.decode(whole):
        raise TrainingError(
            _(
                "row {name}: the prompt's last and the answer's first characters make one token of this model; "
                "begin the answer differently",
                name=name,
            )
        )
    return apart


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
