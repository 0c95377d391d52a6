"""The order of a run on Modal: prepare; train, judging each epoch while the next one trains; judge; merge; summarise.

It runs in a small container of its own, so the run continues when the machine that started it is switched off. It
starts Modal functions by name through `FunctionCalls` and waits for them. The calls are recorded in its lease, so after
a restart it waits for the same ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from noesis.cloud.container.prepare import judge_problem
from noesis.cloud.container.spending import Spending
from noesis.cloud.container.workspace import CallResult
from noesis.cloud.limits import OPTIONAL_S, PROBE, QUEUE_S, CallLimit
from noesis.cloud.request import LOCAL_JUDGE, CloudRequest
from noesis.cloud.run_summary import summary_lines
from noesis.cloud.volume.layout import ENDED, FOLDER, SUMMARY, guard_volume
from noesis.cloud.volume.lease import Lease
from noesis.cloud.volume.notes import OpenedRun, judged_epoch_file
from noesis.core.console import duration, say
from noesis.core.errors import CapError, NoesisError, RunError
from noesis.core.files import write_json, write_text
from noesis.core.i18n import N_, _, retold
from noesis.core.project import Project
from noesis.core.rooted import remove
from noesis.run.directory import load_run
from noesis.tribunal.court import Ruling

POLL_S = 10.0
DEPLOYED = ("judge_served", PROBE)  # functions in the judge's app
PARALLEL = {"epoch": "judge_epoch", "shard": "answer_shard"}  # how calls of one function are named → the function
UNLIMITED = CallLimit(24 * 3600.0, 1, 0.0)


@dataclass(frozen=True)
class FunctionCalls:
    """How the orchestrator reaches Modal.

    start: a function's name, its arguments, its time-out and tries → the call's id
    result: a call's id, seconds to wait → its result, None if it has not ended
    cancel: a call's id → it is stopped, and its container with it
    reload, commit: of the volume, as in `ContainerContext`
    """

    start: Callable[[str, dict[str, Any], CallLimit], str]
    result: Callable[[str, float], CallResult | None]
    cancel: Callable[[str], None]
    reload: Callable[[], None]
    commit: Callable[[], None]
    sleep: Callable[[float], None] = time.sleep


def orchestrate(
    request: CloudRequest,
    root: Path,
    calls: FunctionCalls,
    holder: str,
    *,
    project: Project | None = None,
    spending: Spending | None = None,
) -> CallResult:
    """Everything that was asked for.

    Args:
        spending: what the calls may cost; None: they are not limited.

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
    remove(root / FOLDER / ENDED)
    leaving = True
    if spending is None:
        spending = Spending(root, lambda function: UNLIMITED, None)
    orchestrator = _Orchestrator(request, root, project, calls, lease, spending)
    try:
        try:
            result = orchestrator.run()
        except CapError as error:
            result = CallResult.failed(error)
        calls.reload()
        if result.error is None:
            lines = summary_lines(root, no_trial=result.value["no_trial"])
            write_text(root / SUMMARY, "\n".join(lines) + "\n")
            result = replace(result, value=result.value | {"lines": lines})
        write_json(root / FOLDER / ENDED, {"error": result.error, "code": result.code})
        leaving = orchestrator.cancel_all()
        return result
    except Exception:
        orchestrator.cancel_all()
        raise
    except BaseException:  # stopped, and its app with it; or preempted, and a restarted one waits for the same calls
        orchestrator.cancel_all(apart=True)
        raise
    finally:
        lease.release(leaving=leaving)


