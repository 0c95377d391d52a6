"""Modal's side without Modal: options, the upload's check, the lease, publishing to a volume, the orchestrator's order, the quote."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.project import ROOT
from noesis.cloud.container import orchestrator as order
from noesis.cloud.container.shards import Shards, do_shard, map_shards
from noesis.cloud.container.workspace import CallResult, ContainerContext, run_guarded
from noesis.cloud.cost import metered_lines
from noesis.cloud.pull import pull
from noesis.cloud.quote import quote_lines
from noesis.cloud.request import CloudRequest, gpu_to_rent, request_from_options
from noesis.cloud.run_summary import preemption_lines
from noesis.cloud.volume.layout import FOLDER, OPENED
from noesis.cloud.volume.lease import LASTS_S, LEAVING_S, Lease
from noesis.cloud.volume.remote import RemoteFile, safe_name
from noesis.cloud.volume.sync import VolumeSync, publishing
from noesis.cloud.volume.uploaded_data import exported_hashes, require_upload
from noesis.cloud.watch import progress_lines, read_progress
from noesis.core.config import ModalSection
from noesis.core.errors import DataError, RunError, UsageError
from noesis.core.project import Project
from noesis.run.manifest import Identity
from noesis.run.manifest_file import parse_manifest

SECTION = ModalSection()
IDENTITY = Identity("c", "d", "k", "someone/else", "r").to_json()


def asked(**more: object) -> CloudRequest:
    return request_from_options(SECTION, **({"epochs": 3} | more))


def test_options_become_a_request_that_survives_the_journey():
    request = asked(epochs=1, gguf="q8_0,f16,q8_0", max_usd=5.0, method="dpo", judge="none", gate=True)
    assert request.gguf == ("q8_0", "f16")
    assert (request.judges, request.max_usd, request.max_minutes, request.gate) == ((), 5.0, None, True)
    assert CloudRequest.from_json(json.loads(json.dumps(request.to_json()))) == request
    assert request.overrides.settings("dpo")["training.method"] == "dpo"
    assert "training.method" not in asked().overrides.settings("sft")
    assert asked().model == "meta-llama/Llama-3.1-8B-Instruct"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"test_only": True, "merge_only": True}, "exclude each other"),
        ({"resume": True, "fresh": True}, "one of them"),
        ({"epochs": 0}, "--epochs 0"),
        ({"max_usd": -1.0}, "--max-usd -1: it must be above 0"),
        ({"gpus": 9}, "at most 8 GPUs"),
        ({"method": "ppo"}, "choose sft, dpo"),
        ({"test_only": True, "fresh": True}, "train nothing"),
        ({"judge": "gguf:judge.gguf"}, "is not in the cloud"),
        ({"judge": "openai:http://127.0.0.1:8000/v1:x"}, "is not in the cloud"),
        ({"judge": "vllm:../../etc"}, "name a model on the Hub"),
        ({"judge": "nonsense"}, "not understood"),
    ],
)
def test_options_that_can_not_work_are_refused_before_anything_starts(given: dict, said: str):
    with pytest.raises(UsageError, match=said):
        asked(**given)


def test_a_served_judge_needs_its_image():
    with pytest.raises(UsageError, match="modal: judges"):
        request_from_options(ModalSection(judges=()), judge="vllm:Qwen/Qwen2.5-7B-Instruct")


@pytest.mark.parametrize(
    ("gpu", "gpus", "rented"),
    [
        (None, None, None),
        ("H100", None, "H100"),
        ("H100", 4, "H100:4"),
        ("H100:2", None, "H100:2"),
        (None, 2, "L40S:2"),
        ("a10g", None, "A10"),
        ("H100:2", 2, "H100:2"),
    ],
)
def test_the_gpu_of_a_call(gpu: str | None, gpus: int | None, rented: str | None):
    assert gpu_to_rent(asked(gpu=gpu, gpus=gpus), SECTION) == rented


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
    with pytest.raises(DataError, match="not complete.*--force"):
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
    with pytest.raises(RunError, match="another run is using"):
        lease(tmp_path, "b", clock).take()
    clock.now += LASTS_S
    second = lease(tmp_path, "b", clock)
    second.take()
    clock.now += 61
    with pytest.raises(RunError, match="another run started"):
        first.renew()
    second.renew()
    second.release()
    lease(tmp_path, "c", clock).take()


def test_an_orchestrator_that_starts_again_finds_its_calls_and_another_waits_for_one_that_leaves(tmp_path: Path):
    clock = Clock()
    first = lease(tmp_path, "a", clock)
    first.take()
    first.add_call("train", "fc-1")
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
    staging = VolumeSync(volume, local, lambda: commits.append((volume / "manifest.json").read_text(encoding="utf-8")))
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
    staging = VolumeSync(volume, local, lambda: None)
    staging.bring()
    with pytest.raises(KeyboardInterrupt), publishing(staging, check_s=60):
        (local / "metrics.jsonl").write_text("more", encoding="utf-8")
        raise KeyboardInterrupt
    assert (volume / "metrics.jsonl").read_text(encoding="utf-8") == "more"


# --- the orchestrator


class Plays:
    """Functions that end when they are polled for the third time; training leaves an epoch at each poll."""

    def __init__(self, root: Path, **results: CallResult) -> None:
        self.root, self.results, self.started, self.polls = root, results, [], {}

    def calls(self) -> order.FunctionCalls:
        return order.FunctionCalls(self.start, self.result, lambda: None, lambda: None, sleep=lambda s: None)

    def start(self, name: str, arguments: dict) -> str:
        self.started.append(name if name != "judge_epoch" else f"judge epoch_{arguments['epoch']}")
        if name == "train":
            (self.root / FOLDER / OPENED).write_text(
                json.dumps({"ticket": arguments["ticket"], "epochs": 3, "starts": 1}), encoding="utf-8"
            )
        return f"{name}-{len(self.started)}"

    def result(self, call: str, seconds: float) -> CallResult | None:
        self.polls[call] = self.polls.get(call, 0) + 1
        name = call.split("-")[0]
        if name == "train":
            adapter = self.root / "checkpoints" / f"epoch_{self.polls[call] - 1}" / "adapter_model.safetensors"
            adapter.parent.mkdir(parents=True, exist_ok=True)
            adapter.write_text("", encoding="utf-8")
        if self.polls[call] < 3:
            return None
        return self.results.get(name, CallResult({"court": {"verdict": "REJECTED", "reason": ""}}))


@pytest.fixture
def quiet_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "summary_lines", lambda root: ["done"])


def test_epochs_are_judged_beside_and_the_verdict_is_the_exit_code_only_where_asked(
    tmp_path: Path, quiet_summary: None
):
    plays = Plays(tmp_path)
    old = (
        tmp_path / "checkpoints" / "epoch_0" / "adapter_model.safetensors"
    )  # of a run before: nobody's to judge until training has opened its own
    old.parent.mkdir(parents=True)
    old.write_text("", encoding="utf-8")
    assert order.orchestrate(asked(gate=True), tmp_path, plays.calls(), "call").code == 3
    assert plays.started == ["train", "judge epoch_0", "judge epoch_1", "judge", "merge"]
    assert order.orchestrate(asked(), tmp_path, Plays(tmp_path).calls(), "call-2").code == 0


def test_test_only_and_merge_only_do_only_that(tmp_path: Path, quiet_summary: None):
    for given, started in (({"test_only": True}, ["judge"]), ({"merge_only": True}, ["merge"])):
        plays = Plays(tmp_path)
        assert order.orchestrate(asked(**given), tmp_path, plays.calls(), "call").code == 0
        assert plays.started == started


def test_a_stop_ends_the_order_with_its_code_and_gives_the_volume_back(tmp_path: Path):
    plays = Plays(tmp_path, train=CallResult(error="at the cap", code=5))
    assert order.orchestrate(asked(), tmp_path, plays.calls(), "call").code == 5
    assert "judge" not in plays.started
    assert (
        order.orchestrate(
            asked(test_only=True), tmp_path, Plays(tmp_path, judge=CallResult(error="x", code=1)).calls(), "other"
        ).code
        == 1
    )


def test_a_preempted_orchestrator_waits_for_the_same_training(tmp_path: Path, quiet_summary: None):
    plays = Plays(tmp_path)
    calls = plays.calls()

    def preempted(call: str, seconds: float) -> CallResult | None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        order.orchestrate(
            asked(),
            tmp_path,
            order.FunctionCalls(calls.start, preempted, calls.reload, calls.commit, calls.sleep),
            "call",
        )
    assert order.orchestrate(asked(), tmp_path, calls, "call").code == 0
    assert plays.started.count("train") == 1


# --- what it costs


def test_the_quote_names_every_part_and_the_parts_add_up():
    project = Project(ROOT)
    request = asked()
    lines = quote_lines(project, request.overrides.configure(project), request, SECTION)
    text = "\n".join(lines)
    for part in (
        "train",
        "judge",
        "merge and gguf",
        "judge 2 epochs",
        "trial, estimated",
        "orchestrator",
        "cap 90.00 USD",
        "L40S",
    ):
        assert part in text, part
    begin = next(i for i, line in enumerate(lines) if line.strip().startswith("time"))
    costs = [
        float(found[1])
        for line in lines[begin:]
        if "in all" not in line and "cost" not in line and (found := re.search(r" ([0-9.]+) USD(  |$)", line))
    ]
    whole = next(float(line.split("cost")[1].split()[0]) for line in lines if line.strip().startswith("cost"))
    assert whole == pytest.approx(sum(costs), abs=0.05)
    few = "\n".join(
        quote_lines(
            project,
            asked(epochs=1, judge="none").overrides.configure(project),
            asked(epochs=1, judge="none"),
            SECTION,
        )
    )
    assert "trial" not in few and "judge 1 epoch" not in few


def test_cards_that_would_be_paid_for_and_not_used_are_refused():
    request = asked(method="sft+dpo", gpus=2)
    with pytest.raises(UsageError, match="runs on one GPU"):
        quote_lines(Project(ROOT), request.overrides.configure(Project(ROOT)), request, SECTION)


def test_costs_by_stage_and_how_often_it_was_taken_away():
    entry = {"usd": 0.5, "seconds": 900.0, "ended": "done"}
    ledger = [
        entry | {"stage": "train", "ended": e} for e in ("killed", "interrupted", "interrupted", "capped", "done")
    ] + [entry | {"stage": "merge"}]
    plan = {"result": {"stages": [{"name": "train", "usd": 2.0}, {"name": "merge and gguf", "usd": 0.1}]}}
    stages = {"plan": {"status": "done"} | plan}
    manifest = parse_manifest({"identity": IDENTITY, "output_name": "m", "ledger": ledger, "stages": stages})
    lines = metered_lines(manifest)
    assert "2.5000 USD   quoted 2.00" in lines[0]
    assert "3.0000 USD   quoted 2.10" in lines[-1]
    assert preemption_lines(manifest) == ["  training was preempted 3 times and resumed each time"]


def test_what_goes_wrong_in_a_container_is_a_result_and_what_takes_it_away_is_not(tmp_path: Path):
    done: list[str] = []
    context = ContainerContext(
        tmp_path,
        Project(ROOT),
        lambda: done.append("reload"),
        lambda: done.append("commit"),
        lambda: done.append("keep"),
    )

    def raises(error: BaseException):
        def work() -> dict:
            raise error

        return work

    class OutOfMemoryError(RuntimeError):
        pass

    for error in (MemoryError(), OutOfMemoryError("CUDA out of memory")):
        said = run_guarded(context, raises(error)).error
        assert "per_device_train_batch_size: 1 and gradient_accumulation_steps: 8" in said
    assert run_guarded(context, raises(UsageError("x"))) == CallResult(error="x", code=2)
    assert "modal app logs" in run_guarded(context, raises(ZeroDivisionError("y"))).error
    done.clear()
    with pytest.raises(KeyboardInterrupt):
        run_guarded(context, raises(KeyboardInterrupt()))
    assert done == ["reload", "commit", "keep"]


# --- shards


def test_shards_cover_every_item_once_and_survive_the_loss_of_any(tmp_path: Path):
    items = list(range(11))
    shards = Shards(tmp_path, "answers", {"model": "m"}, 4)
    asked, lost = [], {1: 2, 3: 1}  # shard → times that its machine is lost

    def spread(indices: list[int]) -> list[object]:
        asked.append(indices)
        done: list[object] = []
        for index in indices:
            if lost.get(index, 0):
                lost[index] -= 1
                done.append(RuntimeError("taken away"))
            else:
                done.append(do_shard(shards, index, items, lambda own: [i * i for i in own], lambda: None))
        return done

    assert map_shards(shards, items, spread, lambda: None) == [i * i for i in items]
    assert asked == [[0, 1, 2, 3], [1, 3], [1]]
    assert map_shards(shards, items, spread, lambda: None) == [i * i for i in items]
    assert len(asked) == 3
    shards.file(2).write_text("[1", encoding="utf-8")  # torn
    assert map_shards(shards, items, spread, lambda: None) == [i * i for i in items]
    assert asked[-1] == [2]
    assert Shards(tmp_path, "answers", {"model": "other"}, 4).missing(items) == [0, 1, 2, 3]
    assert map_shards(Shards(tmp_path, "few", 0, 4), [], spread, lambda: None) == []


def test_a_shard_that_is_always_lost_ends_in_a_message_and_the_others_are_kept(tmp_path: Path):
    shards = Shards(tmp_path, "answers", 0, 3)

    def spread(indices: list[int]) -> list[object]:
        return [
            RuntimeError("no card") if i == 1 else do_shard(shards, i, "abcdef", lambda own: [*own], lambda: None)
            for i in indices
        ]

    with pytest.raises(RunError, match="1 of 3 shards of answers were lost 3 times .1: RuntimeError: no card"):
        map_shards(shards, "abcdef", spread, lambda: None)
    assert shards.missing("abcdef") == [1]
    with pytest.raises(RunError, match="1 results for 2 items"):
        do_shard(shards, 1, "abcdef", lambda own: own[:1], lambda: None)


# --- pulling


class Folder:
    """A volume that is a folder; `hostile` is listed beside what lies there."""

    def __init__(self, root: Path, hostile: str = "") -> None:
        self.root, self.hostile, self.read = root, hostile, []

    def files(self, folder: str = "/") -> list[RemoteFile]:
        base = self.root / folder.strip("/")
        found = [base] if base.is_file() else sorted(p for p in base.rglob("*") if p.is_file())
        names = [p.relative_to(self.root).as_posix() for p in found]
        if self.hostile and folder == "/data":
            names.append(self.hostile)
        return [
            RemoteFile(safe_name(n), (self.root / n).stat().st_size if (self.root / n).is_file() else 1) for n in names
        ]

    def chunks(self, path: str):
        file = self.root / path.strip("/")
        if not file.is_file():
            raise FileNotFoundError(path)
        self.read.append(path)
        yield file.read_bytes()


def a_pulled_run(root: Path) -> None:
    import hashlib

    a_run(root)
    outputs = {
        name: hashlib.sha256((root / name).read_bytes()).hexdigest()
        for name in ("data/train.jsonl", "checkpoints/epoch_0/adapter_model.safetensors")
    }
    entry = {"status": "done", "outputs": {name: {"bytes": 0, "sha256": digest} for name, digest in outputs.items()}}
    manifest = {"identity": IDENTITY, "created": "now", "output_name": "m", "stages": {"train": entry}}
    (root / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def test_pulling_checks_hashes_goes_on_and_takes_only_the_run(tmp_path: Path):
    far, target = Folder(tmp_path / "volume"), tmp_path / "run"
    a_pulled_run(far.root)
    for other in ("dataset/train.jsonl", "runs/old/manifest.json", ".cache/x"):
        (far.root / other).parent.mkdir(parents=True, exist_ok=True)
        (far.root / other).write_text("", encoding="utf-8")
    pull(far, target)
    got = sorted(p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_file())
    assert got == [
        "checkpoints/epoch_0/adapter_model.safetensors",
        "data/train.jsonl",
        "manifest.json",
        "metrics.jsonl",
    ]
    (target / "data" / "train.jsonl").unlink()
    far.read.clear()
    pull(far, target)
    assert "/data/train.jsonl" in far.read
    assert "/checkpoints/epoch_0/adapter_model.safetensors" not in far.read
    (far.root / "data" / "train.jsonl").write_text("forged", encoding="utf-8")
    (target / "data" / "train.jsonl").unlink()
    with pytest.raises(RunError, match="its hash differs"):
        pull(far, target)
    assert not list(target.rglob("*train.jsonl*"))
    manifest = json.loads((far.root / "manifest.json").read_text(encoding="utf-8"))
    (far.root / "manifest.json").write_text(json.dumps(manifest | {"created": "later"}), encoding="utf-8")
    with pytest.raises(RunError, match="holds another run"):
        pull(far, target)


@pytest.mark.parametrize(
    "name", ["../x", "data/../../x", "data/./x", "data//x", "data\\x", "C:/x", "data/a\x1b[31m", "data/con.", ""]
)
def test_hostile_names_on_a_volume_are_refused(name: str, tmp_path: Path):
    with pytest.raises(RunError, match="not safe to copy"):
        safe_name(name)
    if name:
        far = Folder(tmp_path / "volume", hostile=name)
        a_pulled_run(far.root)
        with pytest.raises(RunError, match="not safe to copy"):
            pull(far, tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_a_manifest_that_names_files_elsewhere_and_a_link_in_the_target_are_refused(tmp_path: Path):
    far, target = Folder(tmp_path / "volume"), tmp_path / "run"
    a_pulled_run(far.root)
    target.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (target / "data").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="leads out of"):
        pull(far, target)
    assert list((tmp_path / "elsewhere").iterdir()) == []
    manifest = json.loads((far.root / "manifest.json").read_text(encoding="utf-8"))
    manifest["stages"]["train"]["outputs"]["dataset/x"] = {"bytes": 0, "sha256": ""}
    (far.root / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(RunError, match="no part of a run"):
        pull(far, tmp_path / "other")


def test_watching_tells_step_loss_spent_and_who_is_there(tmp_path: Path):
    far = Folder(tmp_path)
    with pytest.raises(RunError, match="holds no run yet"):
        read_progress(far)
    plan = {"status": "done", "result": {"steps": 42, "usd": 0.28, "stages": []}}
    manifest = {
        "identity": IDENTITY,
        "output_name": "m",
        "cost_usd": 0.1,
        "ledger": [],
        "stages": {"export": {"status": "done"}, "plan": plan, "train": {"status": "running"}},
    }
    (tmp_path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    line = {"step": 14, "epoch": 1.0, "loss": 2.5, "tokens": 63000, "tokens_per_s": 3600.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + '\n{"step": 15, "ep', encoding="utf-8")
    (tmp_path / ".meter").write_text(
        json.dumps({"id": "x", "stage": "train", "seconds": 9.0, "usd": 0.02}), encoding="utf-8"
    )
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "lease.json").write_text(json.dumps({"holder": "h", "until": 1000.0}), encoding="utf-8")
    found = read_progress(far, now=lambda: 900.0)
    assert (found.stage, found.training.step, found.usd, found.training.seconds_left) == ("train", 14, 0.12, 35.0)
    assert found.to_json() | {"stages": {}} == {
        "stage": "train", "alive": True, "done": False, "usd": 0.12, "quoted_usd": 0.28, "steps": 42, "step": 14,
        "epoch": 1.0, "loss": 2.5, "tokens_per_s": 3600.0, "seconds_left": 35.0, "stages": {},
    }  # fmt: skip
    text = "\n".join(progress_lines(found))
    for said in (
        "running: train",
        "step 14/42",
        "loss 2.500",
        "3,600 tokens/s",
        "35.0 s of training left",
        "spent 0.12 USD of 0.28 quoted",
    ):
        assert said in text
    gone = "\n".join(progress_lines(read_progress(far, now=lambda: 2000.0)))
    assert "nothing is running" in gone
    assert "train stopped before its end" in gone


def test_the_cost_tables_are_what_the_planner_says_now():
    done = subprocess.run([sys.executable, ROOT / "docs" / "make_costs.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_vllm_s_image_installs_is_pinned():
    lines = (ROOT / "constraints-vllm.txt").read_text(encoding="utf-8").splitlines()
    assert any(line.startswith("vllm==") for line in lines)
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line)] == []


def test_what_is_no_kind_of_gguf_is_refused_before_anything_starts():
    """The names of other tolerances (`merge`, `adapter`) passed for kinds, and failed after the training was paid for."""
    pytest.importorskip("modal")
    from noesis.cloud.entrypoint import _check_gguf

    _check_gguf(asked(gguf="f16,q4_k_m"))
    for kind in ("adapter", "merge", "q9"):
        with pytest.raises(UsageError, match=f"--gguf '{kind}' is not known; choose from f32, f16, q8_0, q4_k_m"):
            _check_gguf(asked(gguf=kind))
