"""The control plane: starts and stops, hands inputs to containers, injects faults, runs `modal` against itself. See README.md."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import string
import subprocess
import sys
import tempfile
import threading
from collections import defaultdict, deque
from pathlib import Path
from typing import Any

from aiohttp import web
from google.protobuf.empty_pb2 import Empty
from grpclib.server import Server
from modal_proto import api_pb2

from . import tasks as containers
from .apps import LIVE, App, Apps
from .blobs import Mounts, Store
from .faults import Fault, Faults, RpcFault, RpcFaults
from .functions import RESULT, Function, Functions, Input
from .hub import Hub
from .isolation import CHECKOUT, choose
from .rpc import Call, Tokens, servicer
from .tasks import Containers, Task
from .volumes import Volumes

ALPHABET = string.ascii_letters + string.digits


class ControlPlane:
    """A control plane on loopback, in a thread of this process; `with ControlPlane() as plane:`.

    Attributes:
        calls: every RPC answered, in order.
        apps, functions, volumes, mounts: what was declared; `definition("train")` finds a function.
        tasks: every container there was, by id.
        background_commits: also commit when a container ends, as the cloud does; off, so that a forgotten `commit()` shows.
        names_of_runs: `modal app logs NAME` finds apps of `modal run` too; off, since the service finds deployed apps only.
        only_pinned: a container can import only what its image pins, what that requires, and what Modal brings.
        extra_files: path in the container → text, beside what was uploaded ("/root/sitecustomize.py" runs before anything else).
        commits_reload: a commit also shows what others committed, and fails while a file is open, as `reload()` does.
        max_gpus: at once, over all containers; who asks for more waits.
        dispatch_delay: seconds from an input's arrival to its container's start, as for a card that is not free yet.
        overlap: a preempted input runs again elsewhere at once, while its first container still leaves.
        speed: seconds of this plane's clock (time-outs, hangs, delays) in one of this machine's.
        hub: models that containers can download: `plane.hub.add("org/name", folder, gated=True)`, `plane.hub.accepted.add("hf_x")`.
        clusters: functions that run on several machines may be declared; their calls are not run.
        billing: rows for `modal billing report`, or None: refused, as on a Starter plan.
    """

    def __init__(
        self,
        *,
        isolation: str = "",
        container_env: dict[str, str] | None = None,
        visible: list[Path] | None = None,
        hidden: list[Path] | None = None,
        keep: bool = False,
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="modal-local-"))
        self.keep = keep
        self.isolation = choose(self.folder / "isolation", isolation)
        self.container_env = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        self.container_env |= {"TORCHDYNAMO_DISABLE": "1"} | (container_env or {})  # a second of each start
        self.visible = [Path(p) for p in visible or []]
        self.hidden = [Path(p) for p in hidden or []]
        self.only_pinned = True
        self.background_commits = False
        self.names_of_runs = False
        self.clusters = False
        self.billing: list[dict[str, Any]] | None = None
        self.rates: dict[str, float] = {}
        self.max_containers = 4
        self.scaledown = 1.0  # seconds that an idle container waits for another input
        self.grace = 20.0  # seconds between the interrupt signal and SIGKILL
        self.extra_files: dict[str, str] = {}
        self.commits_reload = True
        self.max_gpus = 10
        self.dispatch_delay = 0.0
        self.overlap = False
        self.speed = 1.0
        self.faults = Faults(self)
        self.rpc_faults = RpcFaults(self)
        self.answered: dict[str, Any] = {}  # by idempotency key: what a call that is tried again is told
        self.hub = Hub()
        self.calls: list[Call] = []
        self.empty = Empty()
        self.tokens = Tokens("ak-local", "as-local")
        self.store = Store(self.folder / "blobs")
        self.mounts, self.volumes, self.apps = Mounts(self), Volumes(self), Apps(self)
        self.functions, self.containers = Functions(self), Containers(self)
        self.tasks: dict[str, Task] = {}
        self.url = ""
        self._queues: dict[str, deque[Input]] = defaultdict(deque)
        self._arrived: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._background: set[asyncio.Task[Any]] = set()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="modal-local", daemon=True)

    # --- start and stop

    def __enter__(self) -> ControlPlane:
        self._thread.start()
        if not self._ready.wait(30):
            raise RuntimeError("the control plane did not start")
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(30)
        if not self.keep:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _serve(self) -> None:
        asyncio.run(self._main())

    async def _main(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        http = web.Application(client_max_size=2 * 1024**3)
        http.add_routes([*self.store.routes(), *self.hub.routes()])
        runner = web.AppRunner(http, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.store.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        server = Server([servicer([self.mounts, self.volumes, self.apps, self.functions, self.containers], self)])
        await server.start("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server._server.sockets[0].getsockname()[1]}"
        self._ready.set()
        await self._end.wait()
        for task in self.tasks.values():
            task.stopping = True
            task.signal(signal.SIGKILL)
        await asyncio.sleep(0.1)
        for job in list(self._background):
            job.cancel()
        server.close()
        await runner.cleanup()

    def new_id(self, prefix: str) -> str:
        """An id as the service makes them."""
        return f"{prefix}-" + "".join(secrets.choice(ALPHABET) for _ in range(22))

    # --- for tests

    @property
    def env(self) -> dict[str, str]:
        """The environment under which `modal` talks to this plane and to nothing else."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("MODAL_", "HF_"))}
        own = {
            "MODAL_SERVER_URL": self.url,
            "MODAL_TOKEN_ID": self.tokens.token_id,
            "MODAL_TOKEN_SECRET": self.tokens.token_secret,
        }
        return kept | own | {"MODAL_CONFIG_PATH": "/dev/null", "HF_HUB_OFFLINE": "1", "COLUMNS": "200", "NO_COLOR": "1"}

    def modal(
        self,
        *args: str | Path,
        cwd: Path = CHECKOUT,
        env: dict[str, str] | None = None,
        timeout: float = 900.0,
        check: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Run `python -m modal ARGS` in `cwd`; with `check`, fail with what it printed."""
        command = [sys.executable, "-m", "modal", *map(str, args)]
        done = subprocess.run(
            command, cwd=cwd, env=self.env | (env or {}), capture_output=True, text=True, timeout=timeout
        )
        if check and done.returncode:
            raise AssertionError(
                f"modal {' '.join(map(str, args))}: exit {done.returncode}\n{done.stdout}\n{done.stderr}\n{self.text[-6000:]}"
            )
        return done

    def start(
        self, *args: str | Path, cwd: Path = CHECKOUT, env: dict[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """As `modal`, without waiting for its end."""
        command = [sys.executable, "-m", "modal", *map(str, args)]
        return subprocess.Popen(
            command,
            cwd=cwd,
            env=self.env | (env or {}),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    @property
    def text(self) -> str:
        """All that the containers of all apps printed."""
        return "".join(app.text for app in self.apps.apps.values())

    def volume(self, name: str) -> Path:
        """The folder with what is committed on a volume; made if there is no such volume."""
        found = self.volumes.by_name.get(name)
        return (found or self.volumes.create(name)).folder

    def secret(self, name: str, **values: str) -> None:
        """Make or replace a secret."""
        self.apps.set_secret(name, values)

    def inject(self, fault: Fault) -> Fault:
        """Let this happen from now on."""
        self.faults.all.append(fault)
        return fault

    def inject_rpc(self, fault: RpcFault) -> RpcFault:
        """Let this happen to calls of the control plane from now on."""
        self.rpc_faults.all.append(fault)
        return fault

    def real(self, seconds: float) -> float:
        """Seconds of this plane's clock in seconds of this machine."""
        return seconds / self.speed

    def definition(self, name: str) -> Function:
        """The newest function of that name that was declared, with `gpus`, `timeout`, and `definition` (the protobuf)."""
        return next(f for f in reversed(list(self.functions.functions.values())) if f.name == name and f.definition)

    def tasks_of(self, name: str) -> list[Task]:
        """The containers that ran this function, in the order of their start."""
        return [t for t in self.tasks.values() if t.function.name == name]

    def names(self) -> list[str]:
        """The RPCs answered, in order."""
        return [call.name for call in self.calls]

    # --- inputs and containers (in the plane's thread)

    def enqueue(self, new: Input, first: bool = False) -> None:
        """An input waits for a container of its function; start one if none is free."""
        function = new.call.function
        queue = self._queues[function.id]
        queue.appendleft(new) if first else queue.append(new)
        self._arrived[function.id].set()
        self._start_container(function)

    def _start_container(self, function: Function) -> None:
        """Start one, where an input waits for it and the limits allow it."""
        queue = self._queues[function.id]
        live = [
            t
            for t in self.tasks.values()
            if t.function.id == function.id and t.alive and not t.preempted and not t.stopping
        ]
        single = function.definition.single_use_containers
        free = sum(1 for t in live if not t.inputs and not (single and t.served))
        limit = function.definition.concurrency_limit or self.max_containers
        in_use = sum(t.function.gpu_count for t in self.tasks.values() if t.alive)
        if (
            free < len(queue)
            and len([t for t in live if not (single and t.served and not t.inputs)]) < limit
            and in_use + function.gpu_count <= max(self.max_gpus, function.gpu_count)
        ):
            task = Task(self.new_id("ta"), function.app_id, function, self.folder / "tasks" / f"{len(self.tasks)}")
            task.folder.mkdir(parents=True)
            self.tasks[task.id] = task
            self.spawn(containers.run(self, task))

    def spawn(self, work: Any) -> None:
        """Run a coroutine beside the others."""
        job = asyncio.get_running_loop().create_task(work)
        self._background.add(job)
        job.add_done_callback(self._over)

    def _over(self, job: asyncio.Task[Any]) -> None:
        self._background.discard(job)
        if not job.cancelled() and job.exception():
            self._loop.call_exception_handler(
                {"message": "in the control plane", "exception": job.exception(), "task": job}
            )

    async def next_input(self, task: Task) -> Input | None:
        """The next input for this container, or None: end."""
        queue, waited = self._queues[task.function.id], 0.0
        while not task.stopping and not task.preempted:
            if queue:
                found = queue.popleft()
                task.inputs[found.id] = found
                task.served += 1
                self.spawn(self._watch(task, found, found.retry_count))
                return found
            if waited >= self.scaledown and not task.inputs:
                return None
            event = self._arrived[task.function.id] = asyncio.Event()
            try:
                await asyncio.wait_for(event.wait(), 0.1)
            except TimeoutError:
                waited += 0.1
        return None

    def take_all(self, function_id: str) -> list[Input]:
        """The waiting inputs of a function, which wait no more."""
        queue = self._queues[function_id]
        taken = list(queue)
        queue.clear()
        return taken

    def cancel(self, waiting: Input) -> None:
        """Take an input back; a container that works on it is interrupted."""
        if waiting in self._queues[waiting.call.function.id]:
            self._queues[waiting.call.function.id].remove(waiting)
            self.functions.finish(
                waiting,
                RESULT(status=RESULT.GENERIC_STATUS_TERMINATED, exception="Function call was cancelled"),
                0,
                None,
            )
        for task in self.tasks.values():
            if task.alive and waiting.id in task.inputs:
                task.stopping = True
                self.spawn(self.faults.interrupt(task))

    async def _watch(self, task: Task, found: Input, attempt: int) -> None:
        """The time-out of an input, and faults that come by time or by file."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        while task.alive and found.id in task.inputs and found.retry_count == attempt:
            elapsed = (loop.time() - began) * self.speed
            pause = self.faults.passing(task, elapsed)
            if elapsed >= task.function.timeout:
                task.inputs.pop(found.id)
                task.failed = task.stopping = True
                text = f"Task's current input {found.id} hit its timeout of {task.function.timeout}s"
                self.functions.finish(found, RESULT(status=RESULT.GENERIC_STATUS_TIMEOUT, exception=text), 0, task)
                task.signal(signal.SIGKILL)
                return
            await asyncio.sleep(pause)

    # --- ends

    def running(self, app_id: str) -> list[Task]:
        return [t for t in self.tasks.values() if t.app_id == app_id and t.alive]

    def stop_app(self, app: App) -> None:
        """End an app: idle containers leave, busy ones are interrupted."""
        if app.state in (api_pb2.APP_STATE_STOPPED, api_pb2.APP_STATE_STOPPING):
            return
        app.state = api_pb2.APP_STATE_STOPPING
        for function in self.functions.functions.values():
            if function.app_id == app.id:
                for waiting in self.take_all(function.id):
                    self.functions.finish(
                        waiting, RESULT(status=RESULT.GENERIC_STATUS_TERMINATED, exception="App stopped"), 0, None
                    )
        for task in self.running(app.id):
            task.stopping = True
            if task.inputs:
                self.spawn(self.faults.interrupt(task))
        self._settle(app)

    def stop_when_idle(self, app: App) -> None:
        """A detached app whose client has gone stops when nothing is left to do."""
        waiting = any(i for i in self.functions.inputs.values() if i.call.function.app_id == app.id and not i.done)
        if not waiting:
            self.stop_app(app)

    def ended(self, task: Task) -> None:
        """Called when a container has ended."""
        app = self.apps.apps[task.app_id]
        for function in [self.functions.functions[name] for name, queue in self._queues.items() if queue]:
            if self.apps.apps[function.app_id].state in LIVE:
                self._start_container(function)  # none may be left for it, or a GPU has become free
        if app.state == api_pb2.APP_STATE_DETACHED_DISCONNECTED:
            self.stop_when_idle(app)
        self._settle(app)

    def _settle(self, app: App) -> None:
        if app.state == api_pb2.APP_STATE_STOPPING and not self.running(app.id):
            app.state, app.stopped_at = api_pb2.APP_STATE_STOPPED, containers.time.time()
            app.wake()
