"""Noesis: a constitution and about a hundred examples become a small model that can be trusted to speak by them.

The public names below are imported when they are first used, so that `import noesis` loads nothing heavy:

    from noesis import Project, load_config, load_run
    config = load_config(Project(Path(".")))
"""

from __future__ import annotations

__version__ = "0.2.0"

__all__ = ["Dataset", "LLMClient", "NoesisError", "Project", "__version__", "load_config", "load_run", "start_run"]

_MODULES = {
    "Dataset": "noesis.dataset.schema",
    "LLMClient": "noesis.llm.clients.chat_client",
    "NoesisError": "noesis.core.errors",
    "Project": "noesis.core.project",
    "load_config": "noesis.core.config",
    "load_run": "noesis.run.directory",
    "start_run": "noesis.pipeline.start_run",
}


def __getattr__(name: str) -> object:
    import importlib

    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
