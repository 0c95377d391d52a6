"""Containers: `python -m modal._container_entrypoint` in a subprocess, from its start to its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import shutil
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modal_proto import api_pb2

from .functions import RESULT, Function, Input
from .isolation import Box
from .packages import named
from .rpc import TASK_HEADER
from .volumes import Copy


@dataclass
class Task:
    """A container of a function.

    Attributes:
        copies: volume → the container's copy.
        inputs: what it works on now.
        preempted: it was told to go; its inputs run again elsewhere.
    """

    id: str
    app_id: str
    function: Function
    folder: Path
    copies: dict[str, Copy] = field(default_factory=dict)
    inputs: dict[str, Input] = field(default_factory=dict)
    process: asyncio.subprocess.Process | None = None
    started_at: float = field(default_factory=time.time)
    ended_at: float = 0.0
    commits: int = 0
    served: int = 0
    preempted: bool = False
    stopping: bool = False
    failed: bool = False

    @property
    def alive(self) -> bool:
        return not self.ended_at

    @property
    def seconds(self) -> float:
        """How long it ran: what the service would charge."""
        return (self.ended_at or time.time()) - self.started_at

    def pids(self) -> list[int]:
        """The container's process and what it started."""
        if self.process is None:
            return []
        found = []
        for name in os.listdir("/proc"):
            with contextlib.suppress(OSError, ValueError):  # gone meanwhile, or not a process
                if os.getsid(int(name)) == self.process.pid:
                    found.append(int(name))
        return found

    def signal(self, number: int) -> None:
        """To the container's process alone; SIGKILL to all that it started."""
        if self.process is None or self.process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            if number == signal.SIGKILL:
                os.killpg(self.process.pid, number)
            else:
                os.kill(self.process.pid, number)


def environment(plane: Any, task: Task) -> tuple[dict[str, str], str]:
    """The image's ENV, the secrets, and Modal's own variables; and the working folder."""
    definition = task.function.definition
    env = {
        "PATH": os.environ["PATH"],
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        "TMPDIR": str(task.folder / "tmp"),
    } | plane.container_env
    if plane.hub.models:
        env |= {"HF_ENDPOINT": f"{plane.store.url}/hub", "HF_HUB_OFFLINE": "0"}
    cwd = "/root"
    for line in plane.mounts.commands(definition.image_id):
        if line.startswith("ENV "):
            for pair in shlex.split(line[4:]):
                key, _, value = pair.partition("=")
                env[key] = value
        elif line.startswith("WORKDIR "):
            cwd = shlex.split(line[8:])[0]
    for secret_id in definition.secret_ids:
        env |= plane.apps.secrets[secret_id]
    env |= {
        "MODAL_SERVER_URL": plane.url,
        "MODAL_IS_REMOTE": "1",
        "MODAL_TASK_ID": task.id,
        "MODAL_IMAGE_ID": definition.image_id,
        "MODAL_ENVIRONMENT": "main",
        "MODAL_CONTAINER_ARGUMENTS_PATH": str(task.folder / "arguments.bin"),
        "MODAL_CONFIG_PATH": "/dev/null",
        "MODAL_OVERRIDE_HEADERS": f"{TASK_HEADER}:{task.id}",
    }
    return env, cwd


