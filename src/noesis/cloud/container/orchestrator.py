"""The order of a run on Modal: prepare; train, judging each epoch while the next one trains; judge; merge; summarise.

It runs in a small container of its own, so the run continues when the machine that started it is switched off. It
starts Modal functions by name through `FunctionCalls` and waits for them. The calls are recorded in its lease, so after
a restart it waits for the same ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from noesis.cloud.container.prepare import judge_problem
from noesis.cloud.container.workspace import CallResult
from noesis.cloud.request import LOCAL_JUDGE, CloudRequest
from noesis.cloud.run_summary import summary_lines
from noesis.cloud.volume.layout import ENDED, FOLDER, SUMMARY, guard_volume
from noesis.cloud.volume.lease import Lease
from noesis.cloud.volume.notes import OpenedRun, judged_epoch_file
from noesis.core.console import say
from noesis.core.errors import RunError
from noesis.core.files import write_json, write_text
from noesis.core.project import Project
from noesis.run.directory import load_run
from noesis.tribunal.court import Ruling

POLL_S = 10.0
DEPLOYED = ("judge_served", "probe_judge")  # functions in the judge's app


@dataclass(frozen=True)
class FunctionCalls:
    """How the orchestrator reaches Modal.

    start: a function's name and its arguments → the call's id
    result: a call's id, seconds to wait → its result, None if it has not ended
    reload, commit: of the volume, as in `ContainerContext`
    cancel: a call's id → it ends soon, and its container saves
    """

    start: Callable[[str, dict[str, Any]], str]
    result: Callable[[str, float], CallResult | None]
    reload: Callable[[], None]
    commit: Callable[[], None]
    cancel: Callable[[str], None] = lambda call: None
    sleep: Callable[[float], None] = time.sleep


def orchestrate(
    request: CloudRequest, root: Path, calls: FunctionCalls, holder: str, *, project: Project | None = None
) -> CallResult:
    """Everything that was asked for.

    Returns:
        its exit code; `value` has `verdict` and the `lines` to print. Or the error of the stage that failed.
    """
    lease = Lease(root, holder, calls.commit, calls.reload, sleep=calls.sleep)
    calls.reload()
    try:
        guard_volume(root)
    except RunError as error:
        return CallResult.failed(error)
    lease.take()
    (root / FOLDER / ENDED).unlink(missing_ok=True)
    leaving = True
    orchestrator = _Orchestrator(request, root, project, calls, lease)
    try:
        result = orchestrator.run()
        calls.reload()
        if result.error is None:
            lines = summary_lines(root, no_trial=result.value["no_trial"])
            write_text(root / SUMMARY, "\n".join(lines) + "\n")
            result = replace(result, value=result.value | {"lines": lines})
        write_json(root / FOLDER / ENDED, {"error": result.error, "code": result.code})
        leaving = False
        return result
    finally:
        orchestrator.cancel_calls_apart()
        lease.release(leaving=leaving)


@dataclass(frozen=True)
class _Orchestrator:
    """One run of the orchestrator, while it holds the lease.

    apart: calls under way of functions that are deployed, and not stopped with the app of this orchestrator
    """

    request: CloudRequest
    root: Path
    project: Project | None
    calls: FunctionCalls
    lease: Lease
    apart: set[str] = field(default_factory=set)

    def run(self) -> CallResult:
        """Train, judge, merge: what the request asks for, up to the first error."""
        what, request_json = self.request.what, self.request.to_json()
        ruling: Ruling | None = None
        prepared = self.call("prepare", {"request": request_json})
        if prepared.error is not None:
            return prepared
        problem = self.request.judge_problem or prepared.value["judge_problem"]
        probed = what != "merge" and problem is None and bool(self.request.served_judges) and self._trial_is_due()
        if probed:  # while training runs; a judge that can't start is heard of early
            self._start("probe", "probe_judge", {"request": request_json})
        if what == "all":
            trained = self.call(
                "train", {"request": request_json, "ticket": self.lease.holder}, meanwhile=self.judge_trained_epochs
            )
            if trained.error is not None:
                return trained
            self.judge_trained_epochs()  # what a short training left since the last poll
        if what != "merge":
            if probed:
                found = self._wait("probe", self.judge_trained_epochs)
                problem = found.value.get("judge_problem") or (found.error and self._unprobed(found.error))
            if problem is not None:
                say(f"  there will be no trial: {problem}")
            elif self.request.shards > 1 and self.request.judges and self.project is not None:
                self.answer_in_shards(self.project)
            request = replace(self.request, judge_problem=problem)
            judged = self.call(
                "judge",
                {"request": request.to_json(), "again": what == "test"},
                function="judge_served" if request.served_judges and problem is None else "judge",
                meanwhile=self.judge_trained_epochs,
            )
            if judged.error is not None:
                return judged
            ruling = Ruling.from_json(judged.value["court"])
        self.wait_for_epochs()
        if what != "test":
            merged = self.call("merge", {"request": request_json, "again": what == "merge"})
            if merged.error is not None:
                return merged
        verdict, code = (None, 0) if ruling is None else (ruling.verdict, ruling.exit_code)
        return CallResult({"verdict": verdict, "no_trial": problem}, code=code if self.request.gate else 0)

    def call(
        self,
        name: str,
        arguments: dict[str, Any],
        *,
        function: str | None = None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> CallResult:
        """The result of the call `name`, which is started unless this orchestrator started it before a restart.

        Args:
            function: the function that is called, if its name is another.
        """
        self._start(name, function or name, arguments)
        return self._wait(name, meanwhile)

    def cancel_calls_apart(self) -> None:
        """Stop what would go on, and be paid for, without this orchestrator; a restarted one starts it again."""
        for name in sorted(self.apart):
            try:
                self.calls.cancel(self.lease.calls[name])
            except Exception as error:  # it leaves, whatever happens
                say(f"  {name} could not be cancelled: {error}")
            self.lease.remove_call(name)

    def _unprobed(self, why: str) -> str:
        return judge_problem(LOCAL_JUDGE + self.request.served_judges[0], why)

    def _trial_is_due(self) -> bool:
        """Whether a trial may have to be held: it is asked for, or the run on the volume has none yet."""
        if self.request.what == "test" or self.request.fresh or not (self.root / "manifest.json").is_file():
            return True
        return not load_run(self.root).is_done("trial")

    def judge_trained_epochs(self) -> None:
        """Start judging each epoch that training has finished, except the last, which is judged as the run's own."""
        opened = OpenedRun.read(self.root)
        epochs = opened.epochs if opened is not None and opened.ticket == self.lease.holder else 0
        for epoch in range(epochs - 1):
            name = f"epoch_{epoch}"
            trained = (self.root / "checkpoints" / name / "adapter_model.safetensors").is_file()
            if trained and name not in self.lease.calls and not judged_epoch_file(self.root, epoch).is_file():
                say(f"  {name} is trained: judging it while the next one trains")
                self._start(name, "judge_epoch", {"epoch": epoch})

    def wait_for_epochs(self) -> None:
        """Wait until the started epochs are judged; one that failed is reported and changes nothing else."""
        for name in [name for name in self.lease.calls if name.startswith("epoch_")]:
            result = self._wait(name)
            if result.error is not None:
                say(f"  {name} was not judged: {result.error}")

    def answer_in_shards(self, project: Project) -> None:
        """Let several machines answer the trial's prompts; what is lost for good the judging container answers."""
        from noesis.cloud.container.answers import trial_shards
        from noesis.cloud.container.shards import map_shards

        shards, chunks = trial_shards(self.root, project, self.request)
        request_json = self.request.to_json()

        def spread(indices: list[int]) -> list[CallResult | RunError]:
            for i in indices:  # start all before waiting for any
                self._start(f"shard_{i}", "answer_shard", {"request": request_json, "index": i})
            results = [self._wait(f"shard_{i}") for i in indices]
            for i in indices:
                self.lease.remove_call(f"shard_{i}")
            return [result if result.error is None else RunError(result.error) for result in results]

        try:
            map_shards(shards, chunks, spread, self.calls.reload)
        except RunError as error:
            say(f"  {error}")

    def _start(self, name: str, function: str, arguments: dict[str, Any]) -> None:
        """Start a call under `name`, unless there is one."""
        if name not in self.lease.calls:
            self.lease.add_call(name, self.calls.start(function, arguments))
        if function in DEPLOYED:
            self.apart.add(name)

    def _wait(self, name: str, meanwhile: Callable[[], None] = lambda: None) -> CallResult:
        """The result of the call `name`; until it ends, the lease is renewed and `meanwhile` called."""
        while (result := self.calls.result(self.lease.calls[name], POLL_S)) is None:
            self.calls.reload()
            self.lease.renew()
            meanwhile()
        self.apart.discard(name)
        self.calls.reload()
        return result
