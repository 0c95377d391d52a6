"""`noesis merge|gguf|parity`: each imports its stage only when it is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from noesis.cli.options import AgainOption, JsonOption, RunArgument, print_result, send_output_to

app = typer.Typer()


@app.command()
def merge(
    run: RunArgument,
    again: AgainOption = False,
    original: Annotated[
        bool,
        typer.Option(
            "--original", help="Into the base's original weights, though it was trained against dequantised ones."
        ),
    ] = False,
) -> None:
    """Adapter and base into one standalone model (safetensors).

    Example: noesis merge runs/demo
    """
    from noesis.pipeline.session import reopen_run
    from noesis.pipeline.stages.merge import run_merge

    s = reopen_run(run)
    with s.run.locked():
        run_merge(s, again=again, original=original)


@app.command()
def gguf(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Run directory, or a model folder with config.json and .safetensors.")
    ],
    quant: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated: f32, f16, q8_0, q4_k_m; default: as in training_config.yaml, f16 for a model folder."
        ),
    ] = None,
    outfile: Annotated[Path | None, typer.Option(metavar="FILE", help="Where the one kind asked for goes.")] = None,
    adapter: Annotated[
        bool, typer.Option("--adapter", help="The adapter alone as well, for a GGUF of its base.")
    ] = False,
    again: AgainOption = False,
) -> None:
    """GGUF files for llama.cpp and Ollama, and the certificate that they behave like what was trained.

    Example: noesis gguf runs/demo --quant f16,q8_0 · noesis gguf ./noesis_model --outfile noesis.gguf
    """
    from noesis.core.errors import UsageError
    from noesis.pipeline.session import reopen_run
    from noesis.pipeline.stages.gguf import run_gguf
    from noesis.release.convert import convert_folder
    from noesis.release.gguf.quantize import KINDS

    kinds = tuple(dict.fromkeys(quant.split(","))) if quant else None
    for kind in kinds or ():
        if kind not in KINDS:
            raise UsageError(f"--quant {kind!r} is not known; choose from {', '.join(KINDS)}")
    if run.is_dir() and not (run / "manifest.json").is_file():
        if adapter:
            raise UsageError(f"--adapter needs a run, and {run} is none")
        convert_folder(run, outfile, kinds or ("f16",))
        return
    s = reopen_run(run)
    with s.run.locked():
        if outfile is not None and kinds is None:
            kinds = (s.config.training.gguf.quantizations[0],)
        run_gguf(s, kinds=kinds, adapter=adapter, again=again, outfile=outfile)


@app.command()
def parity(run: RunArgument, as_json: JsonOption = False) -> None:
    """Measure again: adapter on its base, merged model, each GGUF. Exit code 1: one is outside its tolerance, and is put aside.

    Example: noesis parity runs/demo
    """
    from noesis.pipeline.session import reopen_run
    from noesis.pipeline.stages.gguf import parity

    send_output_to(as_json)
    s = reopen_run(run)
    with s.run.locked():
        result = parity(s)
    print_result(result.to_json(), as_json)