def prepare(plane: Any, task: Task) -> tuple[list[str], dict[str, str], str]:
    """Everything that the container reads, on disk; its command, environment and place."""
    definition = api_pb2.Function()
    definition.CopyFrom(task.function.definition)
    for (
        mount
    ) in definition.volume_mounts:  # as in the cloud, where a commit at the end can come too late for the next function
        mount.allow_background_commits = plane.background_commits
    files = task.folder / "files"
    (files / "root").mkdir(parents=True)
    (task.folder / "tmp").mkdir()
    for path, (sha256_hex, mode) in plane.mounts.files_of(list(definition.mount_ids)).items():
        target = files / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(plane.store.path(sha256_hex), target)
        target.chmod(mode or 0o644)
    for path, text in plane.extra_files.items():
        (files / path.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        (files / path.lstrip("/")).write_text(text, encoding="utf-8")
    volumes = {}
    for mount in definition.volume_mounts:
        copy = Copy(plane.volumes.by_id[mount.volume_id], task.folder / "volumes" / mount.volume_id)
        task.copies[mount.volume_id] = copy
        sub = mount.sub_path.lstrip("/")
        (copy.folder / sub).mkdir(parents=True, exist_ok=True)
        volumes[mount.mount_path] = copy.folder / sub
    app = plane.apps.apps[task.app_id]
    arguments = api_pb2.ContainerArguments(
        task_id=task.id,
        function_id=task.function.id,
        app_id=task.app_id,
        function_def=definition,
        serialized_params=task.function.serialized_params,
        environment_name="main",
        app_layout=plane.functions.layout(app),
    )
    (task.folder / "arguments.bin").write_bytes(arguments.SerializeToString())
    env, cwd = environment(plane, task)
    packages = named(plane.mounts.commands(definition.image_id)) if plane.only_pinned else frozenset()
    return plane.isolation.command(Box(task.folder, files, volumes, env, cwd, packages, plane.visible, plane.hidden))


async def run(plane: Any, task: Task) -> None:
    """Start the container, collect what it prints, wait for its end, and settle what it left undone."""
    await asyncio.sleep(plane.real(plane.dispatch_delay))
    task.started_at = time.time()
    command, env, cwd = await asyncio.to_thread(prepare, plane, task)
    if task.stopping:
        task.ended_at = time.time()
        plane.ended(task)
        return
    task.process = await asyncio.create_subprocess_exec(
        *command,
        env=env,
        cwd=cwd,
        start_new_session=True,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # ignored under `&` otherwise
    )
    streams = (
        (task.process.stdout, api_pb2.FILE_DESCRIPTOR_STDOUT),
        (task.process.stderr, api_pb2.FILE_DESCRIPTOR_STDERR),
    )
    readers = [asyncio.create_task(_collect(plane, task, stream, descriptor)) for stream, descriptor in streams]
    code = await task.process.wait()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(task.process.pid, signal.SIGKILL)  # what it left running
    await asyncio.wait(readers, timeout=2)
    task.ended_at = time.time()
    undone = list(task.inputs.values())
    task.inputs.clear()
    for waiting in undone:
        if task.stopping:
            plane.functions.finish(
                waiting,
                RESULT(status=RESULT.GENERIC_STATUS_TERMINATED, exception="Function call was terminated"),
                0,
                task,
            )
        elif task.preempted:
            plane.enqueue(waiting, first=True)
        else:
            task.failed = True
            text = f"Container {task.id} exited with code {code} while it ran an input"
            plane.functions.finish(
                waiting, RESULT(status=RESULT.GENERIC_STATUS_FAILURE, exception=text, exitcode=code & 0xFF), 0, task
            )
    if not plane.keep:
        await asyncio.to_thread(shutil.rmtree, task.folder, True)
    plane.ended(task)


async def _collect(plane: Any, task: Task, stream: Any, descriptor: int) -> None:
    app = plane.apps.apps[task.app_id]
    rest = b""
    while chunk := await stream.read(65536):
        whole, newline, rest = (rest + chunk).rpartition(b"\n")
        if newline:
            _log(plane, app, task, (whole + newline).decode(errors="replace"), descriptor)
    if rest:
        _log(plane, app, task, rest.decode(errors="replace"), descriptor)


def _log(plane: Any, app: Any, task: Task, text: str, descriptor: int) -> None:
    now = time.time()
    item = api_pb2.TaskLogs(data=text, timestamp=now, timestamp_ns=int(now * 1e9), file_descriptor=descriptor)
    app.logs.append(
        api_pb2.TaskLogsBatch(
            task_id=task.id, function_id=task.function.id, entry_id=str(len(app.logs) + 1), items=[item]
        )
    )
    app.wake()
    plane.faults.printed(task, text)


class Containers:
    """The calls that containers make."""

    def __init__(self, plane: Any) -> None:
        self.plane = plane

    async def ContainerHello(self, request: Any, task_id: str) -> Any:
        return self.plane.empty

    async def ContainerHeartbeat(self, request: Any, task_id: str) -> Any:
        return api_pb2.ContainerHeartbeatResponse()

    async def FunctionGetDynamicConcurrency(self, request: Any, task_id: str) -> Any:
        return api_pb2.FunctionGetDynamicConcurrencyResponse(concurrency=request.target_concurrency)

    async def FunctionGetInputs(self, request: Any, task_id: str) -> Any:
        task = self.plane.tasks[task_id]
        found = await self.plane.next_input(task)
        if found is None:
            return api_pb2.FunctionGetInputsResponse(inputs=[api_pb2.FunctionGetInputsItem(kill_switch=True)])
        kind = (
            api_pb2.FUNCTION_CALL_INVOCATION_TYPE_SYNC
            if found.call.sync
            else api_pb2.FUNCTION_CALL_INVOCATION_TYPE_ASYNC
        )
        item = api_pb2.FunctionGetInputsItem(
            input_id=found.id,
            input=found.item,
            function_call_id=found.call.id,
            function_call_invocation_type=kind,
            retry_count=found.retry_count,
            function_map_idx=found.idx,
        )
        return api_pb2.FunctionGetInputsResponse(inputs=[item])

    async def FunctionPutOutputs(self, request: Any, task_id: str) -> Any:
        task = self.plane.tasks[task_id]
        for output in request.outputs:
            done = task.inputs.pop(output.input_id, None)
            if done is not None:
                task.failed = task.failed or output.result.status != RESULT.GENERIC_STATUS_SUCCESS
                self.plane.functions.finish(done, output.result, output.data_format, task)
        return self.plane.empty

    async def TaskResult(self, request: Any, task_id: str) -> Any:
        """The app could not be imported: every waiting input of the function fails with that."""
        task = self.plane.tasks[task_id]
        task.failed = True
        for waiting in self.plane.take_all(task.function.id):
            self.plane.functions.finish(waiting, request.result, 0, task)
        return self.plane.empty
