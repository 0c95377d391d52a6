"""The Inspect task, where inspect-ai is installed (an environment of its own, constraints-inspect.txt)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.project import ROOT

pytest.importorskip(
    "inspect_ai", reason="needs inspect-ai: pip install -c constraints-inspect.txt 'noesis-tribunal[judge]'"
)


def test_every_answer_judge_and_span_is_in_the_log(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from inspect_ai import eval as inspect_eval
    from inspect_ai.model import ModelOutput, get_model

    from helpers import judge_server as play
    from noesis.tribunal.inspect_task import tribunal

    monkeypatch.setenv("NOESIS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("inspect_ai.model._model.count_text_tokens", len)  # Inspect's own would fetch a tokenizer
    folder = project / "data" / "tribunal" / "prompts"
    for old in folder.glob("*.jsonl"):
        old.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    base = {
        "category": "maieutics",
        "language": "en",
        "split": "dev",
        "kind": "x",
        "prompt": "What is it?",
        "reference": "r",
    }
    rows = [
        base | {"id": "a"},
        base | {"id": "b", "turns": ["One?", "Two?"]},
        base | {"id": "c", "check": {"type": "max_words", "count": 99}},
    ]
    (folder / "toy.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    said = [ModelOutput.from_content("mockllm/model", f"A careful answer of quality9, number {i}.") for i in range(8)]
    with play.JudgeServer(lambda asked: play.verdict(asked, 1.0)) as server:
        (log,) = inspect_eval(
            tribunal(judge=f"openai:{server.url}:scripted", project=str(project)),
            model=get_model("mockllm/model", custom_outputs=said),
            log_dir=str(tmp_path / "logs"),
            display="none",
        )
    assert log.status == "success", log.error
    scores = {s.id: s.scores for s in log.samples}
    assert scores["a"]["court"].value["mean"] == pytest.approx(1.0)
    assert "**veritas** (scripted) 1.00" in scores["a"]["court"].explanation
    assert scores["a"]["court"].metadata["verdicts"][0]["items"][0]["span_found"]
    assert scores["c"]["by_code"].value == 1.0
    assert scores["c"]["court"].reason == "scored by code"
    assert [m.role for m in next(s for s in log.samples if s.id == "b").messages] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
    ]
    assert ROOT.name not in str(log.location)
