"""llama.cpp's server in a process of its own, where no model file can crash or stop ours.

A GGUF file is a program for llama.cpp in many ways: its chat template alone can recurse until the stack is gone, at
loading or at any later request. The process ends with the `LlamaProcess`, whatever it is doing.
"""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from noesis.core.errors import MissingExtra, ModelError
from noesis.llm.isolated.child import Child

LOAD_S = 900.0  # tens of gigabytes from a slow disk
ENDING_S = 0.2  # from a connection that breaks to the end of the process that broke it
LONGEST_LINE = 16_000_000  # bytes of an answer


class LlamaProcess:
    """A loaded model that listens on `listening_address`."""

    def __init__(self, settings: dict[str, Any]) -> None:
        """Load the model.

        Args:
            settings: of `xllamacpp.CommonParams`, nested as its attributes are: `{"model": {"path": "…"}, "n_ctx": 1}`.
                `api_keys` must hold a key. A host that is a path is a Unix socket.

        Raises:
            ModelError: llama.cpp can't load it, or the file ended or stopped the process.
        """
        import importlib.util

        if importlib.util.find_spec("xllamacpp") is None:
            raise MissingExtra("xllamacpp", "gguf")
        self._file = Path(settings["model"]["path"])
        self._key, self._host = str(settings["api_keys"][0]), str(settings["hostnames"][0])
        # no more than the machine has: it is to fail rather than push everything else out of memory
        self._child = Child("noesis.llm.isolated.llama_worker", memory=psutil.virtual_memory().total)
        self.listening_address = str(self._child.ask(str(self._file), LOAD_S, settings=settings))

    @property
    def running(self) -> bool:
        """Whether the process still is."""
        return self._child.running

    def close(self) -> None:
        """End the process, also while it works."""
        self._child.close()

    def handle_chat_completions(self, body: dict[str, Any], receive: Callable[[Any], None] | None = None) -> Any:
        """The answer to a request of `/v1/chat/completions`; with `receive` and `"stream": true`, each piece of it.

        Raises:
            ModelError: the process ended while it worked.
        """
        try:
            response = self._post("/v1/chat/completions", body)
            if receive is None or response.status != http.client.OK:
                answer = json.loads(response.read(LONGEST_LINE))
                if receive is not None:
                    receive(answer)
                return answer
            while line := response.readline(LONGEST_LINE):
                kind, _, data = line.decode(errors="replace").strip().partition(": ")
                if data == "[DONE]":
                    return None
                if kind in ("data", "error"):
                    receive(json.loads(data) if kind == "data" else {"error": json.loads(data)})
            raise http.client.IncompleteRead(b"")
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._explained(error) from None

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The answer to any other request, as JSON.

        Raises:
            ModelError: there is none, or it is not JSON.
        """
        try:
            return json.loads(self._post(path, body).read(LONGEST_LINE))
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._explained(error) from None

    def _explained(self, error: Exception) -> ModelError:
        time.sleep(ENDING_S)
        why = str(error) if self.running else "its process ended"
        return ModelError(f"llama.cpp gave no answer from {self._file}: {why}")

    def _post(self, path: str, body: dict[str, Any]) -> http.client.HTTPResponse:
        connection = self._connection()  # no proxy ever: this is our own process
        connection.request(
            "POST",
            path,
            json.dumps(body).encode(),
            {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json", "Connection": "close"},
        )
        return connection.getresponse()

    def _connection(self) -> http.client.HTTPConnection:
        if self._host.startswith("/"):
            return _UnixConnection(self._host)
        address = urlsplit(self.listening_address)
        return http.client.HTTPConnection(address.hostname or "127.0.0.1", address.port)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(self._path)
