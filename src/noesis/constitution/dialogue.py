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


def with_revision(language: str, prompt: str, critique: str, revised: str) -> str:
    """`prompt` with what an answer to it was criticised for and how it was revised, for the one who knows better.

    In Portuguese, and in English for every other language.
    """
    if language == "pt":
        return (
            f"{prompt}\n\n---\nUma resposta anterior foi criticada:\n{critique}\n\nFoi revisada assim:\n{revised}"
            "\n---\nAgora responda à pergunta acima com suas palavras, no espírito da revisão."
        )
    return (
        f"{prompt}\n\n---\nAn earlier answer was criticised:\n{critique}\n\nThis is how it was revised:\n{revised}"
        "\n---\nNow answer the question above in your own words, in the spirit of the revision."
    )


def with_analysis(critique: str, answer: str) -> str:
    """`answer` after the critique as an analysis block."""
    return f"{ANALYSIS_OPEN}\n{critique}\n{ANALYSIS_CLOSE}\n\n{answer}"
