"""Functions and calls of them: inputs, outputs, retries, as the client and the containers see them."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from dataclasses import dataclass, field
from typing import Any

from grpclib import Status
from modal_proto import api_pb2

from .rpc import refuse

ASYNC = api_pb2.FUNCTION_CALL_INVOCATION_TYPE_ASYNC
RESULT = api_pb2.GenericResult


@dataclass
class Function:
    """A function as the app declared it; `gpus` in the order of preference."""

    id: str
    app_id: str
    name: str
    metadata: Any
    definition: Any = None  # api_pb2.Function of the first choice of GPU
    gpus: list[str] = field(default_factory=list)
    serialized_params: bytes = b""
    base_id: str = ""

    @property
    def timeout(self) -> int:
        """Seconds that one input may take."""
        return int(self.definition.timeout_secs or 300)

    @property
    def gpu_count(self) -> int:
        """GPUs of one of its containers."""
        return int(self.gpus[0].partition(":")[2] or 1) if self.gpus else 0


@dataclass
class Input:
    """One input of a call, and where it stands."""

    id: str
    idx: int
    item: Any  # api_pb2.FunctionInput
    call: Call
    retry_count: int = 0
    failures: int = 0
    done: bool = False

    @property
    def jwt(self) -> str:
        """What the client names this input by when it asks for another try; it reads the index out of it."""
        part = (
            base64.urlsafe_b64encode(json.dumps({"idx": self.idx, "input_id": self.id}).encode()).rstrip(b"=").decode()
        )
        return f"e30.{part}."


@dataclass
class Call:
    """A call of a function: `.remote` and `.spawn` have one input, `.map` many."""

    id: str
    function: Function
    sync: bool
    inputs: dict[str, Input] = field(default_factory=dict)
    outputs: list[Any] = field(default_factory=list)  # FunctionGetOutputsItem in order of arrival; None where cleared
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, output: Any) -> None:
        self.outputs.append(output)
        self.news.set()
        self.news = asyncio.Event()


class Functions:
    """The Function… and Class… calls of the client."""

    def __init__(self, plane: Any) -> None:
        self.plane = plane
        self.functions: dict[str, Function] = {}
        self.call_of: dict[str, Call] = {}
        self.inputs: dict[str, Input] = {}
        self.classes: dict[str, str] = {}  # class → app

    # --- definitions

    async def FunctionPrecreate(self, request: Any, task_id: str) -> Any:
        function_id = request.existing_function_id or self.plane.new_id("fu")
        metadata = api_pb2.FunctionHandleMetadata(
            function_name=request.function_name,
            function_type=request.function_type,
            function_schema=request.function_schema,
            supported_input_formats=request.supported_input_formats,
            supported_output_formats=request.supported_output_formats,
            app_id=request.app_id,
        )
        for name, method in request.method_definitions.items():
            metadata.method_handle_metadata[name].CopyFrom(
                api_pb2.FunctionHandleMetadata(
                    function_name=method.function_name,
                    function_type=method.function_type,
                    function_schema=method.function_schema,
                    is_method=True,
                    use_method_name=name,
                    supported_input_formats=method.supported_input_formats,
                    supported_output_formats=method.supported_output_formats,
                )
            )
        self.functions[function_id] = Function(function_id, request.app_id, request.function_name, metadata)
        return api_pb2.FunctionPrecreateResponse(function_id=function_id, handle_metadata=metadata)

    async def FunctionCreate(self, request: Any, task_id: str) -> Any:
        function = self.functions[request.existing_function_id]
        ranked = [r.function for r in request.function_data.ranked_functions] or [request.function]
        function.definition = ranked[0]
        function.gpus = [gpu_name(f.resources.gpu_config) for f in ranked if f.resources.gpu_config.count]
        longest = max(f.timeout_secs for f in ranked)
        if longest > 86_400:
            raise refuse(Status.INVALID_ARGUMENT, f"timeout of {longest} s is over the maximum of 86400 s")
        if function.definition._experimental_group_size and not self.plane.clusters:
            raise refuse(Status.PERMISSION_DENIED, "Clusters are not available on this plan")
        function.metadata.class_parameter_info.CopyFrom(function.definition.class_parameter_info)
        function.metadata.definition_id = self.plane.new_id("de")
        data = api_pb2.FunctionData(module_name=ranked[0].module_name, function_name=ranked[0].function_name)
        data.ranked_functions.extend(
            api_pb2.FunctionData.RankedFunction(rank=i, function=f) for i, f in enumerate(ranked)
        )
        return api_pb2.FunctionCreateResponse(
            function_id=function.id, function=ranked[0], handle_metadata=function.metadata, function_data=data
        )

    async def FunctionBindParams(self, request: Any, task_id: str) -> Any:
        base = self.functions[request.function_id]
        bound = Function(
            self.plane.new_id("fu"),
            base.app_id,
            base.name,
            base.metadata,
            api_pb2.Function(),
            list(base.gpus),
            request.serialized_params,
            base.id,
        )
        bound.definition.CopyFrom(base.definition)
        options = request.function_options
        if options.HasField("resources"):
            bound.definition.resources.MergeFrom(options.resources)
            if options.resources.gpu_config.count:
                bound.gpus = [gpu_name(options.resources.gpu_config)]
        if options.HasField("timeout_secs"):
            bound.definition.timeout_secs = options.timeout_secs
        if options.HasField("retry_policy"):
            bound.definition.retry_policy.CopyFrom(options.retry_policy)
        if options.replace_volume_mounts:
            del bound.definition.volume_mounts[:]
            bound.definition.volume_mounts.extend(options.volume_mounts)
        if options.replace_secret_ids:
            del bound.definition.secret_ids[:]
        bound.definition.secret_ids.extend(options.secret_ids)
        if options.concurrency_limit:
            bound.definition.concurrency_limit = options.concurrency_limit
        self.functions[bound.id] = bound
        return api_pb2.FunctionBindParamsResponse(bound_function_id=bound.id, handle_metadata=bound.metadata)

    async def ClassCreate(self, request: Any, task_id: str) -> Any:
        class_id = request.existing_class_id or self.plane.new_id("cs")
        self.classes[class_id] = request.app_id
        return api_pb2.ClassCreateResponse(class_id=class_id, handle_metadata=api_pb2.ClassHandleMetadata())

    async def FunctionGet(self, request: Any, task_id: str) -> Any:
        for app in reversed(list(self.plane.apps.apps.values())):
            if app.deployed and app.name == request.app_name and request.object_tag in app.function_ids:
                function = self.functions[app.function_ids[request.object_tag]]
                data = api_pb2.FunctionData(
                    ranked_functions=[api_pb2.FunctionData.RankedFunction(function=function.definition)]
                )
                return api_pb2.FunctionGetResponse(
                    function_id=function.id, handle_metadata=function.metadata, function=data
                )
        raise refuse(Status.NOT_FOUND, "App not found")

    def layout(self, app: Any) -> Any:
        """The app's objects, as a container needs them."""
        layout = api_pb2.AppLayout(function_ids=app.function_ids, class_ids=app.class_ids)
        for function_id in app.function_ids.values():
            layout.objects.append(
                api_pb2.Object(object_id=function_id, function_handle_metadata=self.functions[function_id].metadata)
            )
        for class_id in app.class_ids.values():
            layout.objects.append(
                api_pb2.Object(object_id=class_id, class_handle_metadata=api_pb2.ClassHandleMetadata())
            )
        for function_id in app.function_ids.values():
            for dependency in self.functions[function_id].definition.object_dependencies:
                volume = self.plane.volumes.by_id.get(dependency.object_id)
                if volume is not None:
                    layout.objects.append(api_pb2.Object(object_id=volume.id, volume_metadata=volume.metadata()))
                elif dependency.object_id in self.plane.mounts.mounts:
                    layout.objects.append(
                        api_pb2.Object(
                            object_id=dependency.object_id, mount_handle_metadata=api_pb2.MountHandleMetadata()
                        )
                    )
                elif all(o.object_id != dependency.object_id for o in layout.objects):
                    layout.objects.append(api_pb2.Object(object_id=dependency.object_id))
        return layout

    def counts(self, function_id: str) -> tuple[int, int]:
        """Inputs of a function, and how many of them failed for good."""
        calls = [c for c in self.call_of.values() if function_id in (c.function.id, c.function.base_id)]
        failed = sum(
            1 for c in calls for o in c.outputs if o is not None and o.result.status != RESULT.GENERIC_STATUS_SUCCESS
        )
        return sum(len(c.inputs) for c in calls), failed

    # --- calls

    async def FunctionMap(self, request: Any, task_id: str) -> Any:
        function = self.functions[request.function_id]
        call = Call(self.plane.new_id("fc"), function, request.function_call_invocation_type != ASYNC)
        self.call_of[call.id] = call
        return api_pb2.FunctionMapResponse(
            function_call_id=call.id,
            function_call_jwt=call.id,
            pipelined_inputs=self._add(call, request.pipelined_inputs),
            retry_policy=function.definition.retry_policy,
            sync_client_retries_enabled=call.sync,
            max_inputs_outstanding=1000,
        )

    async def FunctionPutInputs(self, request: Any, task_id: str) -> Any:
        return api_pb2.FunctionPutInputsResponse(
            inputs=self._add(self.call_of[request.function_call_id], request.inputs)
        )

    def _add(self, call: Call, items: Any) -> list[Any]:
        added = []
        for item in items:
            new = Input(self.plane.new_id("in"), item.idx, item.input, call)
            call.inputs[new.id] = self.inputs[new.id] = new
            self.plane.enqueue(new)
            added.append(api_pb2.FunctionPutInputsResponseItem(idx=item.idx, input_id=new.id, input_jwt=new.jwt))
        return added

    async def FunctionFinishInputs(self, request: Any, task_id: str) -> Any:
        return self.plane.empty

    async def FunctionRetryInputs(self, request: Any, task_id: str) -> Any:
        for item in request.inputs:
            again = self.inputs[json.loads(base64.urlsafe_b64decode(item.input_jwt.split(".")[1] + "=="))["input_id"]]
            again.retry_count = item.retry_count or again.retry_count + 1
            again.done = False
            self._clear(again.call, again.id)
            self.plane.enqueue(again)
        return api_pb2.FunctionRetryInputsResponse(input_jwts=[item.input_jwt for item in request.inputs])

    @staticmethod
    def _clear(call: Call, input_id: str) -> None:
        call.outputs = [None if o is not None and o.input_id == input_id else o for o in call.outputs]

    async def FunctionGetOutputs(self, request: Any, task_id: str) -> Any:
        call = self.call_of[request.function_call_id]
        deadline = time.monotonic() + request.timeout
        seen = int(request.last_entry_id.partition("-")[0] or 0)
        while True:
            fresh = [o for o in call.outputs[seen:] if o is not None]
            if request.HasField("start_idx") and not request.input_jwts:
                fresh = [o for o in fresh if request.start_idx <= o.idx <= request.end_idx]
            left = deadline - time.monotonic()
            if fresh or left <= 0:
                break
            try:
                await asyncio.wait_for(call.news.wait(), left)
            except TimeoutError:
                continue
        position = len(call.outputs)
        if request.clear_on_success:
            for output in fresh:
                if output.result.status != RESULT.GENERIC_STATUS_SUCCESS:
                    self._clear(call, output.input_id)
        unfinished = sum(not i.done for i in call.inputs.values())
        return api_pb2.FunctionGetOutputsResponse(
            outputs=fresh, idxs=[o.idx for o in fresh], last_entry_id=f"{position}-0", num_unfinished_inputs=unfinished
        )

    async def FunctionCallCancel(self, request: Any, task_id: str) -> Any:
        for waiting in self.call_of[request.function_call_id].inputs.values():
            self.plane.cancel(waiting)
        return self.plane.empty

    def finish(self, done: Input, result: Any, data_format: int, task: Any) -> None:
        """An input has its result: hand it out, or try again where that is the service's part (`.spawn`)."""
        policy = done.call.function.definition.retry_policy
        if result.status not in (RESULT.GENERIC_STATUS_SUCCESS, RESULT.GENERIC_STATUS_TERMINATED):
            done.failures += 1
            if not done.call.sync and done.failures <= policy.retries:
                done.retry_count += 1
                asyncio.get_running_loop().call_later(policy.initial_delay_ms / 1000, self.plane.enqueue, done)
                return
        done.done = True
        output = api_pb2.FunctionGetOutputsItem(
            result=result,
            idx=done.idx,
            input_id=done.id,
            data_format=data_format,
            task_id=task.id if task else "",
            retry_count=done.retry_count,
        )
        done.call.put(output)


def gpu_name(config: Any) -> str:
    """`L40S`, or `L40S:2` for more than one."""
    return config.gpu_type if config.count == 1 else f"{config.gpu_type}:{config.count}"
