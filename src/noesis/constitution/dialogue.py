"""How a conversation with the model opens, and an answer with its analysis."""

from __future__ import annotations

from collections.abc import Iterable

from noesis.constitution.analysis_block import ANALYSIS_CLOSE, ANALYSIS_OPEN
from noesis.constitution.document import Constitution
from noesis.core.messages import Message


def opening_messages(
    constitution: Constitution, language: str, prompt: str, earlier: Iterable[Message] = ()
) -> list[Message]:
    """The system prompt in `language`, the earlier messages, and the user's `prompt`."""
    return [
        {"role": "system", "content": constitution.system_prompt[language]},
        *earlier,
        {"role": "user", "content": prompt},
    ]


def with_analysis(critique: str, answer: str) -> str:
    """`answer` after the critique as an analysis block."""
    return f"{ANALYSIS_OPEN}\n{critique}\n{ANALYSIS_CLOSE}\n\n{answer}"
