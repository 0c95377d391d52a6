"""The first screen of the report: five questions that a person has, each answered in a sentence or two.

Did it help, what did it break, at which strength, what does it cost, what next. Whoever reads no further is not misled:
what can't be told apart from chance is said to be so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from noesis.core.console import command, duration, size
from noesis.core.i18n import N_, _, number, retold
from noesis.pipeline.results import RunResults
from noesis.planning.budget import in_reais
from noesis.run.directory import Run
from noesis.tribunal.court import APPROVED, CONDITIONAL, REJECTED, UNDECIDED
from noesis.tribunal.heldout import JudgeResult, Preference
from noesis.tribunal.statistics import bootstrap, clustered

FEW = 8  # held-out examples, below which nothing is told apart from chance
VERDICTS = {
    APPROVED: N_("approved"),
    CONDITIONAL: N_("conditional"),
    REJECTED: N_("rejected"),
    UNDECIDED: N_("undecided"),
}

Tone = Literal["ok", "bad", "wait", ""]  # how the page colours the answer


@dataclass(frozen=True)
class Answer:
    """A question and its answer. command: to copy; empty where there is none."""

    question: str
    text: str
    tone: Tone = ""
    command: str = ""


def in_short(run: Run) -> list[Answer]:
    """The five answers; none while the run has no stage `judge`."""
    results = RunResults(run)
    if (judged := results.judge) is None:
        return []
    return [_helped(results, judged), _broke(run, judged), _strength(results), _cost(run, results), _next(run, results)]


def _helped(results: RunResults, judged: JudgeResult) -> Answer:
    question, found, verdict = _("Did it help?"), judged.preference, results.ruling.verdict
    mean, (low, high) = _margin_gain(found)
    gain = number(mean, "+.3f")
    if math.isfinite(low):
        gain = _("{gain} (95%: {low} to {high})", gain=gain, low=number(low, "+.3f"), high=number(high, "+.3f"))
    figures = _(
        "against the base, its margin for revised over weak answers moved by {gain} nats a token; "
        "it prefers {tuned} of {examples}, the base {base}",
        gain=gain,
        tuned=found.tuned.preferred,
        base=found.base.preferred,
        examples=found.examples,
    )
    court = _("Whether its answers are better is for the Tribunal to say: {verdict}.", verdict=_(VERDICTS[verdict]))
    tone: Tone = "wait"
    if found.examples < FEW:
        said = _("Too few held-out examples to tell: {figures}.", figures=figures)
    elif low > 0:
        said, tone = _("It moved the way the examples ask: {figures}.", figures=figures), "ok"
    elif high < 0:
        said, tone = _("It moved the other way: {figures}.", figures=figures), "bad"
    else:
        said = _("That can't be told from chance: {figures}.", figures=figures)
    return Answer(question, f"{said} {court}", "bad" if verdict == REJECTED else tone)


def _margin_gain(found: Preference) -> tuple[float, tuple[float, float]]:
    """Tuned less base, mean and 95% interval over the examples; an example in two languages is one observation."""
    gains = [row.tuned_margin - row.base_margin for row in found.by_example]
    sums, counts = clustered(gains, [row.id for row in found.by_example])
    return sum(gains) / max(len(gains), 1), bootstrap(sums, counts)


def _broke(run: Run, judged: JudgeResult) -> Answer:
    question = _("What did it break?")
    if judged.kept is None:
        return Answer(question, _("Not measured."), "wait")
    group = judged.kept.all
    if not group.base:
        said = _("Nothing that can be seen: the base could do none of the {items} small tasks.", items=group.items)
        return Answer(question, said, "wait")
    low, high = group.lost_95
    said = _(
        "It lost {lost} of the {base} small tasks that the base could do (95%: {low:.0%} to {high:.0%}), and gained "
        "{gained} of the other {items}.",
        lost=group.lost,
        base=group.base,
        low=low,
        high=high,
        gained=group.gained,
        items=group.items - group.base,
    )
    if group.caution:
        caution = retold(group.caution)
        said += f" {caution[:1].upper()}{caution[1:]}."
    if group.lost <= group.gained or group.p >= 0.05:
        return Answer(question, said)
    training = run.config().training
    if training.method == "sft" and not training.replay.kl_weight:
        said += " " + _("Training with --kl-weight 1 keeps more.")
    return Answer(question, said, "bad")


def _strength(results: RunResults) -> Answer:
    question, dial = _("At which strength?"), results.dial
    if dial is None:
        return Answer(question, _("As trained (1): no other was tried."))
    reason = retold(dial.reason)
    return Answer(
        question, _("{strength} (1 is as trained): {reason}.", strength=number(dial.strength, "g"), reason=reason)
    )


def _cost(run: Run, results: RunResults) -> Answer:
    stages = run.manifest.stages
    seconds, plan, train = sum(stage.seconds for stage in stages.values()), results.executed_plan, results.train
    if run.manifest.cost_usd or plan is None or not plan.rented:
        usd, rate = run.manifest.cost_usd or 0.0, run.config().training.budget.brl_per_usd
        said = _(
            "{time} of computing, {usd:.2f} USD{reais}.", time=duration(seconds), usd=usd, reais=in_reais(usd, rate)
        )
    else:
        said = _("{time} of computing; what it cost was not recorded.", time=duration(seconds))
    if train is not None:
        said += " " + _("Training held {memory} of memory.", memory=size(train.peak_memory_bytes))
    outputs = stages["gguf"].outputs if "gguf" in stages else {}
    if files := [output.bytes for name, output in outputs.items() if name.endswith(".gguf")]:
        said += " " + _("The smallest file to run it from has {size}.", size=size(min(files)))
    return Answer(_("What does it cost?"), said)


def _next(run: Run, results: RunResults) -> Answer:
    question, certificate, verdict = _("What next?"), results.certificate, results.ruling.verdict
    if certificate is not None and not all(found.passed for _name, found in certificate.comparisons()):
        said = _("A file does not behave like the model that was trained: don't use it, see its certificate below.")
        return Answer(question, said, "bad", command("verify", run.path))
    if verdict == REJECTED:
        said = _("Don't use it. Read below which answers were faulted and why, mend the examples, and train again.")
        return Answer(question, said, "bad")
    if verdict == APPROVED:
        return Answer(question, _("Serve it to your application:"), "", command("serve", run.path))
    said = _("Talk to it and see for yourself. A verdict needs a judge that was shown to be fit (judge --judge).")
    return Answer(question, said, "", command("chat", run.path))
