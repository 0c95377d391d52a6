"""The whole pipeline on a tiny Llama: every stage with its real components, the report, and going on after a stop."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from helpers.manifest import as_version_0_1_0
from helpers.project import small_project_in
from helpers.tiny_runs import run_all, toy_tribunal
from noesis.core.files import sha256_file
from noesis.core.project import Project
from noesis.pipeline.verify.check_run import verify
from noesis.pipeline.verify.status import status
from noesis.run.directory import Run, load_run
from noesis.training.methods import state_seals

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small project, and beside it its run with every stage done."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NOESIS_CACHE", str(folder / "cache"))
        run_all(small_project_in(folder / "project"), tiny_model, folder / "run")
    return folder


@pytest.fixture
def released(finished: Path, tmp_path: Path) -> Run:
    """A copy of the finished run, of its project and of its cache."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return load_run(tmp_path / "run")


def wrong(run: Path) -> list[str]:
    return [f"{f.what}: {f.wrong}" for f in verify(load_run(run)) if f.wrong]


def test_every_stage_runs_and_a_second_time_none_does(
    small_project: Project, tiny_model: Path, tmp_path: Path, quiet_cache: Path, capsys: pytest.CaptureFixture[str]
):
    s = run_all(small_project, tiny_model, tmp_path / "run")
    stages = s.run.manifest.stages
    assert {name: record.status for name, record in stages.items()} == dict.fromkeys(
        ("export", "plan", "train", "choose", "dial", "judge", "merge", "gguf", "report"), "done"
    )
    judged = s.run.result("judge")
    assert judged["preference"]["tuned"]["held_out_loss"] < judged["preference"]["base"]["held_out_loss"]
    assert judged["court"]["verdict"] == "UNDECIDED"
    assert judged["kept"]["all"]["items"] == 9
    assert judged["kept"]["drift"] > 0
    assert "What it broke" in s.run.report.read_text(encoding="utf-8")
    assert s.run.result("gguf")["files"]["f16"]["passed"]
    assert s.run.result("merge")["merged_tensors"] == 14
    answers = [json.loads(line) for line in (s.run.tribunal / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(answers) == 2
    assert s.constitution.digest()[:16] in (s.run.merged / "README.md").read_text(encoding="utf-8")
    hashes = {name: o.sha256 for record in stages.values() for name, o in record.outputs.items()}
    assert "checkpoints/epoch_0/adapter_model.safetensors" in hashes

    capsys.readouterr()
    again = run_all(small_project, tiny_model, tmp_path / "run")
    assert capsys.readouterr().out.count("already done") == 8  # all but the report
    assert {
        n: o.sha256
        for record in again.run.manifest.stages.values()
        for n, o in record.outputs.items()
        if n != "report.html"
    } == {n: h for n, h in hashes.items() if n != "report.html"}


def test_a_released_run_is_judged_again_and_goes_on_also_if_version_0_1_0_made_it(
    released: Run, quiet_cache: Path, capsys: pytest.CaptureFixture[str]
):
    """Judging again made the merged model stale: `holds no merged model`."""
    from noesis.pipeline.session import reopen_run
    from noesis.pipeline.stages.gguf import parity, run_gguf
    from noesis.pipeline.stages.judge import run_judge

    path = released.path
    for old in (False, True):
        if old:
            as_version_0_1_0(path)
            assert wrong(path) == []
            assert {state.status for state in status(load_run(path))} == {"done", "stale", "not run"}
        s = reopen_run(path)
        run_judge(s, again=True, answers=old)  # without answers it is another judgement than before
        assert [name for name in ("merge", "gguf") if not load_run(path).is_done(name)] == []
        assert {state.name for state in status(load_run(path)) if state.status == "stale"} == {"report"}
        capsys.readouterr()
        run_gguf(s)
        assert "already done" in capsys.readouterr().out
        parity(s)
        assert wrong(path) == []
    assert json.loads((path / "manifest.json").read_text(encoding="utf-8"))["format"] == 3


def test_gguf_files_that_fail_leave_the_certified_ones(
    released: Run, quiet_cache: Path, monkeypatch: pytest.MonkeyPatch
):
    import noesis.release.gguf.writer as writer
    from noesis.core.errors import ParityError
    from noesis.pipeline.session import reopen_run
    from noesis.pipeline.stages.gguf import run_gguf

    before = {file.name: sha256_file(file) for file in released.gguf.glob("*.gguf")}
    assert before
    real = writer.quantise
    monkeypatch.setattr(writer, "quantise", lambda rows, stored: real(rows * 0.5 if rows.ndim == 2 else rows, stored))
    s = reopen_run(released.path)
    with pytest.raises(ParityError):
        run_gguf(s, again=True)
    assert {name: sha256_file(released.gguf / name) for name in before} == before
    assert list(released.gguf.glob("*.rejected.gguf"))
    assert not list(released.gguf.glob(".*"))


def test_a_run_is_verified_where_its_model_is_not(released: Run, monkeypatch: pytest.MonkeyPatch):
    """A run pulled from the cloud: the statistics were said not to follow from the data, for want of a tokenizer to count with."""
    for module in ("noesis.dataset.checks.length", "noesis.pipeline.verify.origin"):
        monkeypatch.setattr(f"{module}.find_tokenizer", lambda *_: None)
    assert wrong(released.path) == []
    file = released.data / "statistics.json"
    statistics = json.loads(file.read_text(encoding="utf-8"))
    statistics["train"]["examples"] += 1
    file.write_text(json.dumps(statistics), encoding="utf-8")
    assert any("does not follow from the data" in why for why in wrong(released.path))


def test_other_epochs_archive_the_old_run(released: Run, tiny_model: Path, tmp_path: Path, quiet_cache: Path):
    s = run_all(Project(tmp_path / "project"), tiny_model, released.path, **{"training.num_train_epochs": 2})
    assert [p.name for p in sorted(s.run.checkpoints.iterdir())] == ["epoch_0", "epoch_1", "resume"]
    assert (s.run.result("train") or {})["states"] == state_seals(s.run.checkpoints) != {}
    (archived,) = (tmp_path / ".archive").iterdir()
    assert (archived / "checkpoints" / "epoch_0" / "adapter_model.safetensors").is_file()


def test_the_report_escapes_what_it_shows_and_loads_nothing(released: Run, quiet_cache: Path):
    from noesis.pipeline.session import reopen_run
    from noesis.pipeline.stages.report import run_report

    s = reopen_run(released.path)
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    file = s.run.tribunal / "answers.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    rows[0]["tuned"]["answer"] = rows[0]["prompt"] = rows[0]["id"] = evil
    rows[0]["tuned"]["flags"] = [evil]
    file.write_text("\n".join(json.dumps(r) for r in rows), encoding="utf-8")
    run_report(s)
    page = s.run.report.read_text(encoding="utf-8")
    assert page.count("&lt;script&gt;") == 4
    assert not re.search(r"<script|<img|https?://|<link|@import|url\(", page)
    assert "default-src 'none'" in page
    for shown in (
        "held-out loss",
        "Tribunal",
        "UNDECIDED",
        "offline screen (not a judge)",
        "polyline",
        s.run.identity.dataset_sha256,
    ):
        assert shown in page


def test_chat_streams_from_the_gguf(
    released: Run, quiet_cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    import io

    from noesis.cli import run_command

    monkeypatch.setattr("sys.stdin", io.StringIO("what is courage?\n/base\n/reset\nand fear?\n/judge\n/quit\n"))
    assert run_command(["chat", str(released.path), "--max-tokens", "8", "--temperature", "0"]) == 0
    said = capsys.readouterr().out
    assert said.count("noesis ›") == 2 and said.count("base ›") == 1 and "not a judge" in said


def test_a_trial_before_a_scripted_judge(
    small_project: Project,
    tiny_model: Path,
    tmp_path: Path,
    quiet_cache: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    from helpers import judge_server as play
    from noesis.cli import run_command
    from noesis.pipeline.session import reopen_run
    from noesis.pipeline.stages.report import run_report

    monkeypatch.setattr(
        "noesis.core.console._quiet_stdout", False
    )  # --json below sends all talk to stderr, for this test only
    toy_tribunal(small_project.root)
    s = run_all(small_project, tiny_model, tmp_path / "run", **{"training.tribunal.trial_tokens": 8})

    def judge_run(server: play.JudgeServer, *more: str) -> int:
        spec = f"openai:{server.url}:scripted"
        return run_command(["judge", str(s.run.path), "--judge", spec, "--project", str(small_project.root), *more])

    with play.JudgeServer(lambda asked: play.verdict(asked, 0.9)) as server:
        assert judge_run(server) == 4
        out = capsys.readouterr().out
        assert "UNDECIDED: judge not fit: scripted was calibrated never" in out
        asked = len(server.requests)
        assert asked <= 22 * 2 * 2 * 3
        assert judge_run(server, "--json") == 4  # nothing is asked or answered again
        assert len(server.requests) == asked
    result = json.loads(capsys.readouterr().out)
    assert result["judges"][0]["fit"] is False
    assert result["models"]["tuned"]["all"]["mean"]["clusters"] == 22
    assert (s.run.tribunal / "verdicts.jsonl").is_file()
    s = reopen_run(s.run.path)
    assert s.run.is_done("merge") and s.run.is_done("gguf")
    assert wrong(s.run.path) == []  # the card was rewritten, and what read the merged model has read no card
    assert "judge not fit" in (s.run.merged / "README.md").read_text(encoding="utf-8")
    run_report(s)
    assert wrong(s.run.path) == []
    page = s.run.report.read_text(encoding="utf-8")
    assert "never calibrated" in page
    assert "discipline: x" in page
    assert (
        run_command(
            [
                "judge",
                str(s.run.path),
                "--judge",
                "openai:http://127.0.0.1:1/v1:tiny-llama",
                "--project",
                str(small_project.root),
            ]
        )
        == 2
    )
    assert "--judge self" in capsys.readouterr().err
