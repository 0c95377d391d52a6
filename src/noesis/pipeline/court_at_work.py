"""The demo's court: the embedded model judges a few held-out answers of base and tuned model, for as long as may be.

It shows what a trial does on answers that a reader can look up (tribunal/answers.jsonl), and why there is no verdict:
a model this small is not fit to judge, and it judges its own kin.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from noesis.core.config import TribunalSection
from noesis.core.console import quoted, say
from noesis.core.event_loop import run_async
from noesis.core.i18n import _, number, retold
from noesis.tribunal.court import Opinion, Ruling, opinion
from noesis.tribunal.gate import decide
from noesis.tribunal.judge import JudgeCase
from noesis.tribunal.panel import JudgePanel
from noesis.tribunal.rubric import JUDGES, TITLES
from noesis.tribunal.scoring import MODELS
from noesis.tribunal.trial_summary import missing_reasons
from noesis.tribunal.verdict import Unscored, Verdict

SHOWN = 70  # characters of a prompt


@dataclass(frozen=True)
class JudgedPair:
    """Both models' answers to one held-out prompt, as the court saw them.

    scores: base and tuned → the scores of the judges that gave one, 0..1
    """

    id: str
    prompt: str
    scores: dict[str, dict[str, float]]


@dataclass(frozen=True)
class CourtAtWork:
    """What the court made of a few answers.

    verdicts: asked for; missing: why some are missing
    """

    judge: str
    seconds: float
    verdicts: int
    pairs: tuple[JudgedPair, ...]
    missing: tuple[str, ...]
    ruling: Ruling

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"pairs": [asdict(pair) for pair in self.pairs], "missing": list(self.missing)}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> CourtAtWork:
        pairs = tuple(JudgedPair(**pair) for pair in stored["pairs"])
        typed = {"pairs": pairs, "missing": tuple(stored["missing"]), "ruling": Ruling.from_json(stored["ruling"])}
        return cls(**{**stored, **typed})


def hold_court(
    rows: Sequence[dict[str, Any]],
    panel: JudgePanel,
    section: TribunalSection,
    *,
    seconds: float,
    now: Callable[[], float] = time.monotonic,
) -> CourtAtWork:
    """Judge the answers of both models, one prompt after another, while there is time.

    A judge that is read gives all three verdicts at once, since it reads the answer once for them.

    Args:
        rows: of tribunal/answers.jsonl.
        seconds: no further question is begun that would probably end after this time, and none is waited for beyond it.
    """
    cases = {(row["id"], model): _case(row, model) for row in rows for model in MODELS}
    given: dict[tuple[str, str], list[Verdict | Unscored]] = {}
    late: list[str] = []
    roles = [list(JUDGES)] if section.ask == "score" else [[name] for name in JUDGES]

    async def judge() -> None:
        started, longest = now(), 0.0
        async with panel:
            for row, names in product(rows, roles):
                begun = now()
                if given and begun - started + longest > seconds:
                    return
                both = [(row["id"], model) for model in MODELS]
                who = TITLES[names[0]] if len(names) == 1 else _("the court")
                question = panel.judge([cases[key] for key in both], [names] * 2, what=f"{who} judges")
                try:
                    found = await asyncio.wait_for(question, seconds - (begun - started))
                except TimeoutError:
                    late.append(
                        _(
                            "{who} on {row}: no reply in the {seconds:g} s that this may take",
                            who=who,
                            row=row["id"],
                            seconds=seconds,
                        )
                    )
                    return
                for key, verdicts in zip(both, found, strict=True):
                    given.setdefault(key, []).extend(verdicts)
                longest = max(longest, now() - begun)

    began = now()
    run_async(judge())
    opinions = {key: opinion(f"{key[0]}/{key[1]}", verdicts, section) for key, verdicts in given.items()}
    tuned = [(found, key[0]) for key, found in opinions.items() if key[1] == "tuned"]
    ruling, _figures = decide([o for o, _ in tuned], [c for _, c in tuned], section, unfit_reason=panel.unfit_reason)
    return CourtAtWork(
        judge=", ".join(panel.names),
        seconds=round(now() - began, 1),
        verdicts=sum(map(len, given.values())),
        pairs=tuple(
            JudgedPair(row["id"], row["prompt"], {model: _scores(opinions[row["id"], model]) for model in MODELS})
            for row in rows
            if (row["id"], "tuned") in opinions
        ),
        missing=(*(f"{count} × {why}" for why, count in missing_reasons(list(opinions.values()))), *late),
        ruling=ruling,
    )


def _case(row: dict[str, Any], model: str) -> JudgeCase:
    dialogue = (*((turn["role"], turn["content"]) for turn in row["turns"]), ("user", row["prompt"]))
    record = {"language": row["language"], "category": row["category"]}
    return JudgeCase(f"{row['id']}/{model}", row["language"], dialogue, row[model]["answer"], record)


def _scores(found: Opinion) -> dict[str, float]:
    return {name: round(sum(found.judges[name]) / 2, 4) for name in JUDGES if name not in found.absent_judges}


def show_court(found: CourtAtWork) -> None:
    """Print each pair with the judges' scores, why verdicts are missing, and the ruling."""
    say(
        _(
            "  {judge} as judge: {verdicts} verdicts in {seconds:.0f} s",
            judge=found.judge,
            verdicts=found.verdicts,
            seconds=found.seconds,
        )
    )
    for pair in found.pairs:
        prompt = " ".join(pair.prompt.split())
        say(f"  {pair.id}: {quoted(prompt if len(prompt) <= SHOWN else prompt[: SHOWN - 1] + '…')}")
        for model in MODELS:
            scores = pair.scores[model]
            said = ", ".join(
                f"{TITLES[name]} {number(scores[name], '.2f')}" if name in scores else f"{TITLES[name]} –"
                for name in JUDGES
            )
            say(f"    {_(model):<6} {said}")
    for why in found.missing:
        say(_("  no verdict: {why}", why=retold(why)))
    say(_("  Tribunal: {verdict}: {reason}", verdict=found.ruling.verdict, reason=retold(found.ruling.reason)))
