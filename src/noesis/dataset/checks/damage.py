"""Finds text that some program read in the wrong encoding: "coraÃ§Ã£o", "itâ€™s", or U+FFFD where a letter was."""

from __future__ import annotations

import re

# UTF-8 read as Windows-1252. A capital Ã before a quotation mark ("AMANHÃ”") is Portuguese, so only signs count there;
# and so is one that ends a quotation in capitals («AMANHû), or is all of it («Â»).
_DAMAGE = re.compile(r"Ã[\u00a1-\u00ba\u00bc-\u00bf]|(?<![«A-ZÀ-Þ])[ÃÂ]»|â€|Â[º°ª«¿¡]|ï¿½|\ufffd")


def damage(text: str) -> str | None:
    """A piece of `text` that lost or changed its letters; None if there is none."""
    if not any(sign in text for sign in ("Ã", "â€", "Â", "ï¿", "\ufffd")):
        return None  # ten times as fast as the search
    match = _DAMAGE.search(text)
    return text[max(0, match.start() - 10) : match.end() + 10] if match else None
