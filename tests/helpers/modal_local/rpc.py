"""The gRPC side: answers the calls that the handlers define, refuses the others by name, records every one."""

from __future__ import annotations

import inspect
import time
from dataclasses import dataclass, field
from typing import Any

from grpclib import GRPCError, Status
from grpclib.server import Stream
from modal_proto import api_pb2
from modal_proto.api_grpc import ModalClientBase

IDEMPOTENCY_HEADER = "x-idempotency-key"  # the same for all tries that the SDK makes of one call: it is done once
TASK_HEADER = "x-local-task"  # set in each container by MODAL_OVERRIDE_HEADERS: says which of them calls


@dataclass(frozen=True)
class Call:
    """One RPC: its name, the request, the container it came from ("" for the command line), seconds since the epoch."""

    name: str
    request: Any
    task_id: str
    at: float = field(default_factory=time.time)


def refuse(status: Status, message: str) -> GRPCError:
    """An error as the service sends it; the SDK turns its status into an exception class."""
    return GRPCError(status, message)


class Tokens:
    """Who may call: the tokens that `modal token new` would have stored, and running containers."""

    def __init__(self, token_id: str, token_secret: str) -> None:
        self.token_id, self.token_secret = token_id, token_secret

    def check(self, metadata: Any, tasks: dict[str, Any]) -> str:
        """The calling container's id, "" for the command line.

        Raises:
            GRPCError: UNAUTHENTICATED, with the service's words.
        """
        if metadata.get("x-modal-client-type") == str(api_pb2.CLIENT_TYPE_CONTAINER):
            task_id = str(metadata.get(TASK_HEADER, ""))
            if task_id not in tasks:
                raise refuse(Status.UNAUTHENTICATED, "Container is not known")
            return task_id
        token_id, secret = metadata.get("x-modal-token-id", ""), metadata.get("x-modal-token-secret", "")
        if not token_id.startswith("ak-"):
            raise refuse(Status.UNAUTHENTICATED, "Token ID is malformed")
        if (token_id, secret) != (self.token_id, self.token_secret):
            raise refuse(
                Status.UNAUTHENTICATED, f"Token validation failed: token {token_id} is unknown or its secret is wrong"
            )
        return ""


def servicer(handlers: list[Any], plane: Any) -> ModalClientBase:
    """A grpclib service made of the handlers' methods.

    A method `async def Name(self, request, task_id)` answers a unary call; an async generator answers a stream.
    """
    methods: dict[str, Any] = {}
    for handler in handlers:
        methods.update({name: getattr(handler, name) for name in dir(handler) if name[0].isupper()})

    def make(name: str) -> Any:
        answer = methods.get(name)

        async def method(self: Any, stream: Stream[Any, Any]) -> None:
            request = await stream.recv_message()
            task_id = plane.tokens.check(stream.metadata, plane.tasks)
            plane.calls.append(Call(name, request, task_id))
            if answer is None:
                raise refuse(Status.UNIMPLEMENTED, f"tests/modal_local does not answer {name}")
            lost = await plane.rpc_faults.before(name, task_id)
            if inspect.isasyncgenfunction(answer):
                async for message in answer(request, task_id):
                    await stream.send_message(message)
                return
            key = str(stream.metadata.get(IDEMPOTENCY_HEADER, ""))
            if key not in plane.answered:
                plane.answered[key] = await answer(request, task_id)
            found = plane.answered[key] if key else plane.answered.pop(key)
            if lost is not None:
                plane.rpc_faults.refuse(lost, name)
            await stream.send_message(found)

        return method

    body = {name: make(name) for name in ModalClientBase.__abstractmethods__}
    return type("Servicer", (ModalClientBase,), body)()
