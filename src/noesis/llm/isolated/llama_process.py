"""llama.cpp's server in a process of its own, where no model file can crash or stop ours, and nobody else reaches it.

A GGUF file is a program for llama.cpp in many ways: its chat template alone can recurse until the stack is gone, at
loading or at any later request. The process ends with the `LlamaProcess`, whatever it is doing. It listens on a Unix
socket that only this user may open (127.0.0.1 where there are none), with a key of its own.
"""

from __future__ import annotations

import json
import math
import re
import secrets
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from noesis.core.errors import MissingExtra, ModelError
from noesis.core.i18n import _
from noesis.llm.gguf.header import read_header
from noesis.llm.http import Http
from noesis.llm.http_reply import HttpError, lines
from noesis.llm.isolated.child import Child
from noesis.llm.llama_library import server_threads

LOAD_S = 900.0  # tens of gigabytes from a slow disk
ANSWER_S = 86_400.0  # a long prompt on a slow processor
ENDING_S = 0.2  # from a connection that breaks to the end of the process that broke it
NO_ORIGIN = "http://noesis.invalid"  # no page has it: else llama.cpp lets every page read its answers
LONGEST_SOCKET_PATH = 100  # bytes; the systems' limits are 104 and 108
WORKING_MEMORY = 4_000_000_000  # bytes, of a computation of 512 tokens, a vocabulary and the threads; measured: 0.3 GB
_CACHED = re.compile(r"blk\.\d+\.attn_(?:k|v|kv|qkv)\b.*\.weight")  # their outputs are kept for each token


class LlamaProcess:
    """A loaded model that listens on `url` with the key `key`; on the Unix socket `socket` where that is not None."""

    def __init__(self, settings: dict[str, Any]) -> None:
        """Load the model.

        Args:
            settings: of `xllamacpp.CommonParams`, nested as its attributes are: `{"model": {"path": "…"}, "n_ctx": 1}`.

        Raises:
            ModelError: llama.cpp can't load it, or the file ended or stopped the process.
        """
        import importlib.util

        if importlib.util.find_spec("xllamacpp") is None:
            raise MissingExtra("xllamacpp", "gguf")
        self._file = Path(settings["model"]["path"])
        self._folder = _private_folder()
        self.key = secrets.token_urlsafe(24)
        self.socket = f"{self._folder.name}/llama.sock" if self._folder else None
        private: dict[str, Any] = {
            "api_keys": [self.key],
            "hostnames": [self.socket or "127.0.0.1"],
            "port": 0,
            "cors_origins": NO_ORIGIN,
            "cors_credentials": False,
            "offline": True,
            "ui": False,
            "verbosity": 0,
        }
        threads = {"n_threads": server_threads(), "poll": 0}  # those that have no work sleep
        private |= {"cpuparams": threads, "cpuparams_batch": threads}
        self._child = Child("noesis.llm.isolated.llama_worker", memory=memory_limit(settings))
        address = str(self._child.ask(str(self._file), LOAD_S, settings=settings | private))
        self.url = "http://llama.cpp" if self.socket else address
        headers = {"Authorization": f"Bearer {self.key}"}
        self._http = Http(self.url, headers, timeout_s=ANSWER_S, unix_socket=self.socket)

    @property
    def running(self) -> bool:
        """Whether the process still is."""
        return self._child.running

    def close(self) -> None:
        """End the process, also while it works."""
        self._http.close()
        self._child.close()
        if self._folder:
            self._folder.cleanup()

    def handle_chat_completions(self, body: dict[str, Any], receive: Callable[[Any], None] | None = None) -> Any:
        """The answer to a request of `/v1/chat/completions`; with `receive` and `"stream": true`, each piece of it.

        Raises:
            ModelError: the process ended while it worked.
        """
        if receive is None:
            return self.post("/v1/chat/completions", body)
        try:
            path = f"{self.url}/v1/chat/completions"
            with self._http.stream("POST", path, body, deadline_s=ANSWER_S) as (status, _headers, parts):
                if status != 200:
                    receive(json.loads(b"".join(parts)))
                    return None
                for line in lines(parts):
                    kind, _colon, data = line.decode(errors="replace").strip().partition(": ")
                    if data == "[DONE]":
                        return None
                    if kind in ("data", "error"):
                        receive(json.loads(data) if kind == "data" else {"error": json.loads(data)})
            raise HttpError(_("the answer breaks off"))
        except (HttpError, ValueError) as error:
            raise self._explained(error) from None

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The answer to any other request, as JSON.

        Raises:
            ModelError: there is none, or it is not JSON.
        """
        return self._request("POST", path, body)

    def get(self, path: str) -> Any:
        """As `post`, of a request without a body."""
        return self._request("GET", path, None)

    def _request(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        try:
            return json.loads(self._http.request(method, self.url + path, body, deadline_s=ANSWER_S).body)
        except (HttpError, ValueError) as error:
            raise self._explained(error) from None

    def _explained(self, error: Exception) -> ModelError:
        time.sleep(ENDING_S)
        why = str(error) if self.running else _("its process ended")
        return ModelError(_("llama.cpp gave no answer from {file}: {why}", file=self._file, why=why))


def memory_limit(settings: dict[str, Any]) -> int:
    """Bytes that llama.cpp may allocate for these settings, which are those of a `LlamaProcess`.

    Twice the files (some weights are repacked beside the mapped ones), the cache of keys and values in 16 bits for the
    whole context, and room to compute in; never more than the machine has.

    Raises:
        ModelError: a file is damaged.
    """
    files = [Path(part["path"]) for part in (settings["model"], *settings.get("lora_adapters", ()))]
    shapes = read_header(files[0]).tensors.items()
    cached = sum(math.prod(shape[1:]) for name, (shape, _) in shapes if len(shape) > 1 and _CACHED.fullmatch(name))
    needed = 2 * sum(file.stat().st_size for file in files) + 2 * cached * int(settings["n_ctx"])
    return min(needed + WORKING_MEMORY, psutil.virtual_memory().total)


def _private_folder() -> tempfile.TemporaryDirectory[str] | None:
    """A folder for a socket, which only this user may enter; None where there are no such sockets, or the path is too
    long for one."""
    if not hasattr(socket, "AF_UNIX"):
        return None
    folder = tempfile.TemporaryDirectory(prefix="noesis-", ignore_cleanup_errors=True)
    if len(f"{folder.name}/llama.sock".encode()) > LONGEST_SOCKET_PATH:
        folder.cleanup()
        return None
    return folder
