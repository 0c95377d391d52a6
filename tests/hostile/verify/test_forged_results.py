"""Forged results in a run whose hashes were all recomputed: what `noesis verify` derives again, and what it can't see."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.manifest import edited_manifest
from hostile.runs.finished_run import ADAPTER, NAME, edit_json, rehashed, wrong
from noesis.cli import run_command
from noesis.core.errors import UsageError
from noesis.core.files import sha256_file
from noesis.core.project import Project
from noesis.pipeline.verify.check_run import manifest_sha256, verify
from noesis.run.directory import load_run
from noesis.tribunal.rubric import JUDGES

Attack = Callable[[Path, dict[str, Any]], None]


def result(stage: str, file: str | None, change: Callable[[dict[str, Any]], None]) -> Attack:
    """Change a stage's result in the manifest, and in the file that holds it too."""

    def attack(run: Path, manifest: dict[str, Any]) -> None:
        change(manifest["stages"][stage]["result"])
        if file is not None:
            (run / file).write_text(json.dumps(manifest["stages"][stage]["result"]))

    return attack


def trial(change: Callable[[dict[str, Any]], None]) -> Attack:
    return result("trial", "tribunal/trial.json", change)


def rows(name: str, change: Callable[[list[dict[str, Any]]], None]) -> Attack:
    def attack(run: Path, manifest: dict[str, Any]) -> None:
        file = run / "tribunal" / name
        found = [json.loads(line) for line in file.read_text().splitlines()]
        change(found)
        file.write_text("".join(json.dumps(row) + "\n" for row in found))

    return attack


def approved(found: dict[str, Any]) -> None:
    for key in ("ruling", "court"):
        found[key].update(verdict="APPROVED", reason="mean 0.900 [0.850, 0.950]")


def approved_with_means(found: dict[str, Any]) -> None:
    approved(found)
    for measure in ("mean", "veritas", "sophia", "dike"):
        found["models"]["tuned"]["all"][measure].update(mean=0.9, interval_95=[0.85, 0.95], mean_low=0.9, mean_high=0.9)


def thirteen(found: dict[str, Any]) -> None:
    found["preference"]["tuned"].update(preferred=13, preference_accuracy=1.0, interval_95=[0.7719, 1.0])


def tuned(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in found if "/tuned/" in row["answer"] and row["verdicts"]]


def full_points(found: list[dict[str, Any]]) -> None:
    for row in tuned(found):
        for verdict in row["verdicts"]:
            for item in verdict["items"]:
                item["score"] = 2


def full_points_and_opinions(found: list[dict[str, Any]]) -> None:
    full_points(found)
    for row in tuned(found):
        row["opinion"].update(mean=[1.0, 1.0], judges={judge: [1.0, 1.0] for judge in JUDGES})
        for verdict in row["verdicts"]:
            verdict["score"] = 1.0


def quoted(found: list[dict[str, Any]]) -> None:
    item = tuned(found)[0]["verdicts"][0]["items"][0]
    item.update(span="words that no answer holds", span_found=True)


def both(*attacks: Attack) -> Attack:
    def attack(run: Path, manifest: dict[str, Any]) -> None:
        for one in attacks:
            one(run, manifest)

    return attack


def card(change: Callable[[str], str]) -> Attack:
    def attack(run: Path, manifest: dict[str, Any]) -> None:
        file = run / "merged" / NAME / "README.md"
        file.write_text(change(file.read_text()))

    return attack


def scores_of_another_adapter(run: Path, manifest: dict[str, Any]) -> None:
    (run / ADAPTER).write_text("evil")


def own_tolerance(found: dict[str, Any]) -> None:
    found["files"]["f16"].update(kl_mean=5.0, tolerance={"kl_mean": 9.0, "top1": 0.0, "answers": 0.0})


