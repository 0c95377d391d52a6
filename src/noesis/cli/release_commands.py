"""`noesis merge|gguf|parity`: turn a trained run into files that other programs load, and certify them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from noesis.cli.options import AgainOption, JsonOption, RunArgument, print_result, reserve_stdout, show_manifest_hash
from noesis.core.i18n import _

app = typer.Typer()


@app.command()
def merge(
    run: RunArgument,
    again: AgainOption = False,
    original: Annotated[
        bool,
        typer.Option(
            "--original", help="Merge into the base's original weights, even if it was trained on dequantised ones."
        ),
    ] = False,
) -> None:
    """Merge adapter and base into one standalone model (safetensors).

    Example: noesis merge runs/demo
    """
    from noesis.pipeline.session import locked_session
    from noesis.pipeline.stages.merge import run_merge

    with locked_session(run) as s:
        run_merge(s, again=again, original=original)
    show_manifest_hash(run)


@app.command()
def gguf(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="Run directory, or a model folder with config.json and safetensors files."),
    ],
    quant: Annotated[
        str | None,
        typer.Option(
            metavar="KINDS",
            help="Formats, separated by commas: f32, f16, q8_0, q4_k_m; default: as in training_config.yaml, "
            "f16 for a model folder.",
        ),
    ] = None,
    outfile: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File to write, where only one format is wanted.")
    ] = None,
    adapter: Annotated[
        bool, typer.Option("--adapter", help="Also write the adapter alone, for use with a GGUF file of its base.")
    ] = False,
    again: AgainOption = False,
) -> None:
    """Write GGUF files for llama.cpp and Ollama, and certify that they behave like the trained model.

    Example: noesis gguf runs/demo --quant f16,q8_0 · noesis gguf ./noesis_model --outfile noesis.gguf
    """
    from noesis.core.errors import UsageError
    from noesis.pipeline.session import locked_session
    from noesis.pipeline.stages.gguf import run_gguf
    from noesis.release.convert import convert_folder
    from noesis.release.gguf.quantize import KINDS

    kinds = tuple(dict.fromkeys(quant.split(","))) if quant else None
    for kind in kinds or ():
        if kind not in KINDS:
            raise UsageError(_("--quant {kind!r} is not known; choose from {kinds}", kind=kind, kinds=", ".join(KINDS)))
    if run.is_dir() and not (run / "manifest.json").is_file():
        if adapter:
            raise UsageError(
                _("--adapter needs a run directory, and {run} is a model folder (it has no manifest.json)", run=run)
            )
        convert_folder(run, outfile, kinds or ("f16",))
        return
    with locked_session(run) as s:
        if outfile is not None and kinds is None:
            kinds = (s.config.training.gguf.quantizations[0],)
        run_gguf(s, kinds=kinds, adapter=adapter, again=again, outfile=outfile)
    show_manifest_hash(run)


@app.command()
def parity(run: RunArgument, as_json: JsonOption = False) -> None:
    """Compare adapter, merged model and each GGUF file again.

    Exit code 1: one is outside its tolerance, and is renamed to *.rejected.gguf.

    Example: noesis parity runs/demo
    """
    from noesis.pipeline.session import locked_session
    from noesis.pipeline.stages.gguf import parity

    reserve_stdout(as_json)
    with locked_session(run) as s:
        result = parity(s)
    show_manifest_hash(run)
    print_result(result.to_json(), as_json)
