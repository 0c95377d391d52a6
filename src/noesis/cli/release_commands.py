"""`noesis merge|gguf|parity|push`: turn a trained run into files that other programs load, certify and publish them."""

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
    from noesis.api.runs import merge as merge_run

    merge_run(run, again=again, original=original)
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
    from noesis.api.runs import export_gguf, known_kinds
    from noesis.core.errors import UsageError
    from noesis.release.convert import convert_folder

    kinds = known_kinds(quant.split(",")) if quant else None
    if run.is_dir() and not (run / "manifest.json").is_file():
        if adapter:
            raise UsageError(
                _("--adapter needs a run directory, and {run} is a model folder (it has no manifest.json)", run=run)
            )
        convert_folder(run, outfile, kinds or ("f16",))
        return
    export_gguf(run, kinds, adapter=adapter, again=again, outfile=outfile)
    show_manifest_hash(run)


@app.command()
def parity(run: RunArgument, as_json: JsonOption = False) -> None:
    """Compare adapter, merged model and each GGUF file again.

    Exit code 1: one is outside its tolerance, and is renamed to *.rejected.gguf.

    Example: noesis parity runs/demo
    """
    from noesis.api.runs import certify

    reserve_stdout(as_json)
    result = certify(run)
    show_manifest_hash(run)
    print_result(result.to_json(), as_json)


@app.command()
def push(
    run: RunArgument,
    repo: Annotated[
        str, typer.Option("--repo", metavar="NAME", help="Repository on the Hub: OWNER/NAME, or NAME for your account.")
    ],
    public: Annotated[bool, typer.Option("--public", help="Let everyone see it; default: only you.")] = False,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            "--allow",
            metavar="REASON",
            help="Push although the verdict is undecided, conditional or rejected, or the run uncertified; repeatable.",
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset", metavar="NAME", help="Also push the run's examples, with their cards, to this repository."
        ),
    ] = None,
    dataset_licence: Annotated[
        str | None,
        typer.Option("--dataset-licence", metavar="ID", help="Their licence, as the Hub names it: cc-by-4.0, …"),
    ] = None,
    licence_file: Annotated[
        Path | None,
        typer.Option(
            "--licence-file", metavar="FILE", help="The text of the base's licence, where the model's folder lacks it."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Publish a run on the Hugging Face Hub: adapter, merged model, GGUF files and card, in one commit.

    Private unless --public. The token is HF_TOKEN, or the one of `hf auth login`. An interrupted push goes on with the
    same command.

    Example: noesis push runs/demo --repo my-philosopher --allow undecided
    """
    from noesis.api.runs import push as push_run

    reserve_stdout(as_json)
    result = push_run(
        run,
        repo,
        public=public,
        allow=allow or (),
        dataset=dataset,
        dataset_licence=dataset_licence,
        licence_file=licence_file,
    )
    show_manifest_hash(run)
    print_result(result.to_json(), as_json)
