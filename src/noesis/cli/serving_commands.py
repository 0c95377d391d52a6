"""`noesis serve|chat|connect`: use the model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from noesis.cli.options import (
    JsonOption,
    JudgeOption,
    JudgesMaxUsdOption,
    ProjectOption,
    RunArgument,
    print_result,
    reserve_stdout,
)
from noesis.core.i18n import _

if TYPE_CHECKING:
    from noesis.constitution.document import Constitution
    from noesis.core.messages import Message
    from noesis.llm.clients.chat_client import LLMClient
    from noesis.pipeline.served.live_judge import LiveJudge
    from noesis.pipeline.served.page_examples import PageExamples
    from noesis.run.directory import Run

app = typer.Typer()
PORT = 8017

LanguageOption = Annotated[
    str | None,
    typer.Option("--language", metavar="CODE", help="Language of the system prompt; default: the run's."),
]
QuantOption = Annotated[
    str | None,
    typer.Option(
        metavar="KIND", help="GGUF format to use: f16, q8_0, …; default: the best that passed the parity check."
    ),
]
BaseOption = Annotated[
    Path | None,
    typer.Option(
        "--base", metavar="FILE", help="GGUF file of the base model; default: the run's own, where it exists."
    ),
]
KeyOption = Annotated[
    str | None,
    typer.Option(metavar="KEY", help="API key; safer in the environment variable NOESIS_API_KEY."),
]


@app.command()
def serve(
    run: RunArgument,
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="N", help="Port to listen on; 0 picks a free one.")
    ] = PORT,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen on; 0.0.0.0 accepts connections from the network.")
    ] = "127.0.0.1",
    key: KeyOption = None,
    ui: Annotated[
        bool, typer.Option("--ui", help="Also serve a page where base and tuned model answer side by side.")
    ] = False,
    judges: JudgeOption = None,
    language: LanguageOption = None,
    quant: QuantOption = None,
    base: BaseOption = None,
    parallel: Annotated[
        int, typer.Option(min=1, max=64, metavar="N", help="Requests answered at once; more get status 429.")
    ] = 8,
    context: Annotated[
        int, typer.Option(min=256, metavar="TOKENS", help="Context window of one request: prompt and answer together.")
    ] = 4096,
    max_tokens: Annotated[int, typer.Option(min=1, metavar="TOKENS", help="Longest answer.")] = 1024,
    timeout: Annotated[float, typer.Option(min=1, metavar="SECONDS", help="Longest time for one answer.")] = 600,
    max_usd: JudgesMaxUsdOption = None,
    project: ProjectOption = None,
) -> None:
    """Serve the tuned model (noesis) and its base (noesis-base) over an OpenAI-compatible API.

    Ctrl-C lets the requests in progress finish.

    Example: noesis serve runs/demo --ui
    """
    _require_serving_extra()
    import secrets

    from noesis.core.console import command, say
    from noesis.core.errors import UsageError
    from noesis.core.event_loop import run_async
    from noesis.llm.addresses import is_loopback_address
    from noesis.pipeline.served.files import served_files
    from noesis.run.directory import load_run
    from noesis.serving.page.load import load_page
    from noesis.serving.protocol import Limits
    from noesis.serving.server import Server, Settings, claim_port

    loaded = load_run(run)
    if context <= max_tokens:
        raise UsageError(
            _(
                "--context {context} leaves no room for a prompt next to --max-tokens {max_tokens}: "
                "raise --context or lower --max-tokens",
                context=context,
                max_tokens=max_tokens,
            )
        )
    given_key = key or os.environ.get("NOESIS_API_KEY")
    api_key = given_key or f"noesis-{secrets.token_urlsafe(24)}"
    constitution, prompt_language = _constitution_and_language(loaded, language)
    limits = Limits(parallel=parallel, context=context, max_tokens=max_tokens, request_s=timeout)
    settings = Settings(api_key, constitution.system_prompt, prompt_language, host, port, limits, constitution.model_id)
    listener = claim_port(host, port)  # before any model is loaded
    live = _live_judge(loaded, project, constitution, judges, max_usd) if judges else None
    files, page = served_files(loaded, quant=quant, base=base), load_page(constitution.name) if ui else None
    examples = _page_examples(project, is_loopback_address(listener.getsockname()[0])) if ui else None
    server = Server(files, settings, judge=live, examples=examples, page=page, port=listener)

    def ready() -> None:
        say(_("Serving {models} at {url}/v1", models=", ".join(server.models), url=server.url))
        if not server.is_private:
            say(
                _(
                    "  open to anyone who can reach {host}, and not encrypted: put a proxy with TLS in front of it",
                    host=host,
                )
            )
        if not given_key:
            say(_("Key     {api_key}", api_key=api_key))
            say(_("  generated for this start; set NOESIS_API_KEY to use your own"))
        if ui:
            say(
                _("Page    {url}/", url=server.url)
                + (_("  (it asks for your key)") if given_key else f"#key={api_key}")
            )
        if examples:
            say(_("  examples that are saved there go to {place}", place=examples.place))
        say(_("Try     {command}", command=command("connect", run, "--base-url", f"{server.url}/v1", "--probe")))

    async def work() -> None:
        try:
            await server.run(ready)
        finally:
            if live:
                await live.close()

    run_async(work())
    server.free()
    say(_("stopped"))


@app.command()
def chat(
    run: RunArgument,
    language: LanguageOption = None,
    max_tokens: Annotated[int, typer.Option(min=1, max=2048, metavar="TOKENS", help="Longest answer.")] = 400,
    temperature: Annotated[
        float, typer.Option(min=0, max=2, metavar="T", help="Sampling temperature; 0 always takes the likeliest token.")
    ] = 0.7,
    judges: JudgeOption = None,
    quant: QuantOption = None,
    base: BaseOption = None,
    max_usd: JudgesMaxUsdOption = None,
    project: ProjectOption = None,
) -> None:
    """Chat with the tuned model in the terminal.

    In the chat, /base shows the base model's answer, /judge asks the Tribunal, /save writes the conversation to a file.

    Example: noesis chat runs/demo
    """
    from noesis.serving.line_editor import is_terminal, question_reader

    _require_serving_extra(*(["prompt_toolkit"] if is_terminal() else []))
    from noesis.core.console import say
    from noesis.core.errors import UsageError
    from noesis.core.event_loop import AsyncRunner
    from noesis.pipeline.served.files import certified_gguf, find_base_gguf, served_files
    from noesis.pipeline.served.live_judge import format_opinion
    from noesis.run.directory import load_run
    from noesis.serving.chat import COMMANDS, CONTEXT, ChatSession, answer_function
    from noesis.serving.chat import chat as run_chat

    read = question_reader(COMMANDS)
    loaded = load_run(run)
    constitution, prompt_language = _constitution_and_language(loaded, language)
    live = _live_judge(loaded, project, constitution, judges, max_usd)
    files = served_files(loaded, quant=quant, base=base, lazy=True)
    say(_("  loading {name} …", name=(files.adapter or files.tuned or run).name))
    started: list[tuple[Any, LLMClient]] = []

    def client(model: Path, adapter: Path | None = None) -> LLMClient:
        from noesis.llm.clients.chat_client import LLMClient
        from noesis.llm.llama_cpp import LlamaServer

        backend = LlamaServer(model, adapter=adapter, parallel=1, context=CONTEXT)
        started.append(
            (backend, LLMClient(backend.url + "/v1", backend.key, "noesis", timeout_s=600, socket=backend.socket))
        )
        return started[-1][1]

    def base_client() -> LLMClient:
        if files.tuned is None or len(started) > 1:
            return started[-1][1]
        file = base or find_base_gguf(loaded)
        if file is None:
            raise UsageError(_("no GGUF file of the base model was found: name it with --base when you start the chat"))
        return client(file)

    tuned = client(files.base or certified_gguf(loaded), files.adapter) if files.tuned is None else client(files.tuned)
    system = constitution.system_prompt[prompt_language]
    with AsyncRunner() as runner:
        answer = answer_function(
            tuned,
            base_client,
            max_tokens=max_tokens,
            temperature=temperature,
            scales=files.adapter is not None,
            special=started[0][0].special,
        )

        def judge(dialogue: list[Message], text: str) -> list[str]:
            return format_opinion(runner.run(live.judge(dialogue, text, prompt_language)))

        session = ChatSession(answer, judge, system, max_tokens, constitution.name)
        run_chat(session, read, keys=is_terminal())
        runner.run(live.close())
    for backend, connected in started:
        connected.close()
        backend.stop(10.0)


@app.command()
def connect(
    run: RunArgument,
    target: Annotated[
        Literal["env", "python", "docker"],
        typer.Option(help="What to print: environment variables, Python code, or a docker command."),
    ] = "env",
    base_url: Annotated[
        str,
        typer.Option("--base-url", metavar="URL", help="Address of the API, with or without a slash at its end."),
    ] = f"http://127.0.0.1:{PORT}/v1",
    key: KeyOption = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Name of the model at that address; default: as noesis serve names it."),
    ] = None,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe",
            help="Check that the address answers as the run's own GGUF file does. Exit code 1: it does not.",
        ),
    ] = False,
    base: BaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print what an application needs to use the model; with --probe, check that it is this run's model.

    Example: noesis connect runs/demo --target python
    """
    from noesis.core.console import say, say_text
    from noesis.core.errors import ParityError, UsageError
    from noesis.llm.clients.chat_client import LLMClient
    from noesis.pipeline.served.files import first_question
    from noesis.run.directory import load_run
    from noesis.serving.connect import Endpoint, instructions

    reserve_stdout(as_json)
    loaded = load_run(run)
    constitution, _ignored = _constitution_and_language(loaded, None)
    model = model or constitution.model_id
    if not probe:
        text = instructions(target, Endpoint(base_url.rstrip("/"), model, key, first_question(loaded)))
        print_result({"base_url": base_url, "model": model, "text": text}, True) if as_json else say_text(text)
        return
    _require_serving_extra()
    from noesis.pipeline.served.files import probe_endpoint

    api_key = key or os.environ.get("NOESIS_API_KEY")
    if not api_key:
        raise UsageError(_("--probe needs the API key: set NOESIS_API_KEY, or give --key"))
    result = probe_endpoint(loaded, LLMClient(base_url, api_key, model), base=base)
    say(_("  it answers: {chat!r} ({total_tokens} tokens)", chat=result.chat[:200], total_tokens=result.total_tokens))
    say(f"  {result.why}")
    print_result(result.to_json(), as_json)
    if not result.same:
        raise ParityError(
            _("{base_url} does not answer as the model of {run}: {why}", base_url=base_url, run=run, why=result.why)
        )
    say(_("{model} at {base_url} is the model of {run}", model=model, base_url=base_url, run=run))


