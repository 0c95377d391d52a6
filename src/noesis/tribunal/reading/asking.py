"""How judges are asked (`tribunal: ask`): they quote, they are read, or both.

quote: the judge writes a verdict with evidence for every item (`judge.py`).
score: nothing is written; an item's score is what the judge would say next (`reading.py`). No evidence, no veto.
both:  read, and what decides is quoted (`evidence.py`).

Another way of asking is another judge: it has an identity, and so a calibration, of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from pydantic import BaseModel, ConfigDict

from noesis.core.config import TribunalSection
from noesis.core.files import sha256_json
from noesis.core.language import ByLanguage
from noesis.core.project import Project
from noesis.llm.clients.spec import JUDGE_KINDS, READ_KINDS, Kind
from noesis.tribunal.reading.item_weights import load_weights
from noesis.tribunal.rubric import RubricSet, Text, read_wording

Ask = Literal["quote", "score", "both"]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ReadingWording(_Frozen):
    """The text around an answer and an item in one language; `fill_template` fills its `{fields}`."""

    user: Text
    item: Text
    opening: Text


class Reading(ByLanguage[ReadingWording]):
    """`reading.yaml`."""

    version: Text


@dataclass(frozen=True)
class Asking:
    """How one judge is asked.

    wording: of what is read; None where everything is quoted
    weights: what each item counts, by the judge and the item's id (`veritas.acerto`); 1 where it is not named
    """

    way: Ask = "quote"
    wording: Reading | None = None
    section: TribunalSection = field(default_factory=TribunalSection)
    weights: Mapping[str, float] = field(default_factory=dict, hash=False)

    def identity(self, client: str) -> str:
        """The judge's identity, from its model's: the same where everything is quoted, as it always was."""
        if self.wording is None:
            return client
        decides = [self.way, self.wording.model_dump(mode="json"), self.section.min_mass, dict(self.weights)]
        if self.way == "both":  # these say what is quoted
            decides += [self.section.judge_floor, self.section.conditional_threshold, self.section.approval_threshold]
        return f"{client}+{self.way}:{sha256_json(decides)[:16]}"

    def weight(self, judge: str, item: str) -> float:
        return self.weights.get(f"{judge}.{item}", 1.0)


def way_of(identity: str) -> Ask:
    """How the judge of this identity is asked."""
    for way in ("score", "both"):
        if f"+{way}:" in identity:
            return way
    return "quote"


def open_asking(project: Project, section: TribunalSection) -> Asking:
    """How the settings want judges asked. Raises ConfigError where the wording for it is missing or wrong."""
    if section.ask == "quote":
        return Asking(section=section)
    return Asking(section.ask, read_wording(project.tribunal / "judges" / "reading.yaml", Reading), section)


def asking_of(asking: Asking, project: Project, client: str, rubrics: RubricSet) -> Asking:
    """`asking` with the item weights learnt for this client, where the settings want them.

    Raises:
        UsageError: there are none.
    """
    if asking.wording is None or not asking.section.item_weights:
        return asking
    plain = replace(asking, way="score", weights={}).identity(client)  # the judge that they were learnt of
    return replace(asking, weights=load_weights(project.calibrations, plain, rubrics.digest()))


def judge_kinds(ask: Ask) -> tuple[Kind, ...]:
    """The kinds of model that can judge when asked in this way: one that writes no structured verdict can be read."""
    return READ_KINDS if ask == "score" else JUDGE_KINDS
