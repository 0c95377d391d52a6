"""Texts in one or more languages, as constitution and rubrics have them: `pt: …`, `en: …` beside other keys.

Which languages there are is the document's choice; a text that lacks one is given in its first.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from noesis.core.language.codes import CODES

T = TypeVar("T")
TEXTS = "texts"


class ByLanguage(BaseModel, Generic[T]):
    """An entry whose keys that are language codes (ISO 639-1) hold its texts; written back the same way."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    texts: dict[str, T] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, raw: Any) -> Any:
        if not isinstance(raw, dict) or TEXTS in raw:
            return raw
        codes = [key for key in raw if key in CODES and key not in cls.model_fields]
        # a list is a tuple to the strict checks that follow: after this the input no longer counts as JSON
        rest = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items() if k not in codes}
        return rest | ({TEXTS: {code: raw[code] for code in codes}} if codes else {})

    @model_serializer(mode="wrap")
    def _spread(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = dict(handler(self))
        texts: dict[str, Any] = found.pop(TEXTS, {})
        return found | texts

    def __getitem__(self, language: str) -> T:
        """The text in `language`; in the first where that is not there (`both` is no language)."""
        return self.texts[language] if language in self.texts else next(iter(self.texts.values()))

    @property
    def languages(self) -> tuple[str, ...]:
        """In the document's order."""
        return tuple(self.texts)
