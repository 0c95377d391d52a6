"""llama.cpp's logits at every position, and its token ids, through the C functions that xllamacpp's library exports.

The server's protocol gives probabilities of the last position only, which proves little. The two parameter structures
are treated as opaque blocks: only `n_ctx`, the first field of the context's, is set, after checking that the defaults
around it are the known ones.
"""

from __future__ import annotations

import ctypes as c
import math
import time
from pathlib import Path
from typing import Any

from noesis.core.errors import ModelError
from noesis.core.i18n import _
from noesis.llm.gguf.header import REMAKE, read_header
from noesis.llm.llama_library import IdleCores, load_llama_cpp

LOOK_EVERY_S = 1.0  # at what other programs leave idle


class _Params(c.Structure):
    """Larger than llama.cpp's structures in any version; they are passed by memory, so the tail does no harm."""

    _fields_ = (("words", c.c_uint32 * 256),)


class _Batch(c.Structure):
    _fields_ = (
        ("n_tokens", c.c_int32),
        ("token", c.POINTER(c.c_int32)),
        ("embd", c.c_void_p),
        ("pos", c.POINTER(c.c_int32)),
        ("n_seq_id", c.POINTER(c.c_int32)),
        ("seq_id", c.POINTER(c.POINTER(c.c_int32))),
        ("logits", c.POINTER(c.c_int8)),
    )


_LOG = c.CFUNCTYPE(None, c.c_int, c.c_char_p, c.c_void_p)
_no_log = _LOG(lambda level, text, data: None)  # module-level, since llama.cpp stores the pointer


