"""The only place where a conversation is rendered to text and tokens.

Always by the model's own chat template. What is trained on is the last answer, its end-of-turn token included, and nothing else;
that is found by comparing two renderings (with and without the answer), so that it holds for any template that appends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from noesis.constitution.document import Constitution
from noesis.errors import TrainingError

ANALYSIS_OPEN = "[ANÁLISE INTERNA]"
ANALYSIS_CLOSE = "[FIM DA ANÁLISE]"
IGNORED = -100  # label of a token that carries no loss (torch.nn.CrossEntropyLoss)

Message = dict[str, str]


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that rendering needs."""

    eos_token_id: int | None

    def apply_chat_template(self, conversation: list[Message], *, tokenize: bool, add_generation_prompt: bool) -> Any: ...

    def __call__(self, text: str, *, add_special_tokens: bool) -> Any: ...

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]: ...


@dataclass(frozen=True)
class Encoded:
    """One training row.

    input_ids: (length,) token ids of the whole conversation
    labels: (length,) the same ids where the token is trained on, -100 elsewhere
    """

    input_ids: list[int]
    labels: list[int]

    @property
    def trained(self) -> int:
        """How many tokens carry loss."""
        return sum(label != IGNORED for label in self.labels)


def opening(constitution: Constitution, record: dict[str, Any]) -> list[Message]:
    """System prompt in the record's language, earlier turns if any, and the user's prompt."""
    language = record.get("language", "pt")
    system = constitution.system_prompt.en if language == "en" else constitution.system_prompt.pt
    return [{"role": "system", "content": system}, *record.get("turns", []), {"role": "user", "content": record["prompt"]}]


def answer_text(record: dict[str, Any], *, include_critique: bool) -> str:
    """What the model is trained to say: the revised answer, with the critique as an analysis block before it if asked."""
    if not include_critique:
        return str(record["response_revised"])
    return f"{ANALYSIS_OPEN}\n{record['critique']}\n{ANALYSIS_CLOSE}\n\n{record['response_revised']}"


def encode(tokenizer: Tokenizer, messages: list[Message], answer: str, *, name: str) -> Encoded:
    """Render `messages` and `answer` and mark the answer's tokens, its end-of-turn token included.

    Args:
        name: the row's id, for errors.

    Raises:
        TrainingError: the template does not append, or the answer would not end its turn.
    """
    prompt = render(tokenizer, messages, add_generation_prompt=True)
    whole = render(tokenizer, [*messages, {"role": "assistant", "content": answer}], add_generation_prompt=False)
    if not whole.startswith(prompt):
        raise TrainingError(f"row {name}: this model's chat template renders the prompt otherwise once an answer follows; it can't be masked safely")
    start = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    rest = tokenizer(whole[len(prompt) :].rstrip("\n"), add_special_tokens=False)["input_ids"]
    if not rest:
        raise TrainingError(f"row {name}: the answer renders to no token")
    return Encoded([*start, *rest], [IGNORED] * len(start) + rest)


def render(tokenizer: Tokenizer, messages: list[Message], *, add_generation_prompt: bool) -> str:
    """The conversation as the text that the model reads; special tokens are in it, so tokenise without adding any."""
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt))


def end_of_turn(tokenizer: Tokenizer) -> int:
    """The id of the token that ends an assistant's turn in this model's template.

    Raises:
        TrainingError: the template ends a turn with ordinary text, so a trained model would never stop.
    """
    row = encode(tokenizer, [{"role": "user", "content": "a"}], "b", name="(probe)")
    last = row.input_ids[-1]
    if last in tokenizer("b", add_special_tokens=False)["input_ids"]:
        raise TrainingError("this model's chat template puts no end-of-turn token after an answer: a model trained on it would never stop")
    return last


def hide_analysis(text: str) -> str:
    """An answer without its analysis block, as served."""
    if ANALYSIS_OPEN in text:
        before, _, after = text.partition(ANALYSIS_OPEN)
        _, closed, answer = after.partition(ANALYSIS_CLOSE)
        return (before + answer).strip() if closed else before.strip()
    return text
