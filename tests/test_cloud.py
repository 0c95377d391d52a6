"""Modal's side without Modal: options, the upload's check, the lease, publishing to a volume, the conductor's order, the quote."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from conftest import ROOT
from noesis.cloud import conduct as order
from noesis.cloud.lease import FOLDER, LASTS_S, LEAVING_S, Lease
from noesis.cloud.offer import offer
from noesis.cloud.request import Request, card_to_rent, checked
from noesis.cloud.staging import Staging, published
from noesis.cloud.summary import cost_lines, taken_away
from noesis.cloud.upload import exported_hashes, require_upload
from noesis.config import ModalSection, Project, load_config
from noesis.errors import DataError, RunError, UsageError

GIVEN: dict = dict(  # noqa: C408  (as on the command line)
    epochs=3, test_only=False, merge_only=False, model="", method="", gpu="", gpus=0, max_usd=0.0, max_minutes=0.0, max_examples=0,
    resume=False, fresh=False, gguf="", judge="", judge_secret="", gate=False,
)  # fmt: skip
SECTION = ModalSection()


def asked(**more: object) -> Request:
    return checked(SECTION, **(GIVEN | more))


def test_options_become_a_request_that_survives_the_journey():
    request = asked(epochs=1, gguf="q8_0,f16,q8_0", max_usd=5.0, method="dpo", judge="none", gate=True)
    assert request.gguf == ("q8_0", "f16")
    assert (request.judges, request.max_usd, request.max_minutes, request.gate) == ((), 5.0, None, True)
    assert Request.from_json(json.loads(json.dumps(request.as_json()))) == request
    assert request.overrides()["training.method"] == "dpo"
    assert "training.method" not in asked().overrides()
    assert asked().model == "meta-llama/Llama-3.1-8B-Instruct"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"test_only": True, "merge_only": True}, "exclude each other"),
        ({"resume": True, "fresh": True}, "one of them"),
        ({"epochs": 0}, "--epochs 0"),
        ({"max_usd": -1.0}, "--max-usd -1 is below 0"),
        ({"gpus": 9}, "at most 8 cards"),
        ({"method": "ppo"}, "choose sft, dpo"),
        ({"test_only": True, "fresh": True}, "train nothing"),
        ({"judge": "gguf:judge.gguf"}, "is not in the cloud"),
        ({"judge": "openai:http://127.0.0.1:8000/v1:x"}, "is not in the cloud"),
        ({"judge": "vllm:../../etc"}, "name a model of the Hub"),
        ({"judge": "nonsense"}, "not understood"),
    ],
)
def test_options_that_can_not_work_are_refused_before_anything_starts(given: dict, said: str):
    with pytest.raises(UsageError, match=said):
        asked(**given)


def test_a_served_judge_needs_its_image():
    with pytest.raises(UsageError, match="modal: judges"):
        checked(ModalSection(judges=()), **(GIVEN | {"judge": "vllm:Qwen/Qwen2.5-7B-Instruct"}))


@pytest.mark.parametrize(
    ("gpu", "gpus", "rented"),
    [("", 0, None), ("H100", 0, "H100"), ("H100", 4, "H100:4"), ("H100:2", 0, "H100:2"), ("", 2, "L40S:2"), ("a10g", 0, "A10"), ("H100:2", 2, "H100:2")],
)
def test_the_card_of_a_call(gpu: str, gpus: int, rented: str | None):
    assert card_to_rent(asked(gpu=gpu, gpus=gpus), SECTION) == rented


def test_the_older_name_of_a_card_in_the_yaml_file_is_todays():
    assert ModalSection(judge_gpu=("A10G",), train_gpu=("a10g:2", "L40S")).judge_gpu == ("A10",)
    assert ModalSection(train_gpu=("a10g:2", "L40S")).train_gpu == ("A10:2", "L40S")


# --- the upload


def test_an_upload_that_is_missing_torn_stale_or_misplaced_says_what_to_type(tmp_path: Path):
    exports, dataset = tmp_path / "exports", tmp_path / "dataset"
    shutil.copytree(ROOT / "data" / "training" / "exports", exports)
    here = exported_hashes(exports)
    with pytest.raises(UsageError, match="Dataset not found.*modal volume put vol data/training/exports /dataset"):
        require_upload(dataset, here, "vol")
    shutil.copytree(exports, dataset / "exports")
    with pytest.raises(UsageError, match="one folder too deep"):
        require_upload(dataset, here, "vol")
    shutil.rmtree(dataset)
    shutil.copytree(exports, dataset)
    require_upload(dataset, here, "vol")
    require_upload(dataset, None, "vol")
    lines = (dataset / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (dataset / "train.jsonl").write_text("".join(lines[:-1]), encoding="utf-8")
    with pytest.raises(DataError, match="not whole.*--force"):
        require_upload(dataset, here, "vol")
    shutil.copyfile(exports / "train.jsonl", dataset / "train.jsonl")
    with pytest.raises(DataError, match="not the one that was exported here.*--force"):
        require_upload(dataset, {"train": "0" * 64, "eval": here["eval"]}, "vol")
    (exports / "eval.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(DataError, match="changed since its export.*export_for_modal"):
        exported_hashes(exports)
    assert exported_hashes(tmp_path / "nowhere") is None


# --- the lease


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def lease(root: Path, holder: str, clock: Clock, reload=lambda: None) -> Lease:
    return Lease(root, holder, commit=lambda: None, reload=reload, clock=clock, sleep=clock.sleep)


def test_one_run_at_a_time_and_a_killed_holder_s_lease_runs_out(tmp_path: Path):
    clock = Clock()
    first = lease(tmp_path, "a", clock)
    first.take()
    with pytest.raises(RunError, match="another run is at work"):
        lease(tmp_path, "b", clock).take()
    clock.now += LASTS_S
    second = lease(tmp_path, "b", clock)
    second.take()
    clock.now += 61
    with pytest.raises(RunError, match="another run began"):
        first.renew()
    second.renew()
    second.release()
    lease(tmp_path, "c", clock).take()


def test_a_conductor_that_starts_again_finds_its_calls_and_another_waits_for_one_that_leaves(tmp_path: Path):
    clock = Clock()
    first = lease(tmp_path, "a", clock)
    first.take()
    first.note("train", "fc-1")
    first.release(leaving=True)
    again = lease(tmp_path, "a", clock)
    again.take()
    assert again.calls == {"train": "fc-1"}
    again.release(leaving=True)
    before = clock.now
    other = lease(tmp_path, "b", clock)
    other.take()
    assert LEAVING_S <= clock.now - before < LEAVING_S + 10
    assert other.calls == {}


def test_of_two_that_begin_at_once_the_first_writer_loses(tmp_path: Path):
    clock = Clock()
    late = lease(tmp_path, "b", clock)
    calls = []

    def meanwhile() -> None:  # what the volume shows when it is read back
        if not calls:
            calls.append(1)
            late._write(LASTS_S)

    with pytest.raises(RunError, match="at the same moment"):
        lease(tmp_path, "a", clock, reload=meanwhile).take()


# --- publishing


def a_run(folder: Path) -> None:
    for name in (
        "checkpoints/epoch_0/adapter_model.safetensors",
        "checkpoints/resume/checkpoint-2/state",
        "data/train.jsonl",
        "metrics.jsonl",
        "manifest.json",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name, encoding="utf-8")


def test_what_is_new_is_published_whole_and_once_manifest_last(tmp_path: Path):
    volume, local, commits = tmp_path / "volume", tmp_path / "local", []
    a_run(volume)
    (volume / "checkpoints" / ".epoch_1.part").mkdir()
    (volume / "merged" / "m").mkdir(parents=True)
    staging = Staging(volume, local, lambda: commits.append((volume / "manifest.json").read_text(encoding="utf-8")))
    staging.bring()
    assert (local / "merged").is_symlink()
    assert not (volume / "checkpoints" / ".epoch_1.part").exists()
    assert (staging.publish(), staging.is_due(), commits) == ([], False, [])
    shutil.copytree(local / "checkpoints" / "epoch_0", local / "checkpoints" / "epoch_1")
    shutil.move(local / "checkpoints" / "resume" / "checkpoint-2", local / "checkpoints" / "resume" / "checkpoint-4")
    (local / "checkpoints" / ".epoch_2.part").mkdir()
    (local / "manifest.json").write_text("new", encoding="utf-8")
    assert staging.is_due()
    assert staging.publish() == ["checkpoints/epoch_1", "checkpoints/resume/checkpoint-4", "manifest.json"]
    assert commits == ["new"]
    assert sorted(p.name for p in (volume / "checkpoints" / "resume").iterdir()) == ["checkpoint-4"]
    assert not (volume / "checkpoints" / ".epoch_2.part").exists()


def test_the_end_is_published_however_it_comes(tmp_path: Path):
    volume, local = tmp_path / "volume", tmp_path / "local"
    a_run(volume)
    staging = Staging(volume, local, lambda: None)
    staging.bring()
    with pytest.raises(KeyboardInterrupt), published(staging, look_s=60):
        (local / "metrics.jsonl").write_text("more", encoding="utf-8")
        raise KeyboardInterrupt
    assert (volume / "metrics.jsonl").read_text(encoding="utf-8") == "more"


# --- the conductor


class Plays:
    """Functions that end when they are polled for the third time; training leaves an epoch at each poll."""

    def __init__(self, root: Path, **results: dict) -> None:
        self.root, self.results, self.started, self.polls = root, results, [], {}

    def hands(self) -> order.Hands:
        return order.Hands(self.start, self.result, lambda: None, lambda: None, sleep=lambda s: None)

    def start(self, name: str, arguments: dict) -> str:
        self.started.append(name if name != "judge_epoch" else f"judge epoch_{arguments['epoch']}")
        if name == "train":
            (self.root / FOLDER / order.OPENED).write_text(json.dumps({"ticket": arguments["ticket"]}), encoding="utf-8")
        return f"{name}-{len(self.started)}"

    def result(self, call: str, seconds: float) -> dict | None:
        self.polls[call] = self.polls.get(call, 0) + 1
        name = call.split("-")[0]
        if name == "train":
            adapter = self.root / "checkpoints" / f"epoch_{self.polls[call] - 1}" / "adapter_model.safetensors"
            adapter.parent.mkdir(parents=True, exist_ok=True)
            adapter.write_text("", encoding="utf-8")
        if self.polls[call] < 3:
            return None
        return self.results.get(name, {"court": {"verdict": "REJECTED"}})


@pytest.fixture
def quiet_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "summary_lines", lambda root: ["done"])


def test_epochs_are_judged_beside_and_the_verdict_is_the_exit_code_only_where_asked(tmp_path: Path, quiet_summary: None):
    plays = Plays(tmp_path)
    old = tmp_path / "checkpoints" / "epoch_0" / "adapter_model.safetensors"  # of a run before: nobody's to judge until training has opened its own
    old.parent.mkdir(parents=True)
    old.write_text("", encoding="utf-8")
    assert order.conduct(asked(gate=True), tmp_path, plays.hands(), "call")["code"] == 3
    assert plays.started == ["train", "judge epoch_0", "judge epoch_1", "judge", "merge"]
    assert order.conduct(asked(), tmp_path, Plays(tmp_path).hands(), "call-2")["code"] == 0


def test_test_only_and_merge_only_do_only_that(tmp_path: Path, quiet_summary: None):
    for given, started in (({"test_only": True}, ["judge"]), ({"merge_only": True}, ["merge"])):
        plays = Plays(tmp_path)
        assert order.conduct(asked(**given), tmp_path, plays.hands(), "call")["code"] == 0
        assert plays.started == started


def test_a_stop_ends_the_order_with_its_code_and_gives_the_volume_back(tmp_path: Path):
    plays = Plays(tmp_path, train={"error": "at the cap", "code": 5})
    assert order.conduct(asked(), tmp_path, plays.hands(), "call")["code"] == 5
    assert "judge" not in plays.started
    assert order.conduct(asked(test_only=True), tmp_path, Plays(tmp_path, judge={"error": "x", "code": 1}).hands(), "other")["code"] == 1


def test_a_conductor_taken_away_waits_for_the_same_training(tmp_path: Path, quiet_summary: None):
    plays = Plays(tmp_path)
    hands = plays.hands()

    def taken(call: str, seconds: float) -> dict | None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        order.conduct(asked(), tmp_path, order.Hands(hands.start, taken, hands.reload, hands.commit, hands.sleep), "call")
    assert order.conduct(asked(), tmp_path, hands, "call")["code"] == 0
    assert plays.started.count("train") == 1


# --- what it costs


def test_the_quote_names_every_part_and_the_parts_add_up():
    project = Project(ROOT)
    request = asked()
    lines = offer(project, load_config(project, request.overrides()), request, SECTION)
    text = "\n".join(lines)
    for part in ("train", "judge", "merge and gguf", "judge 2 epochs", "trial, estimated", "conductor", "cap 90.00 USD", "L40S"):
        assert part in text, part
    begin = next(i for i, line in enumerate(lines) if line.strip().startswith("time"))
    costs = [float(found[1]) for line in lines[begin:] if "in all" not in line and "cost" not in line and (found := re.search(r" ([0-9.]+) USD(  |$)", line))]
    whole = next(float(line.split("cost")[1].split()[0]) for line in lines if line.strip().startswith("cost"))
    assert whole == pytest.approx(sum(costs), abs=0.05)
    few = "\n".join(offer(project, load_config(project, asked(epochs=1, judge="none").overrides()), asked(epochs=1, judge="none"), SECTION))
    assert "trial" not in few and "judge 1 epoch" not in few


def test_costs_by_stage_and_how_often_it_was_taken_away():
    entry = {"usd": 0.5, "seconds": 900.0, "ended": "done"}
    ledger = [entry | {"stage": "train", "ended": e} for e in ("killed", "interrupted", "interrupted", "capped", "done")] + [entry | {"stage": "merge"}]
    plan = {"result": {"stages": [{"name": "train", "usd": 2.0}, {"name": "merge and gguf", "usd": 0.1}]}}
    manifest = {"ledger": ledger, "stages": {"plan": plan}}
    lines = cost_lines(manifest)
    assert "2.5000 USD   quoted 2.00" in lines[0]
    assert "3.0000 USD   quoted 2.10" in lines[-1]
    assert taken_away(manifest) == ["  training was taken away 3 times and went on each time"]
