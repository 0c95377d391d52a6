"""What the containers do, on a folder in place of the volume, with a tiny Llama: trained, judged by epoch, merged; a judge served beside."""

from __future__ import annotations

import json
import shutil
import socket
import sys
from pathlib import Path

import pytest

from helpers import judge_server as play
from noesis.cloud.container import answers as answering
from noesis.cloud.container import orchestrator as order
from noesis.cloud.container import prepare as preparation
from noesis.cloud.container import stages
from noesis.cloud.container import vllm_judge as judges
from noesis.cloud.container.workspace import CallResult, ContainerContext
from noesis.cloud.request import CloudRequest
from noesis.cloud.volume.uploaded_data import exported_hashes
from noesis.core.project import Project
from noesis.llm import hub
from noesis.run.directory import load_run

pytestmark = [pytest.mark.slow, pytest.mark.timing]


@pytest.fixture
def place(project: Path, tiny_model: Path, tmp_path: Path, quiet_cache: Path) -> ContainerContext:
    """A project of a few rows whose Modal model is the tiny one, and a folder as the volume with its data set."""
    from noesis.cli import run_command

    for folder in (project / "data" / "training").glob("philosophical*"):
        for file in folder.glob("*.jsonl"):
            lines = file.read_text(encoding="utf-8").splitlines()[:2]
            file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    found = Project(project)
    text = found.training_yaml.read_text(encoding="utf-8")
    text = text.replace("answers: 6", "answers: 2").replace("max_new_tokens: 200", "max_new_tokens: 8")
    text = text.replace("trial_tokens: 320", "trial_tokens: 4").replace("samples: 2 ", "samples: 1 ")
    text = text.replace("model: meta-llama/Llama-3.1-8B-Instruct", f"model: {tiny_model}")
    found.training_yaml.write_text(text, encoding="utf-8")
    found.lora_yaml.write_text(found.lora_yaml.read_text(encoding="utf-8").replace("r: 64", "r: 4"), encoding="utf-8")
    assert run_command(["data", "export", "--project", str(project)]) == 0
    root = tmp_path / "volume"
    shutil.copytree(found.exports, root / "dataset")
    return ContainerContext(root, found, lambda: None, lambda: None, lambda: None)


def asked(place: ContainerContext, tiny_model: Path, **more: object) -> CloudRequest:
    return CloudRequest(
        **{"epochs": 2, "model": str(tiny_model), "max_examples": 8, "uploaded": exported_hashes(place.project.exports)}
        | more
    )


def in_process(place: ContainerContext, calls: list[str]) -> order.FunctionCalls:
    """Calls that are done when they are started."""
    functions = {"train": stages.train, "judge": stages.judge, "judge_epoch": stages.judge_epoch, "merge": stages.merge}
    functions |= {"answer_shard": answering.answer_shard, "judge_served": stages.judge}
    functions |= {"prepare": preparation.prepare, "probe_judge": preparation.probe_judge}
    results: dict[str, CallResult] = {}

    def start(name: str, arguments: dict, limit: object) -> str:
        calls.append(name)
        if "request" in arguments:
            arguments = arguments | {"request": CloudRequest.from_json(arguments["request"])}
        results[f"{name}-{len(calls)}"] = CallResult.from_json(functions[name](place, *arguments.values()).to_json())
        return f"{name}-{len(calls)}"

    return order.FunctionCalls(
        start, lambda call, seconds: results[call], calls.remove, place.reload, place.commit, sleep=lambda s: None
    )


