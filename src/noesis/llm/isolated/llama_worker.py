"""llama.cpp's server in a child process (`child.py`): `handle` starts it with the settings of `llama_process.py`."""

from __future__ import annotations

from typing import Any

from noesis.core.errors import ModelError
from noesis.llm.llama_library import load_llama_cpp

_server: Any = None


def handle(settings: dict[str, Any]) -> str:
    """Load the model and listen; returns the address.

    Args:
        settings: of `xllamacpp.CommonParams`, nested as its attributes are.

    Raises:
        ModelError: llama.cpp can't load it.
    """
    global _server
    xllamacpp = load_llama_cpp()
    params = xllamacpp.CommonParams()
    adapters = settings.pop("lora_adapters", [])
    _apply(params, settings)
    if adapters:
        params.lora_adapters = [_apply(xllamacpp.CommonAdapterLoraInfo(), adapter) for adapter in adapters]
    try:
        _server = xllamacpp.Server(params)
    except RuntimeError as error:
        raise ModelError(str(error)) from None
    return str(_server.listening_address)


def _apply(target: Any, settings: dict[str, Any]) -> Any:
    for name, value in settings.items():
        if isinstance(value, dict):
            _apply(getattr(target, name), value)
        else:
            setattr(target, name, value)
    return target
