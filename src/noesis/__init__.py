"""Noesis: a constitution and about a hundred examples become a small model that can be trusted to speak by them.

The commands as functions; `examples/quickstart.ipynb` goes from examples to a chat:

    import noesis

    project = noesis.create_project("my-philosopher")  # or load_project
    run = noesis.train(project, "runs/mine", epochs=1)
    noesis.judge(run)
    noesis.merge(run)
    noesis.export_gguf(run)
    with noesis.chat(run) as conversation:
        print(conversation.ask("What is courage?"))

What fails on a user's side raises a `NoesisError`, whose message says what to do; `noesis.errors` has the others.
The names are imported when they are first used, so that `import noesis` loads nothing heavy.
"""

from __future__ import annotations

__version__ = "0.2.0"

TYPE_CHECKING = False  # as type checkers know it, without the cost of importing typing
if TYPE_CHECKING:
    from noesis.api.projects import create_project, load_project, validate
    from noesis.api.runs import certify, export_gguf, judge, merge, push, report
    from noesis.api.serving import chat, serve
    from noesis.api.training import plan, train
    from noesis.core import errors
    from noesis.core.errors import NoesisError
    from noesis.core.project import Project
    from noesis.llm.clients.chat_client import LLMClient
    from noesis.run.directory import Run, load_run

__all__ = [
    "LLMClient",
    "NoesisError",
    "Project",
    "Run",
    "__version__",
    "certify",
    "chat",
    "create_project",
    "errors",
    "export_gguf",
    "judge",
    "load_project",
    "load_run",
    "merge",
    "plan",
    "push",
    "report",
    "serve",
    "train",
    "validate",
]

_MODULES = {
    "LLMClient": "noesis.llm.clients.chat_client",
    "NoesisError": "noesis.core.errors",
    "Project": "noesis.core.project",
    "Run": "noesis.run.directory",
    "certify": "noesis.api.runs",
    "chat": "noesis.api.serving",
    "create_project": "noesis.api.projects",
    "export_gguf": "noesis.api.runs",
    "judge": "noesis.api.runs",
    "load_project": "noesis.api.projects",
    "load_run": "noesis.run.directory",
    "merge": "noesis.api.runs",
    "plan": "noesis.api.training",
    "push": "noesis.api.runs",
    "report": "noesis.api.runs",
    "serve": "noesis.api.serving",
    "train": "noesis.api.training",
    "validate": "noesis.api.projects",
}


def __getattr__(name: str) -> object:
    import importlib

    if name == "errors":
        return importlib.import_module("noesis.core.errors")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
