"""Ids of rows as a reader sees them: two that look the same are the same, and one that can't be read is none."""

from __future__ import annotations

import unicodedata

from noesis.core.errors import DataError
from noesis.core.i18n import _

_UNREADABLE = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")


def id_key(name: str) -> str:
    """What is equal for ids that look the same: one form of accents, one kind of space."""
    return " ".join(unicodedata.normalize("NFC", name).split())


def id_problem(name: str) -> str | None:
    """What is wrong with an id, for a message that begins with "id"; None if nothing is."""
    for character in name:
        category = unicodedata.category(character)
        if category in _UNREADABLE or (category == "Zs" and character != " "):
            shown = unicodedata.name(character, f"U+{ord(character):04X}")
            return _("contains a character that can't be seen ({shown}): {name!a}", shown=shown, name=name[:80])
    return _("begins or ends with a space: {name!r}", name=name[:80]) if name != name.strip() else None


class UniqueIds:
    """The ids of a file or folder, each with the place where it stands."""

    def __init__(self) -> None:
        self._first: dict[tuple[str, str], tuple[str, str]] = {}

    def add(self, name: str, place: str, language: str = "") -> None:
        """Note an id, which is unique within its language.

        Raises:
            DataError: it can't be read, or an earlier one looks the same.
        """
        if problem := id_problem(name):
            raise DataError(_("{place}: id {problem}", place=place, problem=problem))
        first, at = self._first.setdefault((id_key(name), language), (name, place))
        if at != place:
            raise DataError(
                _(
                    "{place}: the id {name!r} {same_id} {at}",
                    place=place,
                    name=name,
                    same_id=same_id(first, name),
                    at=at,
                )
            )


def same_id(first: str, name: str) -> str:
    """How `name` repeats the id `first`, for a message that ends in the place of `first`."""
    return _("is already used at") if first == name else _("looks the same, in other code points, as the one at")