def _require_serving_extra(*more: str) -> None:
    """Raise MissingExtra before any model is loaded, if a package for serving is not installed."""
    import importlib.util

    from noesis.core.errors import MissingExtra

    for package in ("aiohttp", "xllamacpp", *more):
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(package, "gguf")


def _constitution_and_language(run: Run, language: str | None) -> tuple[Constitution, str]:
    """The run's constitution, and the language of the system prompt: one that it has, also of a run on all."""
    from noesis.constitution.document import load_constitution
    from noesis.core.errors import UsageError

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


def _page_examples(named: Path | None, is_private: bool) -> PageExamples | None:
    """Where the page keeps examples: in the named project, or in the one around, if only this machine can ask."""
    from noesis.core.console import say
    from noesis.core.errors import NoesisError
    from noesis.core.project import find_project
    from noesis.pipeline.served.page_examples import PageExamples

    if named is None and not is_private:
        return None
    try:
        return PageExamples(find_project(named))
    except NoesisError as error:
        if named is not None:
            raise
        say(_("  the page can save no examples: {args}", args=error.args[0]))
        return None


def _live_judge(
    run: Run, project: Path | None, constitution: Constitution, judges: list[str] | None, max_usd: float | None
) -> LiveJudge:
    from noesis.core.project import Project, find_project
    from noesis.pipeline.served.live_judge import LiveJudge

    found = find_project(project) if judges else Project(run.path)
    return LiveJudge(run, found, constitution, judges or (), max_usd=max_usd)
