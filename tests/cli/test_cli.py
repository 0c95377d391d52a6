"""The command line as a user meets it: exit codes, one message instead of a traceback, help that is documented."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.command import noesis
from helpers.project import ROOT


def test_python_m_noesis_is_the_command():
    def typed(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "noesis", *words], capture_output=True, text=True, cwd=ROOT)

    done, wrong = typed("--version"), typed("data", "validate", "nowhere.jsonl")
    assert (done.returncode, done.stdout[:9], done.stderr) == (0, "noesis 0.", "")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "error: nowhere.jsonl does not exist: name a .jsonl file or a folder of them\n"


def test_a_wrong_choice_is_told_without_the_words_of_a_library():
    done = noesis("plan", "--method", "ppo")
    assert done.returncode == 2
    assert "'--method': 'ppo' is not one of 'sft', 'dpo', 'sft+dpo'" in done.stderr


def test_version_and_help():
    assert noesis("--version").stdout.startswith("noesis 0.")
    done = noesis("--help")
    assert done.returncode == 0
    for command in (
        "demo",
        "plan",
        "train",
        "judge",
        "merge",
        "gguf",
        "parity",
        "chat",
        "report",
        "init",
        "clean",
        "doctor",
        "data",
    ):
        assert f"\n  {command} " in done.stdout


def test_every_command_has_help_with_an_example():
    import re

    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    assert len(sections) >= 15
    assert [s.splitlines()[0] for s in sections if "Example: noesis" not in s] == []


def test_the_documented_command_line_is_the_real_one():
    done = subprocess.run([sys.executable, ROOT / "docs" / "make_cli.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["data", "validate", "nowhere.jsonl"], 2, "nowhere.jsonl does not exist"),
        (["data", "export", "--language", "french"], 2, "training.data.language"),
        (["data", "inspect", "no_such_id"], 2, "no example with the id"),
        (["judge", "runs/nothing"], 2, "no run in runs/nothing"),
        (["chat", "runs/nothing"], 2, "no run in runs/nothing"),
        (["gguf", "runs/nothing", "--quant", "q9"], 2, "'q9' is not known"),
        (["train", "--epochs", "0"], 2, "--epochs"),
        (["train", "--model", "nonsense"], 1, "no model 'nonsense'"),
        (["train", "--dataset", "nowhere"], 2, "Dataset not found"),
        (["demo", "--project", "nowhere"], 2, "noesis init nowhere"),
        (["nonsense"], 2, "No such command"),
        (["train", "--nonsense"], 2, "No such option"),
    ],
)
def test_what_a_user_gets_wrong_is_one_message(arguments: list[str], code: int, said: str, tmp_path: Path):
    done = noesis(*arguments, env={} if "inspect" in arguments else {"NOESIS_CACHE": str(tmp_path)})
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_outside_a_project(tmp_path: Path):
    done = noesis("plan", cwd=tmp_path)
    assert (done.returncode, "noesis init" in done.stderr) == (2, True)


def test_validate_names_file_and_line_and_exits_1(write_rows, record: dict):
    file = write_rows(record, b"{not json")
    done = noesis("data", "validate", file)
    assert done.returncode == 1
    assert f"{file}:2: error: not JSON" in done.stdout
    assert "2 rows in 1 file: 1 valid, 1 error" in done.stdout


def test_json_is_all_that_stands_on_stdout(write_rows, record: dict):
    done = noesis("data", "validate", write_rows(record), "--json", "-")
    assert json.loads(done.stdout)["valid"] == 1
    assert "1 row in 1 file" in done.stderr


def test_the_scripts_of_the_guide(tmp_path: Path):
    checked = subprocess.run(
        [sys.executable, ROOT / "scripts" / "validate_training_data.py"], capture_output=True, text=True, cwd=tmp_path
    )
    assert (checked.returncode, "248 rows in 24 files: 248 valid, 0 errors" in checked.stdout) == (0, True)
    exported = subprocess.run(
        [sys.executable, ROOT / "scripts" / "export_for_modal.py", "--out", tmp_path / "x"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert exported.returncode == 0
    assert "train.jsonl: 111 examples" in exported.stdout
    for name in ("train.jsonl", "eval.jsonl", "statistics.json"):
        assert (tmp_path / "x" / name).read_bytes() == (ROOT / "data" / "training" / "exports" / name).read_bytes()


def test_init_makes_a_project_that_validates_and_exports(tmp_path: Path):
    folder = tmp_path / "mine"
    assert noesis("init", folder).returncode == 0
    assert noesis("data", "validate", "--project", folder).returncode == 0
    done = noesis("data", "export", "--project", folder)
    assert done.returncode == 0
    assert len((folder / "data" / "training" / "exports" / "train.jsonl").read_text(encoding="utf-8").splitlines()) == 2
    again = noesis("init", folder)
    assert (again.returncode, "not empty" in again.stderr) == (2, True)


def test_doctor_looks_and_names_no_secret(tmp_path: Path):
    done = noesis("doctor", "--json", env={"HF_TOKEN": "hf_secretsecretsecret"})
    checks = {c["name"]: c for c in json.loads(done.stdout)}
    assert {
        "Python",
        "device",
        "memory",
        "disk",
        "torch",
        "embedded model",
        "HF_TOKEN",
        "Modal token",
        "project",
    } <= checks.keys()
    assert checks["HF_TOKEN"]["found"] == "set"
    assert "hf_secret" not in done.stdout + done.stderr


def test_clean_lists_and_frees_only_when_told(project: Path, tmp_path: Path):
    old = project / "runs" / ".archive" / "demo-1"
    old.mkdir(parents=True)
    (old / "metrics.jsonl").write_bytes(b"x" * 3000)
    stopped = project / "runs" / "demo" / "gguf" / ".unfinished"
    stopped.mkdir(parents=True)
    (project / "runs" / "demo" / "manifest.json").write_text("{}")
    (stopped / "m-f16.gguf").write_bytes(b"x" * 2000)
    environment = {"NOESIS_CACHE": str(tmp_path / "cache")}
    listed = noesis("clean", "--project", project, env=environment)
    assert "5 kB in 2 places" in listed.stdout
    assert old.exists()
    assert noesis("clean", "--delete", "--project", project, env=environment).returncode == 0
    assert not old.exists()
    assert not stopped.exists()


def test_hostile_text_does_not_reach_the_terminal(write_rows, record: dict):
    done = noesis("data", "validate", write_rows({**record, "principles": ["\x1b[31mred"]}))
    assert done.returncode == 1
    assert "\x1b" not in done.stdout
