"""`noesis serve|chat|connect`: use the model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

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
    from noesis.core.messages import Message

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
    from noesis.api.serving import require_serving_extra

    require_serving_extra()
    from noesis.core.console import command, say
    from noesis.core.event_loop import run_async
    from noesis.pipeline.served.open_server import open_server
    from noesis.run.directory import load_run
    from noesis.serving.protocol import Limits

    opened = open_server(
        load_run(run),
        host=host,
        port=port,
        key=key,
        ui=ui,
        judges=judges,
        language=language,
        quant=quant,
        base=base,
        limits=Limits(parallel=parallel, context=context, max_tokens=max_tokens, request_s=timeout),
        max_usd=max_usd,
        project=project,
    )
    server = opened.server

    def ready() -> None:
        say(_("Serving {models} at {url}/v1", models=", ".join(server.models), url=server.url))
        if not server.is_private:
            say(
                _(
                    "  open to anyone who can reach {host}, and not encrypted: put a proxy with TLS in front of it",
                    host=host,
                )
            )
        if opened.generated_key:
            say(_("Key     {api_key}", api_key=opened.key))
            say(_("  generated for this start; set NOESIS_API_KEY to use your own"))
        if ui:
            say(
                _("Page    {url}/", url=server.url)
                + (f"#key={opened.key}" if opened.generated_key else _("  (it asks for your key)"))
            )
        if opened.examples:
            say(_("  examples that are saved there go to {place}", place=opened.examples.place))
        say(_("Try     {command}", command=command("connect", run, "--base-url", f"{server.url}/v1", "--probe")))

    async def work() -> None:
        try:
            await server.run(ready)
        finally:
            if opened.live:
                await opened.live.close()

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
    from noesis.api.serving import require_serving_extra
    from noesis.serving.line_editor import is_terminal, question_reader

    require_serving_extra(*(["prompt_toolkit"] if is_terminal() else []))
    from noesis.core.event_loop import AsyncRunner
    from noesis.pipeline.served.chat_models import ChatModels
    from noesis.pipeline.served.live_judge import format_opinion
    from noesis.pipeline.served.open_server import constitution_and_language, live_judge
    from noesis.run.directory import load_run
    from noesis.serving.chat import COMMANDS, ChatSession
    from noesis.serving.chat import chat as run_chat

    read = question_reader(COMMANDS)
    loaded = load_run(run)
    constitution, spoken = constitution_and_language(loaded, language)
    live = live_judge(loaded, project, constitution, judges, max_usd)
    models = ChatModels(loaded, quant=quant, base=base)
    answer = models.answers(max_tokens=max_tokens, temperature=temperature)
    with AsyncRunner() as runner:

        def judge(dialogue: list[Message], text: str) -> list[str]:
            return format_opinion(runner.run(live.judge(dialogue, text, spoken)))

        session = ChatSession(answer, judge, constitution.system_prompt[spoken], max_tokens, constitution.name)
        run_chat(session, read, keys=is_terminal())
        runner.run(live.close())
    models.close()


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
    from noesis.api.serving import require_serving_extra
    from noesis.constitution.document import load_constitution
    from noesis.core.console import say, say_text
    from noesis.core.errors import ParityError, UsageError
    from noesis.llm.clients.chat_client import LLMClient
    from noesis.pipeline.served.files import first_question
    from noesis.run.directory import load_run
    from noesis.serving.connect import Endpoint, instructions

    reserve_stdout(as_json)
    loaded = load_run(run)
    model = model or load_constitution(loaded.data / "constitution.yaml").model_id
    if not probe:
        text = instructions(target, Endpoint(base_url.rstrip("/"), model, key, first_question(loaded)))
        print_result({"base_url": base_url, "model": model, "text": text}, True) if as_json else say_text(text)
        return
    require_serving_extra()
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
