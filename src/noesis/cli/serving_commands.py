"""`noesis serve|chat|connect`: the model where it is used."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from noesis.cli.options import (
    JsonOption,
    JudgeOption,
    JudgesMaxUsdOption,
    ProjectOption,
    RunArgument,
    print_result,
    program,
    send_output_to,
    shown,
)

if TYPE_CHECKING:
    from noesis.llm.clients.chat_client import LLMClient
    from noesis.pipeline.live_judge import LiveJudge
    from noesis.run.directory import Run

app = typer.Typer()
PORT = 8017

LanguageOption = Annotated[
    str | None, typer.Option(help="Language of the system prompt, pt or en; default: the run's.")
]
QuantOption = Annotated[
    str | None,
    typer.Option(metavar="KIND", help="Serve this GGUF file of the run: f16, q8_0, …; default: the best that passed."),
]
BaseOption = Annotated[
    Path | None,
    typer.Option("--base", metavar="FILE", help="GGUF file of the base; default: the run's, if it is at hand."),
]
KeyOption = Annotated[
    str | None,
    typer.Option(metavar="KEY", help="Better in the environment variable NOESIS_API_KEY, where others can't see it."),
]


@app.command()
def serve(
    run: RunArgument,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = PORT,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 opens it to the network.")] = "127.0.0.1",
    key: KeyOption = None,
    ui: Annotated[bool, typer.Option("--ui", help="Also the page: base and tuned answer side by side.")] = False,
    judges: JudgeOption = None,
    language: LanguageOption = None,
    quant: QuantOption = None,
    base: BaseOption = None,
    parallel: Annotated[int, typer.Option(min=1, max=64, help="Requests at once; more are asked to come again.")] = 8,
    context: Annotated[int, typer.Option(min=256, metavar="TOKENS", help="Prompt and answer of one request.")] = 4096,
    max_tokens: Annotated[int, typer.Option(min=1, metavar="TOKENS", help="Longest answer.")] = 1024,
    timeout: Annotated[float, typer.Option(min=1, metavar="SECONDS", help="Longest time for one answer.")] = 600,
    max_usd: JudgesMaxUsdOption = None,
    project: ProjectOption = None,
) -> None:
    """An OpenAI-compatible server for the tuned model (noesis) and its base (noesis-base). Ctrl-C finishes what is under way.

    Example: noesis serve runs/demo --ui
    """
    _require()
    import secrets

    from noesis.core.console import say
    from noesis.core.errors import UsageError
    from noesis.core.event_loop import run_async
    from noesis.pipeline.served_files import served_files
    from noesis.run.directory import load_run
    from noesis.serving.page import load_page
    from noesis.serving.protocol import Limits
    from noesis.serving.server import LOOPBACK, Server, Settings, claim_port

    loaded = load_run(run)
    if context <= max_tokens:
        raise UsageError(
            f"--context {context} leaves no room for a prompt beside --max-tokens {max_tokens}: raise one or lower the other"
        )
    given = key or os.environ.get("NOESIS_API_KEY")
    used = given or f"noesis-{secrets.token_urlsafe(24)}"
    constitution, spoken = _voice(loaded, language)
    limits = Limits(parallel=parallel, context=context, max_tokens=max_tokens, request_s=timeout)
    settings = Settings(used, constitution.system_prompt, spoken, host, port, limits)
    taken = claim_port(host, port)  # before anything is loaded
    judge = _live_judge(loaded, project, constitution, judges, max_usd) if judges else None
    files, page = served_files(loaded, quant=quant, base=base), load_page() if ui else None
    server = Server(files, settings, judge=judge, page=page, port=taken)

    def ready() -> None:
        say(f"Serving {', '.join(server.models)} at {server.url}/v1")
        if host not in LOOPBACK:
            say(f"  open to whoever reaches {host}; traffic is not encrypted: put a proxy with TLS before it")
        if not given:
            say(f"Key     {used}\n  made for this start; set NOESIS_API_KEY to use one of your own")
        if ui:
            say(f"Page    {server.url}/#key={used}")
        say(f"Try     {program()} connect {shown(run)} --base-url {server.url}/v1 --probe")

    async def work() -> None:
        try:
            await server.run(ready)
        finally:
            if judge:
                await judge.close()

    run_async(work())
    server.free()
    say("stopped")


@app.command()
def chat(
    run: RunArgument,
    language: LanguageOption = None,
    max_tokens: Annotated[int, typer.Option(min=1, max=2048, help="Most tokens of an answer.")] = 400,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0 is greedy.")] = 0.7,
    judges: JudgeOption = None,
    quant: QuantOption = None,
    base: BaseOption = None,
    max_usd: JudgesMaxUsdOption = None,
    project: ProjectOption = None,
) -> None:
    """Talk to the tuned model in the terminal; /base compares, /judge asks the Tribunal, /save keeps the conversation.

    Example: noesis chat runs/demo
    """
    _require()
    from noesis.core.console import say
    from noesis.core.errors import UsageError
    from noesis.core.event_loop import AsyncRunner
    from noesis.pipeline.live_judge import format_opinion
    from noesis.pipeline.served_files import certified_gguf, find_base_gguf, served_files
    from noesis.run.directory import load_run
    from noesis.serving.chat import CONTEXT, ChatSession, answer_function
    from noesis.serving.chat import chat as hold

    loaded = load_run(run)
    constitution, voice = _voice(loaded, language)
    judge = _live_judge(loaded, project, constitution, judges, max_usd)
    files = served_files(loaded, quant=quant, base=base, lazy=True)
    say(f"  loading {(files.adapter or files.tuned or run).name} …")
    started: list[tuple[Any, LLMClient]] = []

    def client(model: Path, adapter: Path | None = None) -> LLMClient:
        from noesis.llm.clients.chat_client import LLMClient
        from noesis.llm.llama_cpp import LlamaServer

        backend = LlamaServer(model, adapter=adapter, parallel=1, context=CONTEXT)
        started.append((backend, LLMClient(backend.url + "/v1", backend.key, "noesis", timeout_s=600)))
        return started[-1][1]

    def base_client() -> LLMClient:
        if files.tuned is None or len(started) > 1:
            return started[-1][1]
        file = base or find_base_gguf(loaded)
        if file is None:
            raise UsageError("the base is not at hand: name its GGUF file with --base when you start the chat")
        return client(file)

    tuned = client(files.base or certified_gguf(loaded), files.adapter) if files.tuned is None else client(files.tuned)
    system = constitution.system_prompt.en if voice == "en" else constitution.system_prompt.pt
    with AsyncRunner() as runner:
        answer = answer_function(
            tuned, base_client, max_tokens=max_tokens, temperature=temperature, scales=files.adapter is not None
        )
        hold(
            ChatSession(
                answer,
                lambda messages, text: format_opinion(runner.run(judge.judge_answer(messages, text, voice))),
                system,
                max_tokens,
            )
        )
        runner.run(judge.close())
    for backend, connected in started:
        connected.close()
        backend.stop(10.0)


@app.command()
def connect(
    run: RunArgument,
    target: Annotated[str, typer.Option(help="env, python or docker.")] = "env",
    base_url: Annotated[
        str,
        typer.Option("--base-url", metavar="URL", help="Where the model answers; with or without a slash at its end."),
    ] = f"http://127.0.0.1:{PORT}/v1",
    key: KeyOption = None,
    model: Annotated[str, typer.Option(help="The model's name at that address.")] = "noesis",
    probe: Annotated[
        bool,
        typer.Option(
            "--probe", help="Ask it, and compare with the run's own GGUF file: is it this model? Exit code 1 if not."
        ),
    ] = False,
    base: BaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """What an application needs to use the model, and with --probe the proof that the address answers as this run's model.

    Example: noesis connect runs/demo --target python
    """
    from noesis.core.errors import ParityError, UsageError
    from noesis.llm.clients.chat_client import LLMClient
    from noesis.run.directory import load_run
    from noesis.serving.connect import TARGETS, Endpoint, instructions

    if target not in TARGETS:
        raise UsageError(f"--target {target!r}: choose {', '.join(TARGETS)}")
    send_output_to(as_json)
    loaded = load_run(run)
    if not probe:
        text = instructions(target, Endpoint(base_url.rstrip("/"), model, key))
        print_result({"base_url": base_url, "model": model, "text": text}, True) if as_json else print(text)
        return
    _require()
    from noesis.core.console import say
    from noesis.pipeline.served_files import probe_endpoint

    used = key or os.environ.get("NOESIS_API_KEY")
    if not used:
        raise UsageError("the probe needs the key: set NOESIS_API_KEY, or give --key")
    result = probe_endpoint(loaded, LLMClient(base_url, used, model), base=base)
    say(f"  it answers: {result.chat[:200]!r} ({result.total_tokens} tokens)")
    say(f"  {result.why}")
    print_result(result.to_json(), as_json)
    if not result.same:
        raise ParityError(f"{base_url} does not answer as the model of {run}: {result.why}")
    say(f"{model} at {base_url} is the model of {run}")


def _require() -> None:
    """What these commands need beside the core, said before anything is loaded."""
    import importlib.util

    from noesis.core.errors import MissingExtra

    for package in ("aiohttp", "xllamacpp"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(package, "gguf")


def _voice(run: Run, language: str | None) -> tuple[Any, str]:
    """The run's constitution, and the language of the system prompt."""
    from noesis.constitution.document import load_constitution
    from noesis.core.errors import UsageError

    if language not in (None, "pt", "en"):
        raise UsageError(f"--language {language!r}: choose pt or en")
    return load_constitution(run.data / "constitution.yaml"), language or run.config().training.data.language


def _live_judge(
    run: Run, project: Path | None, constitution: Any, judges: list[str] | None, max_usd: float | None
) -> LiveJudge:
    from noesis.core.project import Project, find_project
    from noesis.pipeline.live_judge import LiveJudge

    return LiveJudge(
        run, find_project(project) if judges else Project(run.path), constitution, judges or (), max_usd=max_usd
    )