class LlamaModel:
    """A GGUF file in llama.cpp. Use as a context manager."""

    def __init__(self, file: Path, *, context: int = 1024, threads: int | None = None) -> None:
        """Load `file`.

        Args:
            context: most tokens of one sequence.
            threads: how many compute; default: as many as there are idle cores, time and again.

        Raises:
            ModelError: llama.cpp can't load it, or should not try.
        """
        library, self._cores = load_llama_cpp(), IdleCores()
        read_header(file)
        self._lib = lib = _declare(c.CDLL(str(library.xllamacpp.__file__)))
        lib.llama_log_set(_no_log, None)
        lib.llama_backend_init()
        self._model = lib.llama_model_load_from_file(str(file).encode(), lib.llama_model_default_params())
        if not self._model:
            raise ModelError(
                _(
                    "llama.cpp can't load {file}: it is damaged or of an unknown kind; {remake}",
                    file=file,
                    remake=REMAKE,
                )
            )
        params = lib.llama_context_default_params()
        if list(params.words[:3]) != [512, 2048, 512]:
            raise ModelError(
                _("this version of xllamacpp has other parameter structures: install the pinned one (constraints.txt)")
            )
        params.words[0] = context
        self.context = context
        self._ctx = lib.llama_init_from_model(self._model, params)
        if not self._ctx:
            raise ModelError(_("llama.cpp has no memory for a context of {context} tokens", context=context))
        self._chosen, self._looked = threads, -math.inf
        self._vocab = lib.llama_model_get_vocab(self._model)
        self.vocabulary = int(lib.llama_vocab_n_tokens(self._vocab))

    def use_adapter(self, file: Path) -> None:
        """Apply a LoRA adapter at scale 1 to everything computed from now on.

        Raises:
            ModelError: it belongs to another base, is damaged, or is not an adapter.
        """
        adapter = self._lib.llama_adapter_lora_init(self._model, str(file).encode())
        if not adapter:
            raise ModelError(
                _("llama.cpp can't apply the adapter {file}: it belongs to another base, or is damaged", file=file)
            )
        if self._lib.llama_set_adapters_lora(self._ctx, (c.c_void_p * 1)(adapter), 1, (c.c_float * 1)(1.0)) != 0:
            raise ModelError(_("llama.cpp refuses the adapter {file}", file=file))

    def tokenize(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of `text`, nothing added. With `special`, control tokens in it are recognised."""
        raw = text.encode()
        room = len(raw) + 8
        ids = (c.c_int32 * room)()
        count = self._lib.llama_tokenize(self._vocab, raw, len(raw), ids, room, False, special)
        if count < 0:
            raise ModelError(_("llama.cpp can't tokenise {text!r}", text=text[:40]))
        return list(ids[:count])

    def ends_generation(self, token: int) -> bool:
        """Whether a server stops at this token."""
        return bool(self._lib.llama_vocab_is_eog(self._vocab, token))

    def logits(self, ids: list[int]) -> Any:
        """Logits after each token: float32 (len(ids), vocabulary)."""
        if len(ids) > min(self.context, 2048):
            raise ValueError(_("{ids} tokens in a context of {context}", ids=len(ids), context=self.context))
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._ctx), True)
        return self._decode(ids)

    def _decode(self, ids: list[int], *, start: int = 0) -> Any:
        """Logits after each of `ids`, which follow `start` tokens decoded before."""
        import numpy as np

        lib = self._lib
        batch = lib.llama_batch_init(len(ids), 0, 1)
        try:
            batch.n_tokens = len(ids)
            for i, token in enumerate(ids):
                batch.token[i], batch.pos[i], batch.logits[i] = token, start + i, 1
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            self._set_threads()
            if lib.llama_decode(self._ctx, batch) != 0:
                raise ModelError(_("llama.cpp could not run the model"))
            rows = [
                np.ctypeslib.as_array(lib.llama_get_logits_ith(self._ctx, i), shape=(self.vocabulary,)).copy()
                for i in range(len(ids))
            ]
            return np.stack(rows)
        finally:
            lib.llama_batch_free(batch)

    def _set_threads(self) -> None:
        """Compute with as many threads as there are idle cores now. What is computed does not depend on it."""
        if (now := time.monotonic()) - self._looked >= LOOK_EVERY_S:
            threads = self._chosen or self._cores.threads()
            self._lib.llama_set_n_threads(self._ctx, threads, threads)
            self._looked = now

    def answer(self, ids: list[int], count: int, stop: set[int]) -> list[int]:
        """Greedy continuation of `ids`: at most `count` tokens, without the one in `stop` that ends it."""
        answer: list[int] = []
        token = int(self.logits(ids)[-1].argmax())
        while len(answer) < count and token not in stop:
            answer.append(token)
            if len(answer) == count:
                break
            token = int(self._decode([token], start=len(ids) + len(answer) - 1)[-1].argmax())
        return answer

    def __enter__(self) -> LlamaModel:
        return self

    def __exit__(self, *_: object) -> None:
        self._lib.llama_free(self._ctx)
        self._lib.llama_model_free(self._model)


def _declare(lib: Any) -> Any:
    """Argument and result types of the functions used."""
    void, i32 = c.c_void_p, c.c_int32
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "llama_log_set": (None, [_LOG, void]),
        "llama_backend_init": (None, []),
        "llama_model_default_params": (_Params, []),
        "llama_context_default_params": (_Params, []),
        "llama_model_load_from_file": (void, [c.c_char_p, _Params]),
        "llama_init_from_model": (void, [void, _Params]),
        "llama_set_n_threads": (None, [void, i32, i32]),
        "llama_model_get_vocab": (void, [void]),
        "llama_vocab_n_tokens": (i32, [void]),
        "llama_vocab_is_eog": (c.c_bool, [void, i32]),
        "llama_tokenize": (i32, [void, c.c_char_p, i32, c.POINTER(i32), i32, c.c_bool, c.c_bool]),
        "llama_batch_init": (_Batch, [i32, i32, i32]),
        "llama_batch_free": (None, [_Batch]),
        "llama_get_memory": (void, [void]),
        "llama_memory_clear": (None, [void, c.c_bool]),
        "llama_decode": (i32, [void, _Batch]),
        "llama_get_logits_ith": (c.POINTER(c.c_float), [void, i32]),
        "llama_adapter_lora_init": (void, [void, c.c_char_p]),
        "llama_set_adapters_lora": (i32, [void, c.POINTER(void), c.c_size_t, c.POINTER(c.c_float)]),
        "llama_free": (None, [void]),
        "llama_model_free": (None, [void]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib
