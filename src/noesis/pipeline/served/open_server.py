"""A server of a run, with its page, its judges and its examples: for `noesis serve` and `noesis.serve`."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from noesis.constitution.document import Constitution, load_constitution
from noesis.core.console import say
from noesis.core.errors import NoesisError, UsageError
from noesis.core.i18n import _
from noesis.core.project import Project, find_project
from noesis.llm.addresses import is_loopback_address
from noesis.pipeline.served.files import served_files
from noesis.pipeline.served.live_judge import LiveJudge
from noesis.pipeline.served.page_examples import PageExamples
from noesis.run.directory import Run
from noesis.serving.page.load import load_page
from noesis.serving.protocol import Limits
from noesis.serving.server import Server, Settings, claim_port


@dataclass(frozen=True)
class OpenServer:
    """A server whose models are loaded.

    live: the judges of the page and of /noesis/judge, to be closed after it; None without judges
    examples: where the page keeps examples; None: nowhere
    generated_key: nobody chose the key, so it has to be shown
    """

    server: Server
    live: LiveJudge | None
    examples: PageExamples | None
    generated_key: bool

    @property
    def key(self) -> str:
        return self.server.settings.key


def open_server(
    run: Run,
    *,
    host: str,
    port: int,
    key: str | None = None,
    ui: bool = False,
    judges: Sequence[str] | None = None,
    language: str | None = None,
    quant: str | None = None,
    base: Path | None = None,
    limits: Limits,
    max_usd: float | None = None,
    project: Path | None = None,
) -> OpenServer:
    """Claim the port, load judges and models; nothing is answered yet.

    Args:
        key: default: NOESIS_API_KEY, else a generated one.
        project: where the page keeps examples and the judges' rubrics are; default: found, as `find_project` does.

    Raises:
        UsageError: the port is in use, the key too short, a language that the run does not speak, or no room for a
            prompt. RunError: no certified GGUF file. ModelError: a file can't be loaded.
    """
    if limits.context <= limits.max_tokens:
        raise UsageError(
            _(
                "--context {context} leaves no room for a prompt next to --max-tokens {max_tokens}: "
                "raise --context or lower --max-tokens",
                context=limits.context,
                max_tokens=limits.max_tokens,
            )
        )
    given = key or os.environ.get("NOESIS_API_KEY")
    constitution, spoken = constitution_and_language(run, language)
    settings = Settings(
        given or f"noesis-{secrets.token_urlsafe(24)}",
        constitution.system_prompt,
        spoken,
        host,
        port,
        limits,
        constitution.model_id,
    )
    listener = claim_port(host, port)  # before any model is loaded
    live = live_judge(run, project, constitution, judges, max_usd) if judges else None
    files, page = served_files(run, quant=quant, base=base), load_page(constitution.name) if ui else None
    examples = _page_examples(project, is_loopback_address(listener.getsockname()[0])) if ui else None
    server = Server(files, settings, judge=live, examples=examples, page=page, port=listener)
    return OpenServer(server, live, examples, given is None)


def constitution_and_language(run: Run, language: str | None) -> tuple[Constitution, str]:
    """The run's constitution, and the language of the system prompt: one that it has, also of a run on all."""
    constitution = load_constitution(run.data / "constitution.yaml")
    if language is not None and language not in constitution.languages:
        raise UsageError(
            _(
                "--language {language}: the run's system prompt speaks {languages} only",
                language=language,
                languages=" and ".join(constitution.languages),
            )
        )
    chosen = language or run.config().training.data.language
    return constitution, chosen if chosen in constitution.languages else constitution.languages[0]


def live_judge(
    run: Run, project: Path | None, constitution: Constitution, judges: Sequence[str] | None, max_usd: float | None
) -> LiveJudge:
    """The judges of single answers; without any, the offline screen."""
    found = find_project(project) if judges else Project(run.path)
    return LiveJudge(run, found, constitution, judges or (), max_usd=max_usd)


def _page_examples(named: Path | None, is_private: bool) -> PageExamples | None:
    """Where the page keeps examples: in the named project, or in the one around, if only this machine can ask."""
    if named is None and not is_private:
        return None
    try:
        return PageExamples(find_project(named))
    except NoesisError as error:
        if named is not None:
            raise
        say(_("  the page can save no examples: {args}", args=error.args[0]))
        return None
