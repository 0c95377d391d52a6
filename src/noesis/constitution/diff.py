"""Two constitutions compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from noesis.constitution.document import Constitution
from noesis.core.i18n import N_
from noesis.core.language import ByLanguage

TEXT = "text"


@dataclass(frozen=True)
class Change:
    """One thing that differs.

    what: principle, value, attitude, system prompt, version
    id: of the entry, "" where there is none
    kind: added, removed, or what of it changed (text, requests, value, rank, judge)
    """

    what: str
    id: str
    kind: str
    old: str = ""
    new: str = ""

    def lines(self) -> list[str]:
        """What changed, and the old and the new text indented below."""
        texts = [f"  − {self.old}"] if self.old else []
        texts += [f"  + {self.new}"] if self.new else []
        return [f"{self.what} {self.id}".strip() + f": {self.kind}", *texts]


def compare(old: Constitution, new: Constitution) -> list[Change]:
    """All differences, principles last."""
    found: list[Change] = []
    if old.version != new.version:
        found.append(Change(N_("version"), "", TEXT, old.version, new.version))
    for language in _languages(old.system_prompt, new.system_prompt):
        a, b = old.system_prompt.texts.get(language, ""), new.system_prompt.texts.get(language, "")
        if a != b:
            found.append(Change(N_("system prompt"), language, TEXT, a, b))
    ranks = [[v.id for v in c.values] for c in (old, new)]
    if ranks[0] != ranks[1] and set(ranks[0]) == set(ranks[1]):
        found.append(Change(N_("values"), "", N_("rank"), " > ".join(ranks[0]), " > ".join(ranks[1])))
    for what, before, after in (
        (N_("value"), old.values, new.values),
        (N_("attitude"), old.attitudes, new.attitudes),
        (N_("principle"), old.principles, new.principles),
    ):
        there, here = {e.id: e for e in before}, {e.id: e for e in after}
        found += [Change(what, name, N_("removed"), _text_of(there[name])) for name in there if name not in here]
        found += [Change(what, name, N_("added"), "", _text_of(here[name])) for name in here if name not in there]
        for name in here:
            if name in there:
                found += _changes(what, there[name], here[name])
    return found


def _changes(what: str, old: Any, new: Any) -> list[Change]:
    found = []
    for language in _languages(old, new):
        a, b = old.texts.get(language, ""), new.texts.get(language, "")
        if a != b:
            found.append(
                Change(
                    what,
                    new.id,
                    f"{TEXT} ({language})",
                    *(x if isinstance(x, str) else f"{x.name}: {x.text}" for x in (a, b)),
                )
            )
    for name in ("value", "judge"):
        if getattr(old, name, None) != getattr(new, name, None):
            found.append(Change(what, new.id, name, str(getattr(old, name)), str(getattr(new, name))))
    for name in ("critique", "revision"):
        a, b = getattr(old, name, None), getattr(new, name, None)
        if a != b:
            found.append(
                Change(
                    what,
                    new.id,
                    N_("{name} request", name=name),
                    *("" if x is None else " / ".join(x.texts.values()) for x in (a, b)),
                )
            )
    return found


def _text_of(entry: Any) -> str:
    text = entry["en"]
    return text if isinstance(text, str) else f"{text.name}: {text.text}"


def _languages(old: ByLanguage[Any], new: ByLanguage[Any]) -> list[str]:
    """The languages of both, in the order of the old one."""
    return list(dict.fromkeys((*old.languages, *new.languages)))
