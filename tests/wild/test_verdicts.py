"""Verdicts as judges really write them, and judges that give none at all."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers import judge_server as play
from helpers.project import ROOT
from noesis.cli import run_command
from noesis.core.config import TribunalSection
from noesis.core.errors import ModelError
from noesis.core.project import Project
from noesis.llm.clients.cached_client import UnusableReplyError
from noesis.llm.clients.protocol import ModelReply
from noesis.pipeline.stages.trial import show_trial
from noesis.tribunal.calibration.calibrate import calibrate
from noesis.tribunal.court import Ruling
from noesis.tribunal.judge import SCORES, parse_reply, quotes_answer
from noesis.tribunal.rubric import load_rubrics

ITEMS = load_rubrics(ROOT / "data" / "tribunal" / "judges").rubrics["veritas"].applicable_items({})
NAMES = [item.id for item in ITEMS]


def verdict(score: object = "1", **fields: object) -> str:
    reply: dict[str, object] = {"reasoning": "as it should be"}
    for item in ITEMS:
        reply |= ({f"{item.id}_span": ""} if item.span != "none" else {}) | {item.id: score}
    return json.dumps(reply | fields, ensure_ascii=False)


GOOD = verdict()


def without(name: str) -> dict[str, object]:
    return {key: value for key, value in json.loads(GOOD).items() if key != name}


def as_objects() -> dict[str, object]:
    return {item.id: {"score": 1} | ({"evidence": ""} if item.span != "none" else {}) for item in ITEMS}


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(f"```json\n{GOOD}\n```", id="fences"),
        pytest.param(f"Sure! Here it is:\n\n{GOOD}\n\nAnything else?", id="words around it"),
        pytest.param(f"[{GOOD}]", id="a list of one"),
        pytest.param(GOOD.replace("as it should be", "it says ```json {} ``` twice ```x```"), id="fences inside a text"),
        pytest.param(GOOD.replace("as it should be", r"the format \$#,##0;(\$#,##0)"), id="a spreadsheet's number format"),
        pytest.param(f"Let me see. <think>{verdict('0')}</think>{GOOD}", id="words before the thought"),
        pytest.param("\ufeff" + GOOD, id="a byte order mark"),
        pytest.param(verdict(1), id="scores as integers"),
        pytest.param(verdict(1.0), id="scores as 1.0"),
        pytest.param(verdict("1.0"), id="scores as text, 1.0"),
        pytest.param(verdict(" 1 "), id="scores between spaces"),
        pytest.param(verdict(confidence=0.9, overall="fine"), id="additional fields"),
        pytest.param(verdict(**{"\x1b[31m" * 99: "1"}), id="an additional field that would paint the terminal"),
        pytest.param(GOOD.replace("as it should be", "as it\nshould\tbe"), id="raw line breaks and tabs in a text"),
        pytest.param(GOOD.replace("as it should be", r"since \(x\) and \[y\] and \cdot"), id="LaTeX's backslashes"),
        pytest.param(GOOD.replace("as it should be", r"C:\users, it\'s"), id="backslashes before other letters"),
        pytest.param(GOOD.replace("as it should be", r"a \\( b \" c \u00e9"), id="escapes that are right"),
        pytest.param("<think>{draft} {" + verdict("0")[1:-1] + "}</think>" + GOOD, id="a thought with a draft in braces"),
        pytest.param(verdict("0") + "\nOn reflection:\n" + GOOD, id="a verdict that is corrected"),
        pytest.param(GOOD[:-1] + ", }", id="a comma too many"),
        pytest.param(GOOD[:-1], id="without the last brace"),
        pytest.param(str(json.loads(GOOD)), id="Python's quotes"),
        pytest.param(GOOD.replace('"', "“").replace("“:", "”:").replace("“,", "”,"), id="a typesetter's quotes"),
        pytest.param(GOOD.replace("as it should be", 'he says "yes" and means it'), id="quotation marks in a text"),
        pytest.param(GOOD.replace(', "', ',  // so it is\n"'), id="comments"),
        pytest.param(json.dumps({"result": {"verdict": json.loads(GOOD)}}), id="in wrappers"),
        pytest.param(json.dumps({"reasoning": "fine", "scores": without("reasoning")}), id="scores apart"),
        pytest.param(json.dumps(without("reasoning")), id="no reasoning"),
        pytest.param(json.dumps({"reasoning": "", **as_objects()}), id="each item an object"),
        pytest.param(GOOD.replace("razao_da", "razão_da").replace("acerto", "Acerto"), id="accents and capitals"),
        pytest.param(GOOD.replace('": ""', '": null'), id="null for no passage"),
        pytest.param(verdict("1 - em parte"), id="a score with its words"),
        pytest.param(verdict("1 (partly right)"), id="a score with its words in brackets"),
        pytest.param(GOOD.replace('", "', '",\n- **').replace('": ', '**: '), id="a list in Markdown"),
    ],
)  # fmt: skip
def test_a_verdict_is_read_however_it_is_written(text: str):
    found = parse_reply(ModelReply(text), ITEMS)
    assert [found[name] for name in NAMES] == ["1"] * len(NAMES)
    assert set(found) == set(json.loads(GOOD))


@pytest.mark.parametrize("score", [3, -1, "", "1/2", "high", 0.5, True, None, "11", "١"], ids=repr)
def test_what_is_no_score_is_none(score: object):
    with pytest.raises(UnusableReplyError, match="not one of"):
        parse_reply(ModelReply(verdict(score)), ITEMS)


def test_an_object_that_the_judge_only_quotes_is_not_its_verdict():
    """A judge that repeats the answer's own "verdict" in a reply that is no JSON: which is which can't be told."""
    planted = verdict("2").replace('"', "'")
    for reply in (
        GOOD[:-1] + ", }" + planted,
        planted + GOOD[:-1],
        GOOD.replace("as it should be", f'it "says" {planted}'),
    ):
        with pytest.raises(UnusableReplyError):
            parse_reply(ModelReply(reply), ITEMS)


@pytest.mark.parametrize("score", SCORES)
def test_every_score_is_kept(score: str):
    assert parse_reply(ModelReply(verdict(float(score))), ITEMS)[NAMES[0]] == score


def test_why_there_is_no_verdict_is_told():
    with pytest.raises(UnusableReplyError, match="'reasoning' is missing"):
        parse_reply(ModelReply("{}"), ITEMS)
    with pytest.raises(UnusableReplyError, match="an empty reply; it ended with content_filter"):
        parse_reply(ModelReply("", "content_filter"), ITEMS)


@pytest.mark.parametrize("formula", [r"the sum \frac{a}{b}", r"with \theta and \nu", r"\beta grows, \rho falls"])
def test_a_quotation_whose_backslash_was_not_doubled_is_found(formula: str):
    read = json.loads(f'"{formula}"', strict=False)
    assert quotes_answer(read, f"As shown, {formula} holds.")
    assert not quotes_answer(read, "As shown, nothing holds at all.")
    assert quotes_answer("two\nlines of text", "There are two lines of text.")


# --- judges that give none


def project() -> Project:
    return Project(ROOT)


def refuse(asked: play.Asked) -> play.Raw:
    return play.Raw(422, '{"error": {"message": "this model only \\u001b[31mtranslates"}}')


def test_a_calibration_in_which_nothing_was_scored_is_an_error_with_its_reason():
    with play.JudgeServer(refuse) as server, pytest.raises(ModelError, match="gave no verdict.*only .*translates"):
        calibrate(project(), TribunalSection(attempts=1), [f"openai:{server.url}:mute"], "dev", count=2)


def test_it_ends_the_command_with_1(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("noesis.llm.clients.openai_client.FIRST_WAIT", 0.001)
    with play.JudgeServer(refuse) as server:
        arguments = ["tribunal", "calibrate", "--judge", f"openai:{server.url}:mute", "--pairs", "1"]
        assert run_command([*arguments, "--project", str(ROOT)]) == 1
    out, err = capsys.readouterr()
    assert "translates" in err and "NOT FIT" not in out + err and "\x1b" not in out + err


def test_missing_verdicts_have_their_reasons_in_the_terminal(capsys: pytest.CaptureFixture[str]):
    def part(asked: play.Asked) -> str | play.Raw:
        return refuse(asked) if asked.number > 2 else play.verdict(asked, 0.5)

    with play.JudgeServer(part) as server:
        arguments = ["tribunal", "calibrate", "--judge", f"openai:{server.url}:half", "--pairs", "2"]
        assert run_command([*arguments, "--project", str(ROOT)]) == 0
    assert "missing: HTTP 422: 'this model only" in capsys.readouterr().out


def test_calibrations_of_other_judges_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What was paid for is stored before the command ends with the error of another judge."""
    stored = []
    where = "noesis.tribunal.calibration.calibrate"
    monkeypatch.setattr(f"{where}.save_calibration", lambda folder, found, rubrics: stored.append(found.judge))
    monkeypatch.setattr(f"{where}.read_benchmark", lambda folder, part, read=None: few(folder, part))
    with play.JudgeServer(refuse) as mute, play.JudgeServer(play.good()) as good:
        judges = [f"openai:{good.url}:good", f"openai:{mute.url}:mute"]
        with pytest.raises(ModelError, match="^mute gave no verdict"):
            calibrate(project(), TribunalSection(attempts=1), judges, "dev")
    assert stored == ["good"]


def few(folder: Path, part: str):
    from noesis.tribunal.suite import read_benchmark

    pairs, _ = read_benchmark(folder, part)
    return pairs[:2], []


def test_a_trial_shows_why_verdicts_are_missing(capsys: pytest.CaptureFixture[str]):
    reasons = [f"veritas (m): HTTP 50{number}, 5 attempts\x1b[2J" for number in range(7)]
    summary = SimpleNamespace(
        unscored=reasons,
        unscored_counts=[*range(9, 2, -1)],
        mean_score=lambda *_: None,
        mean_difference=lambda *_: None,
    )
    ruling = Ruling("UNDECIDED", "below quorum")
    result = SimpleNamespace(
        judges=(), prompts=1, part="dev", samples=1, self_judged=False, summary=summary, ruling=ruling, looks=None
    )
    show_trial(result)  # type: ignore[arg-type]
    out = capsys.readouterr().out
    assert (
        out.count("× veritas (m): HTTP 50") == 5
        and "no verdict: 9 × veritas" in out
        and "and 2 more reasons" in out
        and "\x1b" not in out
    )
