"""Forged runs: what was changed in a finished run, its hashes recomputed or not, and what `noesis verify` says of it."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.manifest import edited_manifest
from hostile.runs.finished_run import ADAPTER, NAME, edit_json, findings, rehashed, wrong
from noesis.core.errors import UnsafePathError

Attack = Callable[[Path], None]


def test_an_honest_run_is_checked_wholly_and_matches(run: Path, finished: Path):
    assert findings(run, finished) == []


# --- settings


def setting(*path: str, value: Any) -> Attack:
    def attack(run: Path) -> None:
        def change(config: dict[str, Any]) -> None:
            for key in path[:-1]:
                config = config[key]
            config[path[-1]] = value

        edit_json(run / "config.json", change)

    return attack


TRIBUNAL = ("training", "tribunal")
SETTINGS = {
    "a lower threshold for approval": setting(*TRIBUNAL, "approval_threshold", value=0.5),
    "a lower floor for each judge": setting(*TRIBUNAL, "judge_floor", value=0.0),
    "other weights of the judges": setting(*TRIBUNAL, "weights", value={"veritas": 1.0, "sophia": 0.0, "dike": 0.0}),
    "no vetoes": setting(*TRIBUNAL, "vetoes", value=[]),
    "forgetting that is allowed": setting(*TRIBUNAL, "max_forgetting", value=1.0),
    "another judge": setting(*TRIBUNAL, "judges", value=["openai:https://evil.example/v1:x"]),
    "prices of nothing": setting(*TRIBUNAL, "prices", value={"gpt": {"prompt": 0, "completion": 0}}),
    "a higher cap": setting("training", "budget", "max_usd", value=1e6),
    "other GGUF files": setting("training", "gguf", "quantizations", value=["f32"]),
    "another machine on Modal": setting("training", "modal", "train_gpu", value=["H100"]),
    "another output_name": setting("training", "output_name", value="another-name"),
    "another engine": setting("training", "engine", value="unsloth"),
    "another base model": setting("training", "model", value="someone/else"),
    "another rank": setting("lora", "r", value=8),
    "a space more": lambda run: (run / "config.json").write_text((run / "config.json").read_text() + " "),
}


@pytest.mark.parametrize("attack", [pytest.param(a, id=f"config.json with {name}") for name, a in SETTINGS.items()])
def test_other_settings_are_found(run: Path, finished: Path, attack: Attack):
    attack(run)
    assert "config.json" in wrong(run, finished)


# --- files


def add(name: str, text: str = "evil") -> Attack:
    def attack(run: Path) -> None:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(text)

    return attack


def epoch_7(run: Path) -> None:
    shutil.copytree(run / "checkpoints" / "epoch_1", run / "checkpoints" / "epoch_7")


def link(name: str, to: str | None = None) -> Attack:
    def attack(run: Path) -> None:
        outside = run.parent / "outside"
        outside.mkdir()
        target = outside / "file"
        if (run / name).exists():
            shutil.move(run / name, target)
        (run / name).symlink_to(target if to is None else to)

    return attack


STRAYS = {
    "code in the merged model": add(f"merged/{NAME}/modeling_evil.py"),
    "a pickle in the merged model": add(f"merged/{NAME}/pytorch_model.bin"),
    "another tensor file in the merged model": add(f"merged/{NAME}/model-00002.safetensors"),
    "a second merged model": add("merged/another/model.safetensors"),
    "a pickle beside an adapter": add("checkpoints/epoch_0/adapter_model.bin"),
    "a tokenizer beside an adapter": add("checkpoints/epoch_0/tokenizer.json"),
    "a whole epoch_7": epoch_7,
    "another GGUF file": add(f"gguf/{NAME}-q8_0.gguf"),
    "an adapter's GGUF file that was not certified": add(f"gguf/{NAME}-adapter.gguf"),
    "code in a folder of a volume": add("dataset/sitecustomize.py"),
    "code in the notes of the cloud": add(".cloud/hook.py"),
    "a script in an archived run": add("runs/old-0123abcd/tools.sh"),
    "a pickle among archived runs": add(".archive/old-0123abcd/model.pkl"),
    "a program in a folder of a volume": add("dataset/open-me.desktop"),
    "more examples": add("data/pairs.jsonl"),
    "an example file of a hidden name": add("data/.train.jsonl"),
    "another trial": add("tribunal/verdicts_2.jsonl"),
    "a file at the top": add("setup.py"),
    "a hidden file at the top": add(".env"),
    "a folder of its own": add("tools/run.sh"),
    "a script under a name in capitals": add("merged/RUN.SH"),
    "code among the trainer's states": add("checkpoints/resume/hook.py"),
}


LINKS = {
    "a linked report": link("report.html"),
    "a linked adapter": link("checkpoints/epoch_1/adapter_model.safetensors"),
    "a linked folder": link("data/more", to="/"),
    "a link to nowhere": link("gguf/x.gguf", to="/nowhere"),
    "a linked folder that no part of a run has": link("dataset", to="/"),
}


@pytest.mark.parametrize("attack", [pytest.param(a, id=f"a run with {name}") for name, a in LINKS.items()])
def test_a_run_with_a_link_is_not_even_opened(run: Path, finished: Path, attack: Attack):
    attack(run)
    with pytest.raises(UnsafePathError, match="symbolic link"):
        wrong(run, finished)


@pytest.mark.parametrize("attack", [pytest.param(a, id=f"a run with {name}") for name, a in STRAYS.items()])
def test_what_nobody_listed_is_found(run: Path, finished: Path, attack: Attack):
    attack(run)
    assert "nothing lies in the run that does not belong there" in wrong(run, finished)


@pytest.mark.parametrize(
    "stage",
    [
        pytest.param("merge", id="code that merge is said to have left"),
        pytest.param("live_pairs", id="code that no stage at all is said to have left"),
        pytest.param("export", id="code that another stage is said to have left"),
    ],
)
def test_code_that_the_manifest_lists_is_found(run: Path, finished: Path, stage: str):
    name = f"merged/{NAME}/modeling_evil.py"
    add(name)(run)
    with rehashed(run) as manifest:
        record = manifest["stages"].setdefault(stage, {"status": "done", "result": {}, "outputs": {}})
        record["outputs"][name] = {"bytes": 0, "sha256": ""}
    assert "files that can run code" in wrong(run, finished)


LEGITIMATE = (
    "manifest.json.sig",
    "demo.json",
    ".lock",
    ".holder",
    ".meter",
    "summary.txt",
    "tribunal/replies.sqlite",
    "tribunal/replies.sqlite-wal",
    "tribunal/locked_uses.jsonl",
    "tribunal/epochs/epoch_0.json",
    f"gguf/{NAME}-q8_0.rejected.gguf",
    "dataset/train.jsonl",
    ".archive/old/manifest.json",
)


@pytest.mark.parametrize("name", LEGITIMATE)
def test_what_belongs_there_without_a_hash_is_no_finding(run: Path, finished: Path, name: str):
    add(name)(run)
    assert findings(run, finished) == []


LISTED = {
    "an adapter": ("train", ADAPTER),
    "an adapter's configuration": ("train", "checkpoints/epoch_1/adapter_config.json"),
    "the metrics": ("train", "metrics.jsonl"),
    "the held-out examples": ("export", "data/eval.jsonl"),
    "the constitution": ("export", "data/constitution.yaml"),
    "the base's scores": ("choose", "tribunal/checkpoints/base.json"),
    "the answers": ("judge", "tribunal/answers.jsonl"),
    "the weights": ("merge", f"merged/{NAME}/model.safetensors"),
    "the provenance": ("merge", f"merged/{NAME}/noesis.json"),
    "the GGUF file": ("gguf", f"gguf/{NAME}-f16.gguf"),
    "the verdicts": ("trial", "tribunal/verdicts.jsonl"),
    "the report": ("report", "report.html"),
}


@pytest.mark.parametrize("gone", [pytest.param(False, id="changed"), pytest.param(True, id="taken away")])
@pytest.mark.parametrize(
    ("stage", "name"), [pytest.param(*v, id=f"{what} without its entry") for what, v in LISTED.items()]
)
def test_a_file_whose_entry_was_removed_is_found(run: Path, finished: Path, stage: str, name: str, gone: bool):
    if gone:
        (run / name).unlink()
    else:
        (run / name).write_bytes((run / name).read_bytes() + b" ")
    with rehashed(run) as manifest:
        del manifest["stages"][stage]["outputs"][name]
    assert re.search(rf"{stage}: hashes of .* does not list .*{re.escape(name)}", wrong(run, finished))


def test_a_change_of_same_size_and_time_is_found(run: Path, finished: Path):
    file = run / ADAPTER
    before = file.stat()
    file.write_bytes(file.read_bytes().replace(b"1", b"2"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert f"{ADAPTER}: changed" in wrong(run, finished)


# --- records


def status(stage: str, value: str, *, without: tuple[str, ...] = ()) -> Attack:
    def attack(run: Path) -> None:
        with edited_manifest(run) as manifest:
            manifest["stages"][stage]["status"] = value
            for key in without:
                manifest["stages"][stage].pop(key)

    return attack


def without_inputs(*stages: str) -> Attack:
    def attack(run: Path) -> None:
        with rehashed(run) as manifest:
            for stage in stages:
                manifest["stages"][stage]["inputs"] = {}

    return attack


def interrupted_training(run: Path) -> None:
    """Another adapter in a training that is said to be interrupted; what was made of it is said to have read nothing."""
    (run / ADAPTER).write_text("evil")
    with rehashed(run) as manifest:
        manifest["stages"]["train"] = {"status": "interrupted", "started": "now", "seconds": 1.0}
        for stage in ("choose", "judge", "merge", "gguf", "trial", "report"):
            manifest["stages"][stage]["inputs"].pop("train", None)


def one_epoch_more(run: Path) -> None:
    epoch_7(run)
    with rehashed(run) as manifest:
        outputs = manifest["stages"]["train"]["outputs"]
        outputs |= {name.replace("epoch_1", "epoch_7"): dict(entry) for name, entry in outputs.items()}


RECORDS = {
    "a merge that is said to be interrupted, with its result": (
        status("merge", "interrupted"),
        "recorded as interrupted",
    ),
    "a merge that is said to be running, with its files": (
        status("merge", "running", without=("result",)),
        "recorded as",
    ),
    "a stage of a status that there is not": (status("train", "certified"), "recorded as certified"),
    "a merge that has read nothing": (without_inputs("merge"), "does not say which choose, dial it read"),
    "a trial that has read nothing": (without_inputs("trial"), "does not say which choose, dial it read"),
    "a report that has read nothing": (without_inputs("report"), "report: what it read"),
    "stages that have all read nothing": (without_inputs("plan", "train", "choose", "judge", "merge"), "does not say"),
    "another adapter in an interrupted training": (interrupted_training, "does not say which train it read"),
    "an epoch more, listed with its hash": (one_epoch_more, "the epochs are those that were trained"),
}


@pytest.mark.parametrize(("attack", "named"), [pytest.param(*v, id=f"a manifest with {k}") for k, v in RECORDS.items()])
def test_a_record_that_can_not_be_is_found(run: Path, finished: Path, attack: Attack, named: str):
    attack(run)
    assert named in wrong(run, finished)


UNFINISHED = {
    "a merge that is stale": status("merge", "stale"),
    "a trial that is interrupted": status("trial", "interrupted", without=("result", "outputs")),
    "a training that failed": status("train", "failed", without=("result", "outputs")),
}


@pytest.mark.parametrize("attack", [pytest.param(a, id=f"a manifest with {name}") for name, a in UNFINISHED.items()])
def test_what_is_not_finished_does_not_count_as_checked(run: Path, finished: Path, attack: Attack):
    attack(run)
    assert any(found.unchecked for found in findings(run, finished))


DAMAGED: dict[str, Attack] = {
    "a result of another type": lambda run: edit_json(
        run / "manifest.json", lambda m: m["stages"]["judge"].update(result={"x": 1})
    ),
    "scores that are texts": lambda run: edit_json(
        run / "tribunal/checkpoints/base.json", lambda s: s["scores"]["revised"].__setitem__(0, ["a", "b"])
    ),
    "scores of no tokens": lambda run: edit_json(
        run / "tribunal/checkpoints/base.json", lambda s: s["scores"]["revised"].__setitem__(0, [1.0, 0])
    ),
    "scores without a model": lambda run: (run / "tribunal/checkpoints/base.json").write_text("{}"),
    "verdicts that are no rows": lambda run: (run / "tribunal/verdicts.jsonl").write_text('{"answer": 3}\n'),
    "a certificate that is a list": lambda run: (run / "gguf/parity.json").write_text("[]"),
    "provenance that is no text": lambda run: (run / f"merged/{NAME}/noesis.json").write_bytes(b"\xff\xfe"),
    "settings that are no JSON": lambda run: (run / "config.json").write_text("{"),
    "a folder for a file": lambda run: ((run / "metrics.jsonl").unlink(), (run / "metrics.jsonl").mkdir()),
}


@pytest.mark.parametrize("attack", [pytest.param(a, id=f"a run with {name}") for name, a in DAMAGED.items()])
def test_whatever_is_damaged_is_a_finding_and_no_traceback(run: Path, finished: Path, attack: Attack):
    attack(run)
    assert wrong(run, finished)
