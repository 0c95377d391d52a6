"""llama.cpp as xllamacpp brings it, loaded so that it works beside other programs.

llama.cpp computes with a thread for each core, which meet at a barrier several hundred times a token. By default those
that wait there spin: where one of them is not scheduled, because a browser or a training has its core, all the others
burn theirs meanwhile. So they sleep instead (`OMP_WAIT_POLICY`, where llama.cpp was built with OpenMP, as on Linux;
`poll` elsewhere). docs/decisions/0053 has the figures.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

from noesis.core.device import usable_threads
from noesis.core.errors import MissingExtra

WAITING = "OMP_WAIT_POLICY"


def llama_threads() -> int:
    """How many threads llama.cpp computes with: the cores that this process may use; two threads of one core would only
    take turns at its arithmetic."""
    import psutil

    return min(usable_threads(), psutil.cpu_count(logical=False) or usable_threads())


@cache
def load_llama_cpp() -> Any:
    """The module xllamacpp, whose threads sleep while they wait, unless the user says otherwise in the environment.

    Raises:
        MissingExtra: it is not installed.
    """
    chosen = os.environ.get(WAITING)
    os.environ.setdefault(WAITING, "passive")  # read once, when the library is loaded
    try:
        import xllamacpp
    except ImportError:
        raise MissingExtra("xllamacpp", "gguf") from None
    finally:
        if chosen is None:
            del os.environ[WAITING]  # PyTorch has threads of its own, and reads it too
    return xllamacpp
