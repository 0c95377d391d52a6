"""The comments of the two settings files, in the language of the project that gets them.

They are keys of the catalogue: `docs/make_messages.py` gathers them from the files that come with Noesis. Only the text
behind `# ` is replaced; values, columns, and the line that editors read stay.
"""

from __future__ import annotations

import re

from noesis.core.i18n import translated

COMMENT = re.compile(r"(?m)(?:^|(?<= ))# (?!yaml-language-server:)(.+)$")


def comments(text: str) -> list[str]:
    """The texts of the comments of a settings file, in order."""
    return COMMENT.findall(text)


def commented(text: str, language: str) -> str:
    """`text` of a settings file with its comments in `language` (ISO 639-1); English where there is no catalogue."""
    return COMMENT.sub(lambda found: f"# {translated(found[1], language)}", text)
