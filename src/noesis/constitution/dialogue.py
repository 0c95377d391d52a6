"""How a conversation with the model opens, and the analysis block that serving hides."""

from __future__ import annotations

from typing import Any

from noesis.constitution.document import Constitution
from noesis.core.messages import Message

ANALYSIS_OPEN = "[ANÁLISE INTERNA]"
ANALYSIS_CLOSE = "[FIM DA ANÁLISE]"


def opening_messages(constitution: Constitution, record: dict[str, Any]) -> list[Message]:
    """System prompt in the record's language, earlier turns if any, and the user's prompt."""
    language = record.get("language", "pt")
    system = constitution.system_prompt.en if language == "en" else constitution.system_prompt.pt
    return [
        {"role": "system", "content": system},
        *record.get("turns", []),
        {"role": "user", "content": record["prompt"]},
    ]


def hide_analysis(text: str) -> str:
    """An answer without its analysis block, as served."""
    if ANALYSIS_OPEN in text:
        before, _, after = text.partition(ANALYSIS_OPEN)
        _, closed, answer = after.partition(ANALYSIS_CLOSE)
        return (before + answer).strip() if closed else before.strip()
    return text
