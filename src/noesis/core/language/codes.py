"""Which languages there are: ISO 639-1 codes."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

from noesis.core.i18n import _

# ISO 639-1; the order is that of an index in tables, and so only grows at its end
_CODES = """
    pt en es fr it de nl ca gl ro pl cs sk sl hr sr bs bg ru uk be mk sq el tr az hu fi et lv lt sv da no nb nn is ga cy
    gd eu mt lb ar he fa ur ps ku hi bn pa gu mr ne si ta te kn ml or as my km lo th vi id ms tl jv su zh ja ko mn bo ka
    hy kk ky uz tk tg tt ug am ti om so sw rw rn lg ln yo ig ha zu xh st tn ts ss ve nr sn ny mg eo la qu gn ay ht mi sm
    to fj fy
"""
CODES = tuple(_CODES.split())
ALL = "both"  # in training_config.yaml: the examples of every language
NAMES = {"pt": "português", "en": "English", "es": "español"}


def _known(code: str) -> str:
    if code not in CODES:
        raise ValueError(
            _("{code!r} is no language code: give two letters as in ISO 639-1, for example pt, en or es", code=code)
        )
    return code


def _known_or_all(code: str) -> str:
    return code if code == ALL else _known(code)


LanguageCode = Annotated[str, AfterValidator(_known)]
Language = Annotated[str, AfterValidator(_known_or_all)]  # a code, or `both`
