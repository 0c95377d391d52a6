"""Apps, their logs and figures, secrets, the workspace: what the command line asks about."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from grpclib import Status
from modal_proto import api_pb2

from .rpc import refuse

LIVE = (
    api_pb2.APP_STATE_EPHEMERAL,
    api_pb2.APP_STATE_DETACHED,
    api_pb2.APP_STATE_DEPLOYED,
    api_pb2.APP_STATE_DETACHED_DISCONNECTED,
)


@dataclass
class App:
    """A `modal run` or a deployment: its state, functions, and everything that its containers printed."""

    id: str
    name: str
    state: int
    created_at: float = field(default_factory=time.time)
    stopped_at: float = 0.0
    deployed: bool = False
    function_ids: dict[str, str] = field(default_factory=dict)
    class_ids: dict[str, str] = field(default_factory=dict)
    logs: list[Any] = field(default_factory=list)  # TaskLogsBatch, in the order printed
    news: asyncio.Event = field(default_factory=asyncio.Event)
    stop_reason: int = 0
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """All that the containers printed."""
        return "".join(item.data for batch in self.logs for item in batch.items)

    def lifecycle(self) -> Any:
        return api_pb2.AppLifecycle(
            app_state=self.state, created_at=self.created_at, created_by="tests", stopped_at=self.stopped_at
        )

    def wake(self) -> None:
        self.news.set()
        self.news = asyncio.Event()


class Apps:
    """The App…, Environment…, Secret…, and workspace calls."""

    def __init__(self, plane: Any) -> None:
        self.plane = plane
        self.apps: dict[str, App] = {}
        self.secrets: dict[str, dict[str, str]] = {}  # secret → what it sets
        self.secret_ids: dict[str, str] = {}  # name → secret
        self.secret_dates: dict[str, float] = {}

    # --- apps

    async def AppCreate(self, request: Any, task_id: str) -> Any:
        app = App(self.plane.new_id("ap"), request.description, request.app_state, tags=dict(request.tags))
        self.apps[app.id] = app
        return api_pb2.AppCreateResponse(
            app_id=app.id,
            app_page_url=f"{self.plane.url}/apps/{app.id}",
            app_logs_url=f"{self.plane.url}/apps/{app.id}/logs",
        )

    async def AppHeartbeat(self, request: Any, task_id: str) -> Any:
        return self.plane.empty

    async def AppPublish(self, request: Any, task_id: str) -> Any:
        app = self.apps[request.app_id]
        app.function_ids, app.class_ids = dict(request.function_ids), dict(request.class_ids)
        app.tags = dict(request.tags) or app.tags
        if request.app_state:
            app.state = request.app_state
        if request.app_state == api_pb2.APP_STATE_DEPLOYED:
            app.name, app.deployed = request.name or app.name, True
        return api_pb2.AppPublishResponse(url=f"{self.plane.url}/apps/{app.id}", deployed_at=time.time())

    async def AppClientDisconnect(self, request: Any, task_id: str) -> Any:
        app = self.apps[request.app_id]
        app.stop_reason = request.reason
        if app.state == api_pb2.APP_STATE_DETACHED:
            app.state = api_pb2.APP_STATE_DETACHED_DISCONNECTED
            self.plane.stop_when_idle(app)
        elif app.state != api_pb2.APP_STATE_DEPLOYED:
            self.plane.stop_app(app)
        return self.plane.empty

    async def AppStop(self, request: Any, task_id: str) -> Any:
        self.plane.stop_app(self.apps[request.app_id])
        return self.plane.empty

    async def AppList(self, request: Any, task_id: str) -> Any:
        items = [
            api_pb2.AppListResponse.AppListItem(
                app_id=a.id,
                description=a.name,
                name=a.name,
                state=a.state,
                created_at=a.created_at,
                stopped_at=a.stopped_at,
                n_running_tasks=len(self.plane.running(a.id)),
            )
            for a in self.apps.values()
        ]
        return api_pb2.AppListResponse(apps=items)

    async def AppGetLifecycle(self, request: Any, task_id: str) -> Any:
        if request.app_id not in self.apps:
            raise refuse(Status.NOT_FOUND, f"App '{request.app_id}' not found")
        return api_pb2.AppGetLifecycleResponse(lifecycle=self.apps[request.app_id].lifecycle())

    async def AppGetByDeploymentName(self, request: Any, task_id: str) -> Any:
        named = [a for a in self.apps.values() if a.name == request.name and (a.deployed or self.plane.names_of_runs)]
        answer = api_pb2.AppGetByDeploymentNameResponse(environment_name="main")
        if named:
            newest = max(named, key=lambda a: a.created_at)
            answer.lifecycle.CopyFrom(newest.lifecycle())
            if newest.state in LIVE:
                answer.app_id = newest.id
            else:
                answer.previous_app_id = newest.id
        return answer

    async def AppGetLayout(self, request: Any, task_id: str) -> Any:
        return api_pb2.AppGetLayoutResponse(app_layout=self.plane.functions.layout(self.apps[request.app_id]))

    async def TaskList(self, request: Any, task_id: str) -> Any:
        tasks = [t for t in self.plane.tasks.values() if t.alive and request.app_id in ("", t.app_id)]
        return api_pb2.TaskListResponse(
            tasks=[api_pb2.TaskStats(task_id=t.id, app_id=t.app_id, started_at=t.started_at) for t in tasks]
        )

    # --- logs

    async def AppGetLogs(self, request: Any, task_id: str) -> AsyncIterator[Any]:
        app = self.apps[request.app_id]
        position = int(request.last_entry_id or 0)
        deadline = time.monotonic() + request.timeout
        while True:
            while position < len(app.logs):
                yield app.logs[position]
                position += 1
            if app.state == api_pb2.APP_STATE_STOPPED:
                yield api_pb2.TaskLogsBatch(app_done=True)
                return
            left = deadline - time.monotonic()
            if left <= 0:
                return
            try:
                await asyncio.wait_for(app.news.wait(), left)
            except TimeoutError:
                return

    async def AppFetchLogs(self, request: Any, task_id: str) -> Any:
        batches = [
            b
            for b in self.apps[request.app_id].logs
            if request.function_id in ("", b.function_id) and request.task_id in ("", b.task_id)
        ]
        if request.search_text:
            batches = [b for b in batches if any(request.search_text in item.data for item in b.items)]
        return api_pb2.AppFetchLogsResponse(batches=batches[-request.limit :] if request.limit else batches)

    async def AppCountLogs(self, request: Any, task_id: str) -> Any:
        bucket = api_pb2.AppCountLogsResponse.LogBucket(
            bucket_start_at=request.since, stdout_logs=len(self.apps[request.app_id].logs)
        )
        return api_pb2.AppCountLogsResponse(app_id=request.app_id, buckets=[bucket])

    # --- figures

    async def AppGetTimeRangeStats(self, request: Any, task_id: str) -> Any:
        app = self.apps[request.app_id]
        answer = api_pb2.AppGetTimeRangeStatsResponse(
            since=request.since, until=request.until, lifecycle=app.lifecycle()
        )
        for tag, function_id in app.function_ids.items():
            calls, failed = self.plane.functions.counts(function_id)
            containers = [t for t in self.plane.tasks.values() if function_id in (t.function.id, t.function.base_id)]
            one = answer.functions.by_name[tag]
            one.object_id = function_id
            for counts in (one.counts, answer.functions.total):
                counts.calls.total += calls
                counts.calls.succeeded += calls - failed
                counts.calls.failed += failed
                counts.containers.container_active_count += len(containers)
                counts.containers.container_errors += sum(t.failed for t in containers)
        return answer

    async def WorkspaceBillingReport(self, request: Any, task_id: str) -> AsyncIterator[Any]:
        if self.plane.billing is None:
            raise refuse(Status.PERMISSION_DENIED, "Billing reports are available on the Team and Enterprise plans")
        for row in self.plane.billing:
            item = api_pb2.WorkspaceBillingReportItem(
                object_id=row["object_id"],
                description=row["description"],
                environment_name="main",
                cost=str(row["cost"]),
            )
            item.interval.GetCurrentTime()
            for name, value in row.get("tags", {}).items():
                if name in request.tag_names or "*" in request.tag_names:
                    item.tags[name] = value
            for resource, cost in row.get("cost_by_resource", {}).items():
                item.cost_by_resource[resource] = str(cost)
            yield item

    async def WorkspaceBillingRates(self, request: Any, task_id: str) -> Any:
        if self.plane.billing is None:
            raise refuse(Status.PERMISSION_DENIED, "Billing rates are available on the Team and Enterprise plans")
        return api_pb2.WorkspaceBillingRatesResponse(rates={name: str(rate) for name, rate in self.plane.rates.items()})

    # --- who is asking

    async def ClientHello(self, request: Any, task_id: str) -> Any:
        return api_pb2.ClientHelloResponse()

    async def AuthTokenGet(self, request: Any, task_id: str) -> Any:
        return api_pb2.AuthTokenGetResponse(token="e30.e30.e30")

    async def TokenInfoGet(self, request: Any, task_id: str) -> Any:
        user = api_pb2.UserIdentity(user_id="us-tests", username="tests")
        return api_pb2.TokenInfoGetResponse(
            token_id=self.plane.tokens.token_id, workspace_name="tests", user_identity=user
        )

    async def WorkspaceNameLookup(self, request: Any, task_id: str) -> Any:
        return api_pb2.WorkspaceNameLookupResponse(workspace_name="tests", username="tests")

    async def EnvironmentGetOrCreate(self, request: Any, task_id: str) -> Any:
        settings = api_pb2.EnvironmentSettings(image_builder_version="2025.06")
        return api_pb2.EnvironmentGetOrCreateResponse(
            environment_id="en-main", metadata=api_pb2.EnvironmentMetadata(name="main", settings=settings)
        )

    async def EnvironmentList(self, request: Any, task_id: str) -> Any:
        return api_pb2.EnvironmentListResponse(items=[api_pb2.EnvironmentListItem(name="main", default=True)])

    # --- secrets

    def set_secret(self, name: str, values: dict[str, str]) -> str:
        """Make or replace a secret."""
        secret_id = self.plane.new_id("st")
        self.secrets[secret_id] = dict(values)
        if name:
            self.secret_ids[name] = secret_id
            self.secret_dates[name] = time.time()
        return str(secret_id)

    def _secret_metadata(self, name: str, secret_id: str) -> Any:
        created = api_pb2.CreationInfo(created_at=self.secret_dates.get(name, time.time()), created_by="tests")
        return api_pb2.SecretMetadata(
            name=name, creation_info=created, keys=sorted(self.secrets[secret_id]), environment_name="main"
        )

    async def SecretGetOrCreate(self, request: Any, task_id: str) -> Any:
        name, kind = request.deployment_name, request.object_creation_type
        secret_id = self.secret_ids.get(name, "") if name else ""
        if kind == api_pb2.OBJECT_CREATION_TYPE_UNSPECIFIED and not secret_id:
            raise refuse(
                Status.NOT_FOUND,
                f"Secret '{name}' not found in environment 'main'. You can create it with `modal secret create {name} KEY=VALUE`.",
            )
        if kind == api_pb2.OBJECT_CREATION_TYPE_CREATE_FAIL_IF_EXISTS and secret_id:
            raise refuse(Status.ALREADY_EXISTS, f"Secret '{name}' already exists in environment 'main'")
        if kind == api_pb2.OBJECT_CREATION_TYPE_CREATE_OVERWRITE_IF_EXISTS or not secret_id:
            secret_id = self.set_secret(name, dict(request.env_dict))
        missing = [key for key in request.required_keys if key not in self.secrets[secret_id]]
        if missing:
            raise refuse(Status.INVALID_ARGUMENT, f"Secret '{name}' is missing key(s): {', '.join(missing)}")
        return api_pb2.SecretGetOrCreateResponse(secret_id=secret_id, metadata=self._secret_metadata(name, secret_id))

    async def SecretList(self, request: Any, task_id: str) -> Any:
        items = [
            api_pb2.SecretListItem(
                label=n,
                created_at=self.secret_dates[n],
                environment_name="main",
                secret_id=i,
                metadata=self._secret_metadata(n, i),
            )
            for n, i in self.secret_ids.items()
        ]
        return api_pb2.SecretListResponse(items=items, environment_name="main")

    async def SecretDelete(self, request: Any, task_id: str) -> Any:
        for name in [n for n, i in self.secret_ids.items() if i == request.secret_id]:
            del self.secret_ids[name]
        return self.plane.empty