def test_a_whole_run_on_a_volume_and_a_longer_one_after_it(place: ContainerContext, tiny_model: Path):
    calls: list[str] = []
    done = order.orchestrate(asked(place, tiny_model), place.root, in_process(place, calls), "call-1")
    assert (done.code, done.value["verdict"], calls) == (
        0,
        "UNDECIDED",
        ["prepare", "train", "judge_epoch", "judge", "merge"],
    ), done
    for file in (
        "checkpoints/epoch_0/adapter_model.safetensors",
        "checkpoints/epoch_1/adapter_model.safetensors",
        "merged/noesis-philosopher-v1/model.safetensors",
        "gguf/parity.json",
        "report.html",
        "tribunal/summary.json",
        "tribunal/epochs/epoch_0.json",
        "summary.txt",
    ):
        assert (place.root / file).is_file(), file
    run = load_run(place.root)
    assert all(run.is_done(name) for name in ("export", "plan", "train", "judge", "merge", "gguf", "report"))
    assert not list(place.root.rglob(".*.part"))
    text = "\n".join(done.value["lines"])
    assert "model     /merged/noesis-philosopher-v1" in text
    assert "preempted" not in text
    prepared = [
        preparation.prepare(place, asked(place, tiny_model, **more)).value["continues"]
        for more in ({}, {"epochs": 3}, {"fresh": True}, {"epochs": 3, "resume": True})
    ]
    assert prepared == [True, False, False, True]
    again = order.orchestrate(asked(place, tiny_model), place.root, in_process(place, []), "call-2")
    assert again.code == 0
    assert load_run(place.root).manifest.created == run.manifest.created
    longer = stages.train(place, asked(place, tiny_model, epochs=3), "call-3")
    assert longer.value["epochs"] == 3
    (archived,) = (place.root / "runs").iterdir()
    assert (archived / "merged" / "noesis-philosopher-v1" / "model.safetensors").is_file()
    assert not (place.root / "merged").exists()


def test_an_epoch_is_judged_from_a_file_of_its_own_and_booked_at_the_end(place: ContainerContext, tiny_model: Path):
    assert stages.train(place, asked(place, tiny_model), "call").error is None
    before = (place.root / "manifest.json").read_bytes()
    found = stages.judge_epoch(place, 0).value
    assert (place.root / "manifest.json").read_bytes() == before
    assert json.loads((place.root / "tribunal" / "epochs" / "epoch_0.json").read_text(encoding="utf-8")) == found
    assert found["preference"]["examples"] == len(
        (place.root / "dataset" / "eval.jsonl").read_text(encoding="utf-8").splitlines()
    )
    assert stages.judge(place, asked(place, tiny_model), False).error is None
    for _ in range(2):  # a second time books nothing again
        assert stages.merge(place, asked(place, tiny_model), False).error is None
    assert [entry.stage for entry in load_run(place.root).manifest.ledger].count("judge_epochs") == 1


def test_what_a_user_gets_wrong_comes_back_as_a_result(place: ContainerContext, tiny_model: Path):
    assert "modal run scripts/modal_train.py" in stages.judge(place, asked(place, tiny_model), False).error
    capped = stages.train(place, asked(place, tiny_model, max_minutes=0.001), "call")
    assert (capped.code, capped.capped, "what would fit" in capped.error) == (5, True, True)
    gone = stages.train(place, asked(place, str(tiny_model) + "-gone"), "call")
    assert (gone.code, "no model" in gone.error) == (1, True)
    (place.root / "dataset" / "train.jsonl").unlink()
    missing = stages.train(place, asked(place, tiny_model), "call")
    assert (
        missing.code,
        "Dataset not found" in missing.error,
        "modal volume put noesis-training-data" in missing.error,
    ) == (2, True, True)


def test_a_container_that_is_taken_away_leaves_what_it_had_and_the_next_goes_on(
    place: ContainerContext, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
):
    from noesis.training import recorder

    whole = recorder.Metrics.write

    def taken(self: recorder.Metrics, **figures: object) -> None:
        whole(self, **figures)
        if figures["step"] == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(recorder.Metrics, "write", taken)
    with pytest.raises(KeyboardInterrupt):
        stages.train(place, asked(place, tiny_model, epochs=3), "call")
    monkeypatch.undo()
    monkeypatch.setenv("NOESIS_CACHE", str(place.root.parent / "cache"))
    assert load_run(place.root).state("train") == "interrupted"
    assert stages.train(place, asked(place, tiny_model, epochs=3, fresh=True), "call").value["epochs"] == 3
    assert not (place.root / "runs").exists()  # the same call goes on with the run that it opened, fresh or not
    done = order.orchestrate(asked(place, tiny_model, epochs=3), place.root, in_process(place, []), "call-2")
    assert "  training was preempted 1 time and resumed each time" in done.value["lines"]