FORGED: dict[str, Attack] = {
    "a judgement of 13 of 13": result("judge", "tribunal/summary.json", thirteen),
    "a lower held-out loss": result(
        "judge", "tribunal/summary.json", lambda r: r["preference"]["tuned"].update(held_out_loss=0.1)
    ),
    "one example's better margin": result(
        "judge", "tribunal/summary.json", lambda r: r["preference"]["by_example"][0].update(tuned_margin=9.0)
    ),
    "a judgement of another epoch": result(
        "judge", "tribunal/summary.json", lambda r: r["preference"].update(adapter="epoch_0")
    ),
    "APPROVED where no judge was asked": result(
        "judge", "tribunal/summary.json", lambda r: r["court"].update(verdict="APPROVED", reason="by all judges")
    ),
    "thresholds of its own where no judge was asked": result(
        "judge", "tribunal/summary.json", lambda r: r["court"].update(approval_threshold=0.1)
    ),
    "no flags on an answer that repeats itself": rows(
        "answers.jsonl", lambda r: r[0]["tuned"].update(answer="the same four words " * 20)
    ),
    "fewer tasks lost than were": result(
        "judge", "tribunal/summary.json", lambda r: r["kept"]["all"].update(lost=0, kept=12)
    ),
    "a drift that was not measured": result("judge", "tribunal/summary.json", lambda r: r["kept"].update(drift=0.0)),
    "what was lost, taken out of the result": result("judge", "tribunal/summary.json", lambda r: r.pop("kept")),
    "outcomes that lose nothing": rows("kept.jsonl", lambda found: found[0].update(tuned=found[0]["base"])),
    "answers to examples of its own": rows("answers.jsonl", lambda r: r[0].update(prompt="An easy one?")),
    "an epoch that was chosen against its figures": result("choose", None, lambda r: r.update(adapter="epoch_0")),
    "another reason for the choice": result("choose", None, lambda r: r.update(by="the Tribunal's mean")),
    "a Tribunal that chose, without scores": result("choose", None, lambda r: r.update(heard=True)),
    "better figures of an epoch": result("choose", None, lambda r: r["epochs"]["epoch_0"].update(preferred=13)),
    "a choice without one of the epochs": result("choose", None, lambda r: r["epochs"].pop("epoch_0")),
    "a strength against its figures": result("dial", None, lambda r: r.update(strength=0.5, adapter="epoch_1_at_0.5")),
    "a strength that is said to be set": result("dial", None, lambda r: r.update(fixed=True)),
    "another adapter at the same strength": result("dial", None, lambda r: r.update(adapter="epoch_0")),
    "a smaller drift": result("dial", None, lambda r: r["curve"][-1].update(drift=0.0)),
    "figures of another adapter's dial": lambda run, _: edit_json(
        run / "dial/figures.json", lambda f: f.update(key="0" * 64)
    ),
    "an adapter that was never scored": scores_of_another_adapter,
    "a trial's forged APPROVED": trial(approved),
    "a trial's forged APPROVED with means to it": trial(approved_with_means),
    "APPROVED in the court's part alone": trial(lambda r: r["court"].update(verdict="APPROVED")),
    "APPROVED and full points": both(rows("verdicts.jsonl", full_points), trial(approved_with_means)),
    "APPROVED, full points and opinions to them": both(
        rows("verdicts.jsonl", full_points_and_opinions), trial(approved_with_means)
    ),
    "a better base": trial(lambda r: r["base_ruling"].update(verdict="APPROVED")),
    "a difference that is none": trial(lambda r: r["difference"]["all"]["mean"].update(mean=0.4, p=0.0)),
    "a smaller loss of keyed items": trial(lambda r: r["keyed"].update(fall=-0.5)),
    "a veto that was taken away": trial(lambda r: r["vetoes"].append({"answer": "m0/tuned/0", "vetoes": ["x"]})),
    "verdicts that were left out": rows("verdicts.jsonl", lambda r: r.remove(tuned(r)[0])),
    "a judge's verdict that was left out": rows("verdicts.jsonl", lambda r: tuned(r)[0]["verdicts"].pop()),
    "evidence that is not in the answer": rows("verdicts.jsonl", quoted),
    "an answer that was put in afterwards": rows(
        "trial_answers.jsonl", lambda r: r[-5].update(answer="A fine answer.")
    ),
    "an answer that was left out": rows("trial_answers.jsonl", lambda r: r.pop()),
    "a look that said something else": trial(lambda r: r["looks"]["held"][0].update(verdict="APPROVED")),
    "another reason for stopping": trial(lambda r: r["looks"].update(stopped="all prompts were judged")),
    "looks that are left out": trial(lambda r: r.pop("looks")),
    "the rule of early versions for the choice": both(
        result("choose", None, lambda r: r.pop("significant")),
        result("choose", None, lambda r: r.update(adapter="epoch_0")),
    ),
    "a judge that is said to be fit": trial(lambda r: r["judges"][0].update(fit=False)),
    "a loss that training did not reach": result("train", None, lambda r: r.update(final_loss=0.01)),
    "a mean loss that training did not reach": result(
        "train", None, lambda r: r["mean_training_loss"].update(epoch_1=0.1)
    ),
    "more epochs than were trained": result("train", None, lambda r: r.update(epochs=3)),
    "a plan of fewer epochs": result("plan", None, lambda r: r.update(epochs=1)),
    "a plan of another rank": result("plan", None, lambda r: r.update(r=64)),
    "a GGUF file that passes by a tolerance of its own": result("gguf", "gguf/parity.json", own_tolerance),
    "a GGUF file that passes against its figures": result(
        "gguf", "gguf/parity.json", lambda r: r["files"]["f16"].update(kl_mean=5.0)
    ),
    "a GGUF file that is not the certified one": lambda run, _: (run / f"gguf/{NAME}-f16.gguf").write_text("GGUF evil"),
    "a model card that says APPROVED": card(lambda text: re.sub(r"\| Tribunal \| \w+", "| Tribunal | APPROVED", text)),
    "a model card with a row more": card(lambda text: text.replace("\n\nIntervals", "\n| ISO | 9001 |\n\nIntervals")),
    "a model card with better figures": card(lambda text: re.sub(r"→ 0\.\d\d \[", "→ 1.00 [", text)),
    "provenance of another base": lambda run, _: edit_json(
        run / f"merged/{NAME}/noesis.json", lambda p: p.update(base="meta-llama/Llama-3.1-8B-Instruct")
    ),
    "provenance of another adapter": lambda run, _: edit_json(
        run / f"merged/{NAME}/noesis.json", lambda p: p.update(adapter_sha256="0" * 64)
    ),
    "statistics of more examples": lambda run, m: (
        m["stages"]["export"]["result"]["train"].update(examples=999),
        (run / "data/statistics.json").write_text(json.dumps(m["stages"]["export"]["result"])),
    ),
    "examples of its own": lambda run, _: (run / "data/train.jsonl").write_text(
        (run / "data/train.jsonl").read_text().replace("the", "teh", 1)
    ),
    "another constitution": lambda run, _: (run / "data/constitution.yaml").write_text(
        (run / "data/constitution.yaml").read_text().replace("humility", "pride").replace("truth", "gain")
    ),
    "a parent that the identity does not name": lambda _, m: m["identity"].update(parent_sha256="0" * 64),
    "another base in the identity": lambda _, m: m["identity"].update(base_model="meta-llama/Llama-3.1-8B"),
    "a cost of nothing": lambda _, m: m.update(cost_usd=-1.0),
}


