"""Which type each tensor of a GGUF gets, and quantisation to it by the C function that llama.cpp uses.

The mix of types in Q4_K_M, and what replaces a K-quant where rows are not a multiple of 256, are llama.cpp's (MIT).
SmolLM2's width is 576: its "Q4_K_M" is mostly Q5_0.
"""

from __future__ import annotations

import ctypes as c
import re
from functools import lru_cache
from typing import Any

from noesis.core.errors import ModelError
from noesis.core.i18n import _
from noesis.llm.llama_library import load_llama_cpp

KINDS = ("f32", "f16", "q8_0", "q4_k_m")
FALLBACK = {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}  # where a row is not a multiple of 256
BITS = {"f32": 32.0, "f16": 16.0, "q8_0": 8.5, "q4_k_m": 5.8}  # per weight at most, to estimate the size of a file


def storage_type(kind: str, name: str, shape: tuple[int, ...], *, layers: int, has_output: bool) -> Any:
    """The type in which a tensor is stored.

    Args:
        kind: one of KINDS.
        name: llama.cpp's.
        shape: as Hugging Face has it, (out, in).
        layers: of the model; the first and last eighth and every third in between get more bits.
        has_output: whether the output layer has its own tensor.
    """
    from gguf import GGMLQuantizationType as Type
    from gguf.constants import GGML_QUANT_SIZES

    if len(shape) != 2 or kind == "f32":
        return Type.F32
    if kind == "f16":
        return Type.F16
    wanted = "Q8_0"
    if kind == "q4_k_m":
        wanted = "Q4_K"
        block = re.match(r"blk\.(\d+)\.(?:attn_v|ffn_down)\.weight$", name)
        # a tied embedding is the output layer too
        output = name == "output.weight" or (name == "token_embd.weight" and not has_output)
        if output:
            wanted = "Q6_K" if shape[1] % 256 == 0 else "Q8_0"
        elif block and _more_bits(int(block.group(1)), layers):
            wanted = "Q6_K"
        if shape[1] % 256:
            wanted = FALLBACK.get(wanted, wanted)
    found = Type[wanted]
    return found if shape[1] % GGML_QUANT_SIZES[found][0] == 0 else Type.F16


def _more_bits(layer: int, layers: int) -> bool:
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def row_bytes(stored: Any, columns: int) -> int:
    """Bytes of one row of `columns` numbers."""
    from gguf.constants import GGML_QUANT_SIZES

    block, size = GGML_QUANT_SIZES[stored]
    return int(columns // block * size)


def quantise(rows: Any, stored: Any) -> Any:
    """`rows` (float32, one or two dimensions) in the type `stored`, as an array whose bytes go into the file.

    Raises:
        ModelError: a number is not finite, or too large for F16 (which ends at 65,504).
    """
    import numpy as np
    from gguf import GGMLQuantizationType as Type

    if stored == Type.F32:
        return np.ascontiguousarray(rows, dtype=np.float32)
    if stored == Type.F16:
        with np.errstate(over="ignore"):
            halves = rows.astype(np.float16)
        if not np.isfinite(halves).all():
            raise ModelError(
                _("a weight of {max:.3g} does not fit F16: choose --quant f32 or q8_0", max=float(np.abs(rows).max()))
            )
        return halves
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    if not np.isfinite(rows).all():
        raise ModelError(_("a weight is not a finite number: the model is damaged, or training diverged"))
    out = np.empty((rows.shape[0], row_bytes(stored, rows.shape[1])), dtype=np.uint8)
    lib = _library()
    written = lib.ggml_quantize_chunk(
        int(stored), rows.ctypes.data, out.ctypes.data, 0, rows.shape[0], rows.shape[1], None
    )
    if written != out.nbytes:
        raise ModelError(
            _(
                "llama.cpp's quantiser wrote {written} bytes instead of {nbytes}: "
                "install the pinned xllamacpp (constraints.txt)",
                written=written,
                nbytes=out.nbytes,
            )
        )
    return out


@lru_cache(maxsize=1)
def _library() -> Any:
    """llama.cpp's shared library, with the quantiser's signature declared."""
    lib = c.CDLL(str(load_llama_cpp().xllamacpp.__file__))
    lib.ggml_quantize_chunk.restype = c.c_size_t
    lib.ggml_quantize_chunk.argtypes = [c.c_int, c.c_void_p, c.c_void_p, c.c_int64, c.c_int64, c.c_int64, c.c_void_p]
    return lib