def judge_from_nowhere(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Lets the judge's weights be fetched without a network; the names that were."""
    fetched, find = [], hub.find_model

    def find_model(name: str, revision: str | None = None) -> object:
        if not name.startswith("Qwen/"):
            return find(name, revision)
        return fetched.append(name)

    monkeypatch.setattr(hub, "find_model", find_model)
    return fetched


BROKEN = """
print("INFO loading")
print("(EngineCore pid=7) ERROR [core.py:1330] RuntimeError: Could not find nvcc and default cuda_home doesn't exist")
print("Traceback (most recent call last):")
raise RuntimeError("Engine core initialization failed. See root cause above. Failed core proc(s): {}")
"""

DOUBLE = """
import json, os, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
sys.path.insert(0, sys.argv[1])
from helpers import judge_server as play
model, port = sys.argv[3], int(sys.argv[sys.argv.index("--port") + 1])
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *_): ...
    def reply(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status); self.send_header("Content-Length", str(len(data))); self.end_headers(); self.wfile.write(data)
    def refused(self):
        return self.headers.get("Authorization") != "Bearer " + os.environ["VLLM_API_KEY"]
    def do_GET(self):
        self.reply(401 if self.refused() else 200, {"data": [{"id": model}]})
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.refused() or body["model"] != model:
            return self.reply(401, {})
        text = play.verdict(play.Asked(body, 1), 0.8)
        self.reply(200, {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]})
ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def test_all_answers_come_first_then_the_judge_is_served_and_ends(
    place: ContainerContext, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from helpers.tiny_runs import toy_tribunal

    toy_tribunal(place.project.root)
    double = tmp_path / "vllm.py"
    double.write_text(DOUBLE, encoding="utf-8")
    monkeypatch.setenv(judges.COMMAND, f"{sys.executable} {double} {Path(play.__file__).parents[1]}")
    assert stages.train(place, asked(place, tiny_model, epochs=1), "call").error is None
    fetched = judge_from_nowhere(monkeypatch)
    request = asked(place, tiny_model, epochs=1, judges=("vllm:Qwen/Qwen2.5-7B-Instruct",), shards=3, what="test")
    calls: list[str] = []
    done = order.orchestrate(request, place.root, in_process(place, calls), "call-1", project=place.project)
    assert done.error is None, done
    # 24 prompts are two chunks
    assert calls == ["prepare", "probe_judge", "answer_shard", "answer_shard", "judge_served"]
    assert fetched == ["Qwen/Qwen2.5-7B-Instruct"]
    stages_of_ledger = [entry.stage for entry in load_run(place.root).manifest.ledger]
    assert stages_of_ledger.count("answers") == 2
    result = load_run(place.root).result("trial")
    assert result["judges"][0]["name"] == "Qwen/Qwen2.5-7B-Instruct", result
    assert result["court"]["verdict"] == "UNDECIDED"  # it was never shown to be fit
    assert (place.root / "tribunal" / "verdicts.jsonl").is_file()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", judges.PORT)) != 0


def test_a_judge_that_does_not_start_is_named_in_the_verdict_with_its_last_words(
    place: ContainerContext, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It said that no judge was named, after all answers had been paid for."""
    broken = tmp_path / "vllm.py"
    broken.write_text(BROKEN, encoding="utf-8")
    monkeypatch.setenv(judges.COMMAND, f"{sys.executable} {broken}")
    judge_from_nowhere(monkeypatch)
    assert stages.train(place, asked(place, tiny_model, epochs=1), "call").error is None
    request = asked(place, tiny_model, epochs=1, judges=("vllm:Qwen/Qwen2.5-7B-Instruct",), what="test")
    calls: list[str] = []
    done = order.orchestrate(request, place.root, in_process(place, calls), "call-1", project=place.project)
    assert (done.error, calls) == (None, ["prepare", "probe_judge", "judge"])
    run = load_run(place.root)
    assert run.result("trial") is None
    assert not (run.tribunal / "replies.sqlite").exists()  # no answer was written
    (verdict,) = [line for line in done.value["lines"] if "Tribunal:" in line]
    assert "UNDECIDED: the judge vllm:Qwen/Qwen2.5-7B-Instruct can't judge" in verdict
    assert "code 1: RuntimeError: Could not find nvcc" in verdict
    assert "modal run scripts/modal_train.py --test-only" in verdict
    later = stages.judge(place, request, False).value  # one that was probed and fails afterwards
    assert "RuntimeError: Could not find nvcc" in later["court"]["reason"]