@pytest.mark.parametrize("attack", [pytest.param(a, id=f"a rehashed run with {name}") for name, a in FORGED.items()])
def test_a_forged_result_is_found_although_all_hashes_are_right(run: Path, finished: Path, attack: Attack):
    with rehashed(run) as manifest:
        attack(run, manifest)
    found = wrong(run, finished)
    assert found
    assert not re.search(r": (changed|missing)|changed since", found)  # the forger did not forget a hash


UNKNOWN = {
    "a suite that the project does not have": lambda r: r.update(prompts_sha256="0" * 64),
    "a calibration that the project does not have": lambda r: r["judges"][0]["calibration"].update(accuracy=1.0),
    "rubrics that the project does not have": lambda r: r.update(rubrics_sha256="0" * 64),
    "a judge that the project never measured": lambda r: r["judges"][0].update(
        identity="openai:https://evil.example:x"
    ),
}


@pytest.mark.parametrize("change", [pytest.param(c, id=f"a trial by {name}") for name, c in UNKNOWN.items()])
def test_what_rests_on_something_that_is_not_here_does_not_count_as_checked(
    run: Path, finished: Path, change: Callable[[dict[str, Any]], None]
):
    with rehashed(run) as manifest:
        trial(change)(run, manifest)
    (found,) = [f for f in verify(load_run(run), Project(finished / "project")) if f.unchecked]
    assert found.what == "the ruling follows from answers and verdicts"
    assert re.search("not the one that this trial was held with|is not in this project", found.unchecked or "")


