"""The order of a run in the cloud: train, with the judging of each epoch beside the training of the next; judge; merge; say what lies where.

It runs in a small container of its own, so that the run goes on when the machine that started it is closed. It starts the functions by
name through `Hands` and waits; what it started is noted in its lease, so that after a restart it waits for the same calls.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noesis.cloud.container.workspace import CallResult
from noesis.cloud.request import CloudRequest
from noesis.cloud.run_summary import summary_lines
from noesis.cloud.volume.layout import EPOCHS, FOLDER, OPENED, SUMMARY
from noesis.cloud.volume.lease import Lease
from noesis.core.console import say
from noesis.core.errors import RunError
from noesis.core.files import write_text
from noesis.core.project import Project

POLL_S = 10.0


@dataclass(frozen=True)
class FunctionCalls:
    """What a conductor does through Modal."""

    start: Callable[[str, dict[str, Any]], str]  # a function's name, its arguments → the call's id
    result: Callable[[str, float], CallResult | None]  # of a call, within so many seconds
    reload: Callable[[], None]
    commit: Callable[[], None]
    sleep: Callable[[float], None] = time.sleep


def orchestrate(
    request: CloudRequest, root: Path, hands: FunctionCalls, holder: str, *, project: Project | None = None
) -> CallResult:
    """The whole of what was asked for.

    Returns:
        `code` for the exit, `lines` to print, and `error` where it stopped.
    """
    lease = Lease(root, holder, hands.commit, hands.reload, sleep=hands.sleep)
    hands.reload()
    lease.take()
    leaving = True
    try:
        done = _work(request, root, hands, lease, project)
        hands.reload()
        if "error" not in done:
            done |= {"lines": summary_lines(root)}
            write_text(root / SUMMARY, "\n".join(done["lines"]) + "\n")
        leaving = False
        return done
    finally:
        lease.release(leaving=leaving)


def _work(request: CloudRequest, root: Path, hands: FunctionCalls, lease: Lease, project: Project | None) -> CallResult:
    asked = request.as_json()
    beside = EpochJudging(root, hands, lease)
    if request.what == "all":
        done = wait(hands, lease, "train", {"request": asked, "ticket": lease.holder}, meanwhile=beside.start_ready)
        if "error" in done:
            return done
        beside.start_ready()  # what a short training left since
    verdict = None
    if request.what != "merge" and request.shards > 1 and request.judges and project is not None:
        _answer_in_shards(request, root, project, hands, lease)
    if request.what != "merge":
        done = wait(
            hands, lease, "judge", {"request": asked, "again": request.what == "test"}, meanwhile=beside.start_ready
        )
        if "error" in done:
            return done
        verdict = str(done["court"]["verdict"])
    beside.finish()
    if request.what != "test":
        done = wait(hands, lease, "merge", {"request": asked, "again": request.what == "merge"})
        if "error" in done:
            return done
    from noesis.tribunal.court import Ruling

    code = Ruling(verdict, "").exit_code if request.gate and verdict is not None else 0
    return {"code": code, "verdict": verdict}


def _answer_in_shards(request: CloudRequest, root: Path, project: Project, hands: FunctionCalls, lease: Lease) -> None:
    """Base and tuned model answer the trial's prompts on so many machines; the judging container answers itself what is lost for good."""
    from noesis.cloud.container.answers import trial_shards
    from noesis.cloud.container.shards import map_shards

    shards, chunks = trial_shards(root, project, request)
    asked = request.as_json()

    def spread(indices: list[int]) -> list[Any]:
        for i in indices:  # all of them are started before any is waited for
            if f"shard_{i}" not in lease.calls:
                lease.note(f"shard_{i}", hands.start("answer_shard", {"request": asked, "index": i}))
        found = [wait(hands, lease, f"shard_{i}", {}) for i in indices]
        for i in indices:
            lease.forget(f"shard_{i}")
        return [RunError(str(result["error"])) if "error" in result else result for result in found]

    try:
        map_shards(shards, chunks, spread, hands.reload)
    except RunError as error:
        say(f"  {error}")


def wait(
    hands: FunctionCalls,
    lease: Lease,
    name: str,
    arguments: dict[str, Any],
    *,
    meanwhile: Callable[[], None] = lambda: None,
) -> CallResult:
    """What the function `name` returns; it is started unless an earlier life of this conductor did so."""
    if name not in lease.calls:
        lease.note(name, hands.start(name, arguments))
    while True:
        found = hands.result(lease.calls[name], POLL_S)
        if found is not None:
            break
        hands.reload()
        lease.renew()
        meanwhile()
    hands.reload()
    return found


class EpochJudging:
    """Judging of the epochs but the last while training goes on; each writes a file of its own, so that no two containers write one."""

    def __init__(self, root: Path, hands: FunctionCalls, lease: Lease) -> None:
        self.root, self.hands, self.lease = root, hands, lease

    def start_ready(self) -> None:
        """Start judging what training has left since the last look."""
        for epoch in range(self._epochs() - 1):  # the last one is judged as the run's own
            name = f"epoch_{epoch}"
            whole = (self.root / "checkpoints" / name / "adapter_model.safetensors").is_file()
            if whole and name not in self.lease.calls and not (self.root / EPOCHS / f"{name}.json").is_file():
                say(f"  {name} is trained: judging it beside the training of the next")
                self.lease.note(name, self.hands.start("judge_epoch", {"epoch": epoch}))

    def finish(self) -> None:
        """Wait for those that are under way; one that failed is said and changes nothing else."""
        for name in [name for name in self.lease.calls if name.startswith("epoch_")]:
            found = wait(self.hands, self.lease, name, {})
            if "error" in found:
                say(f"  {name} was not judged: {found['error']}")

    def _epochs(self) -> int:
        """Of the run, once training has opened it; 0 before."""
        note = self.root / FOLDER / OPENED
        found = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else {}
        return int(found["epochs"]) if found.get("ticket") == self.lease.holder else 0
