"""How a conversation with the model opens, and the analysis block that serving hides."""

from __future__ import annotations

from collections.abc import Iterable

from noesis.constitution.document import Constitution
from noesis.core.messages import Message

ANALYSIS_OPEN = "[ANÁLISE INTERNA]"
ANALYSIS_CLOSE = "[FIM DA ANÁLISE]"


def opening_messages(
    constitution: Constitution, language: str, prompt: str, earlier: Iterable[Message] = ()
) -> list[Message]:
    """The system prompt in `language`, the earlier messages, and the user's `prompt`."""
    system = constitution.system_prompt.en if language == "en" else constitution.system_prompt.pt
    return [{"role": "system", "content": system}, *earlier, {"role": "user", "content": prompt}]


def with_analysis(critique: str, answer: str) -> str:
    """`answer` after the critique as an analysis block."""
    return f"{ANALYSIS_OPEN}\n{critique}\n{ANALYSIS_CLOSE}\n\n{answer}"


def hide_analysis(text: str) -> str:
    """`text` without its analysis block, as it is served."""
    if ANALYSIS_OPEN in text:
        before, _, after = text.partition(ANALYSIS_OPEN)
        _, closed, answer = after.partition(ANALYSIS_CLOSE)
        return (before + answer).strip() if closed else before.strip()
    return text