@pytest.mark.parametrize(
    "attack",
    [
        pytest.param(trial(approved), id="means below the threshold"),
        pytest.param(
            both(trial(approved_with_means), trial(lambda r: r["judges"][0].update(fit=False))), id="an unfit judge"
        ),
        pytest.param(trial(approved_with_means), id="means that no verdict gives"),
    ],
)
def test_an_approval_without_its_suite_still_needs_what_an_approval_needs(run: Path, attack: Attack):
    with rehashed(run) as manifest:
        attack(run, manifest)
    assert any(found.wrong for found in verify(load_run(run), None))


# --- what only something from outside can show


def rewritten(run: Path) -> None:
    """A consistent forgery: an adapter of another's, its metrics, and everything that is derived from them."""
    with rehashed(run) as manifest:
        lines = (run / "metrics.jsonl").read_text().replace('"loss": 2.0', '"loss": 1.0')
        (run / "metrics.jsonl").write_text(lines)
        train = manifest["stages"]["train"]["result"]
        train["final_loss"] = json.loads(lines.splitlines()[-1])["loss"]
        train["mean_training_loss"]["epoch_1"] = train["final_loss"]
        readme = run / "merged" / NAME / "README.md"
        readme.write_text(readme.read_text().replace("3.000 → 2.000", "3.000 → 1.000"))


def test_a_consistent_forgery_matches_and_only_the_kept_hash_shows_it(
    run: Path, finished: Path, capsys: pytest.CaptureFixture[str]
):
    kept = manifest_sha256(load_run(run))
    project = ["--project", str(finished / "project")]
    assert run_command(["verify", str(run), "--sha256", kept.upper(), *project]) == 0
    rewritten(run)
    capsys.readouterr()
    assert run_command(["verify", str(run), *project]) == 0  # the honest limit
    said = capsys.readouterr().out
    assert "all match" in said
    assert "agrees with itself, not who made it" in said
    assert run_command(["verify", str(run), "--sha256", kept, *project]) == 1
    assert "manifest.json has the hash that you kept: it has" in capsys.readouterr().out


@pytest.mark.parametrize("kept", ["", "0", "*", "é" * 64, "sha256:" + "0" * 63])
def test_a_hash_that_is_none_is_refused(run: Path, kept: str):
    with pytest.raises(UsageError, match="64 hexadecimal digits"):
        next(iter(verify(load_run(run), None, sha256=kept)))


def test_a_hash_is_taken_in_every_form_that_tools_print_and_another_never_matches(run: Path):
    right = sha256_file(run / "manifest.json")
    for kept in (right, right.upper(), f"sha256:{right}", f"{right}  runs/demo/manifest.json"):
        assert next(iter(verify(load_run(run), None, sha256=kept))).wrong is None
    assert next(iter(verify(load_run(run), None, sha256="0" * 64))).wrong is not None


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="OpenSSH is not installed")
def test_a_signature_made_as_documented_shows_a_consistent_forgery(run: Path, finished: Path, tmp_path: Path):
    key, manifest = tmp_path / "key", run / "manifest.json"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    subprocess.run(["ssh-keygen", "-q", "-Y", "sign", "-f", str(key), "-n", "noesis", str(manifest)], check=True)
    (tmp_path / "signers").write_text("me@example.org " + key.with_suffix(".pub").read_text())

    def signed() -> bool:
        verify_it = ["ssh-keygen", "-Y", "verify", "-f", str(tmp_path / "signers"), "-I", "me@example.org"]
        with open(manifest, "rb") as text:
            done = subprocess.run(
                [*verify_it, "-n", "noesis", "-s", f"{manifest}.sig"], stdin=text, capture_output=True
            )
        return done.returncode == 0

    assert signed()
    assert wrong(run, finished) == ""  # the signature may lie in the run
    with edited_manifest(run) as value:
        value["created"] = "2020-01-01T00:00:00Z"
    assert not signed()