@dataclass(frozen=True)
class _Orchestrator:
    """One run of the orchestrator, while it holds the lease.

    skipped: epochs that are not judged, since their call could not be started
    """

    request: CloudRequest
    root: Path
    project: Project | None
    calls: FunctionCalls
    lease: Lease
    spending: Spending
    skipped: set[str] = field(default_factory=set)

    def run(self) -> CallResult:
        """Train, judge, merge: what the request asks for, up to the first error."""
        what, request_json = self.request.what, self.request.to_json()
        ruling: Ruling | None = None
        self.spending.is_own = lambda: what != "all" or self._opened() is not None
        prepared = self.call("prepare", {"request": request_json})
        if prepared.error is not None:
            return prepared
        if prepared.value.get("continues", True):
            self.spending.is_own = lambda: True
        problem = self.request.judge_problem or prepared.value["judge_problem"]
        probed = what != "merge" and problem is None and bool(self.request.served_judges) and self._trial_is_due()
        if what == "all":
            self._start("train", "train", {"request": request_json, "ticket": self.lease.holder})
            if probed:  # meanwhile: a judge that can't start is heard of early
                with suppress(CapError):  # not beside training, then after it, when the cap leaves more
                    self._start("probe", PROBE, {"request": request_json})
            trained = self._wait("train", self.judge_trained_epochs)
            if trained.error is not None:
                return trained
            self.judge_trained_epochs()  # what a short training left since the last poll
        if what != "merge":
            if probed:
                found = self.call("probe", {"request": request_json}, PROBE, meanwhile=self.judge_trained_epochs)
                problem = found.value.get("judge_problem") or (found.error and self._unprobed(found.error))
            if problem is not None:
                say(_("  there will be no trial: {problem}", problem=retold(problem)))
            elif self.request.shards > 1 and self.request.judges and self.project is not None:
                self.answer_in_shards(self.project)
            request = replace(self.request, judge_problem=problem)
            judged = self.call(
                "judge",
                {"request": request.to_json(), "again": what == "test"},
                "judge_served" if request.served_judges and problem is None else "judge",
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
        function: str | None = None,
        *,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> CallResult:
        """The result of the call `name`, which is started unless this orchestrator started it before a restart.

        Args:
            function: the function that is called, if its name is another.

        Raises:
            CapError: what the cap leaves does not pay for it.
        """
        self._start(name, function or name, arguments)
        return self._wait(name, meanwhile)

    def _unprobed(self, why: str) -> str:
        return judge_problem(LOCAL_JUDGE + self.request.served_judges[0], why)

    def _trial_is_due(self) -> bool:
        """Whether a trial may have to be held: it is asked for, or the run on the volume has none yet."""
        if self.request.what == "test" or self.request.fresh or not (self.root / "manifest.json").is_file():
            return True
        return not load_run(self.root).is_done("trial")

    def _opened(self) -> OpenedRun | None:
        """The run that this command's training has opened; None before it has."""
        opened = OpenedRun.read(self.root)
        return opened if opened is not None and opened.ticket == self.lease.holder else None

    def judge_trained_epochs(self) -> None:
        """Start judging each epoch that training has finished, except the last, which is judged as the run's own."""
        opened = self._opened()
        epochs = 0 if opened is None else opened.epochs
        for epoch in range(epochs - 1):
            name = f"epoch_{epoch}"
            trained = (self.root / "checkpoints" / name / "adapter_model.safetensors").is_file()
            if (
                trained
                and name not in {*self.lease.calls, *self.skipped}
                and not judged_epoch_file(self.root, epoch).is_file()
            ):
                say(_("  {name} is trained: judging it while the next one trains", name=name))
                try:
                    self._start(name, "judge_epoch", {"epoch": epoch})
                except NoesisError as error:  # the run needs none of it
                    self.skipped.add(name)
                    say(_("  {name} is not judged: {error}", name=name, error=error))

    def wait_for_epochs(self) -> None:
        """Wait a while for the started epochs to be judged; one that is not is reported and changes nothing else."""
        until = self.spending.clock() + OPTIONAL_S
        for name in [name for name in self.lease.calls if name.startswith("epoch_")]:
            result = self._wait(name, longest=max(until - self.spending.clock(), 0.0))
            if result.error is not None:
                say(_("  {name} was not judged: {error}", name=name, error=retold(result.error)))

    def answer_in_shards(self, project: Project) -> None:
        """Let several machines answer the trial's prompts; what is lost for good the judging container answers."""
        from noesis.cloud.container.answers import trial_shards
        from noesis.cloud.container.shards import map_shards

        shards, chunks = trial_shards(self.root, project, self.request)
        request_json = self.request.to_json()

        def spread(indices: list[int]) -> list[CallResult | RunError]:
            names = {i: f"shard_{i}" for i in indices}
            refused: dict[int, CallResult] = {}
            for i, name in names.items():  # start all before waiting for any
                try:
                    self._start(name, "answer_shard", {"request": request_json, "index": i})
                except CapError as error:
                    refused[i] = CallResult.failed(error)
            results = [refused[i] if i in refused else self._wait(name) for i, name in names.items()]
            for i, name in names.items():
                if i not in refused:
                    self.lease.remove_call(name)
            return [result if result.error is None else RunError(result.error) for result in results]

        try:
            map_shards(shards, chunks, spread, self.calls.reload)
        except RunError as error:
            say(f"  {error}")

    def _start(self, name: str, function: str, arguments: dict[str, Any]) -> None:
        """Start a call under `name`, unless there is one.

        Raises:
            CapError: what the cap leaves does not pay for it.
        """
        running = name in self.lease.calls
        if running and name in self.spending.reserved:
            return
        limit = self.spending.reserve(name, function, running=running)
        if not running:
            try:
                self.lease.add_call(name, self.calls.start(function, arguments, limit))
            except BaseException:
                if name not in self.lease.calls:
                    self.spending.reserved.pop(name)
                raise

    def _wait(
        self, name: str, meanwhile: Callable[[], None] = lambda: None, *, longest: float | None = None
    ) -> CallResult:
        """The result of the call `name`; until it ends, the lease is renewed and `meanwhile` called.

        Args:
            longest: seconds from now; None: until all its tries have timed out, and a card has been waited for.
        """
        call = self.lease.calls[name]
        if name not in self.spending.reserved:  # started before this orchestrator began again
            self.spending.reserve(name, PARALLEL.get(name.partition("_")[0], name), running=True)
        until = self.spending.clock() + longest if longest is not None else self._deadline(name)
        while (result := self.calls.result(call, POLL_S)) is None:
            self.calls.reload()
            if self.spending.clock() >= until:
                result = self._give_up(name, call)
                break
            self.lease.renew()
            meanwhile()
        self.calls.reload()
        self.spending.settle(name, call, lost=result.lost, worked_s=result.value.get("seconds"))
        return result

    def _deadline(self, name: str) -> float:
        reserved = self.spending.reserved[name]
        return reserved.began + reserved.limit.seconds + QUEUE_S

    def _give_up(self, name: str, call: str) -> CallResult:
        waited = duration(self.spending.seconds(name))
        self._cancel(name, call)
        return CallResult(
            error=N_(
                "{name} did not end within {waited} and was cancelled: there may have been no GPU. "
                "What was finished is kept, and the same command continues",
                name=name,
                waited=waited,
            ),
            code=1,
            lost=True,
        )

    def _cancel(self, name: str, call: str) -> None:
        try:
            self.calls.cancel(call)
        except Exception as error:  # it leaves, whatever happens
            say(_("  {name} could not be cancelled and ends by itself: {error}", name=name, error=error))

    def _is_apart(self, function: str) -> bool:
        return function in DEPLOYED or (function == "train" and self.request.nodes > 1)

    def cancel_all(self, *, apart: bool = False) -> bool:
        """Stop the calls that have not ended: nobody would wait for them.

        Args:
            apart: only those in apps of their own, which do not stop with the app of this orchestrator.

        Returns:
            whether there were any: they may still be saving.
        """
        left = {
            name: self.lease.calls[name]
            for name, reserved in self.spending.reserved.items()
            if name in self.lease.calls and (not apart or self._is_apart(reserved.function))
        }
        for name, call in left.items():
            self._cancel(name, call)
            self.spending.settle(name, call, lost=True)
            self.lease.calls.pop(name)
        return bool(left)
