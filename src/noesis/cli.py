"""The command line: `noesis …`. Every command imports its stage only when it is called, so that `--help` costs nothing.

This is the one boundary where errors become messages and exit codes: 0 done, 1 failed, 2 usage, 4 undecided (`noesis judge`),
130 and 143 interrupted.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from noesis import __version__

app = typer.Typer(
    help="From a constitution and about a hundred examples to a small model that can be trusted to speak by them.\n\nExample: noesis demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Examples: check, split and look at them.\n\nExample: noesis data validate", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data")

ProjectOption = Annotated[Path | None, typer.Option("--project", metavar="DIR", help="Project folder; default: the nearest one at or above here.")]
RunOption = Annotated[Path | None, typer.Option("--run", metavar="DIR", help="Run directory; default: runs/<output_name> of the project.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory, for example runs/demo.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout; talk goes to stderr.")]
AgainOption = Annotated[bool, typer.Option("--again", help="Do it again though it is done.")]
FreshOption = Annotated[bool, typer.Option("--fresh", help="Start anew; the old run is moved to .archive/, nothing is deleted.")]


@app.command()
def demo(
    project: ProjectOption = None,
    run: Annotated[Path | None, typer.Option("--run", metavar="DIR", help="Run directory; default: runs/demo of the project.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="One epoch on a few examples: is everything in place?")] = False,
    fresh: FreshOption = False,
) -> None:
    """The whole pipeline on the embedded model: validate, plan, train, judge, merge, GGUF, report.

    Example: noesis demo --quick
    """
    from noesis.config import find_project
    from noesis.console import duration, say
    from noesis.pipeline import demo as run_demo

    found = find_project(project)
    s = run_demo(found, run or found.runs / "demo", quick=quick, fresh=fresh)
    result = s.run.result("judge") or {}
    b, t, n = result["preference"]["base"], result["preference"]["tuned"], result["preference"]["examples"]
    seconds = sum(stage["seconds"] for stage in s.run.manifest["stages"].values())
    say("\nBase → tuned")
    say(f"  held-out loss        {b['held_out_loss']:.4f} → {t['held_out_loss']:.4f}")
    say(f"  preference accuracy  {b['preferred']}/{n} → {t['preferred']}/{n}   mean margin {b['mean_margin']:+.4f} → {t['mean_margin']:+.4f}")
    say(f"  Tribunal             {result['court']['verdict']}: no judge is seated")
    say(f"Stages took {duration(seconds)} in all.")
    say(f"Report   {s.run.report}\nModel    {s.run.merged}\nGGUF     {s.run.gguf}\nAdapter  {s.run.adapter()}")
    say(f"Next:    noesis chat {_shown(s.run.path)}")


@app.command()
def plan(
    project: ProjectOption = None,
    model: Annotated[str | None, typer.Option(help="smollm2, a folder, or a Hub name.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the examples.")] = None,
    max_examples: Annotated[int | None, typer.Option(min=1, help="Train on this many only.")] = None,
    as_json: JsonOption = False,
) -> None:
    """What a training run would do: tokens, device, precision, expected time and memory. Trains nothing.

    Example: noesis plan --epochs 3
    """
    from noesis.pipeline import from_exports, planned, show_plan

    found, config = _configured(project, model, epochs, max_examples, as_json)
    from noesis.constitution.document import load_constitution
    from noesis.device import detect
    from noesis.models import find_model

    train, _ = from_exports(found.exports, found)
    known = find_model(config.training.model, config.training.revision)
    result = planned(config, known, train[: config.max_examples], load_constitution(found.constitution), detect()).as_json()
    _result(result, as_json) if as_json else show_plan(result)


@app.command()
def train(
    project: ProjectOption = None,
    run: RunOption = None,
    model: Annotated[str | None, typer.Option(help="smollm2, a folder, or a Hub name.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the examples.")] = None,
    max_examples: Annotated[int | None, typer.Option(min=1, help="Train on this many only.")] = None,
    dataset: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder with train.jsonl and eval.jsonl; default: data/training/exports.")] = None,
    fresh: FreshOption = False,
) -> None:
    """Train an adapter on the exported examples. The same command goes on where it was interrupted.

    Example: noesis train --model smollm2 --epochs 3 --run runs/mine
    """
    from noesis import pipeline
    from noesis.console import heading, say
    from noesis.run import Run

    found, config = _configured(project, model, epochs, max_examples, False)
    path = run or found.runs / config.training.output_name
    with Run(path, {}).locked():
        heading(1, 3, "data", "the exported examples, checked again")
        s = pipeline.new_session(found, config, path, pipeline.from_exports(dataset or found.exports, found), fresh=fresh)
        heading(2, 3, "plan", "what will be trained, and what it should take")
        pipeline.plan(s)
        heading(3, 3, "train", "QLoRA, loss on the answers only")
        pipeline.train(s)
    say(f"Next: noesis judge {_shown(path)}")


@app.command()
def judge(run: RunArgument, again: AgainOption = False, as_json: JsonOption = False) -> None:
    """Base against tuned on the held-out examples. Exit code 4: UNDECIDED, while no judge is seated.

    Example: noesis judge runs/demo
    """
    from noesis import pipeline

    _talk(as_json)
    s = pipeline.session_of(run)
    with s.run.locked():
        result = pipeline.judge(s, again=again)
    _result(result, as_json)
    raise typer.Exit(4)


@app.command()
def merge(run: RunArgument, again: AgainOption = False) -> None:
    """Adapter and base into one standalone model (safetensors).

    Example: noesis merge runs/demo
    """
    from noesis import pipeline

    s = pipeline.session_of(run)
    with s.run.locked():
        pipeline.merge(s, again=again)


@app.command()
def gguf(
    run: RunArgument,
    quant: Annotated[str | None, typer.Option(help="Comma-separated: f32, f16, q8_0; default: as in training_config.yaml.")] = None,
    again: AgainOption = False,
) -> None:
    """GGUF files for llama.cpp, and the proof that they behave like the merged model.

    Example: noesis gguf runs/demo --quant f16,q8_0
    """
    from noesis import pipeline
    from noesis.errors import UsageError
    from noesis.release.parity import TOLERANCES

    kinds = tuple(dict.fromkeys(quant.split(","))) if quant else None
    for kind in kinds or ():
        if kind not in TOLERANCES:
            raise UsageError(f"--quant {kind!r} is not known; choose from {', '.join(TOLERANCES)}")
    s = pipeline.session_of(run)
    with s.run.locked():
        pipeline.gguf(s, kinds=kinds, again=again)


@app.command()
def chat(
    run: RunArgument,
    language: Annotated[str | None, typer.Option(help="Language of the system prompt, pt or en; default: the run's.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, max=2048, help="Most tokens of an answer.")] = 400,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0 is greedy.")] = 0.7,
) -> None:
    """Talk to the tuned model in the terminal; tokens stream from llama.cpp.

    Example: noesis chat runs/demo
    """
    from noesis.errors import RunError, UsageError
    from noesis.run import load_run
    from noesis.serve.chat import chat as talk

    loaded = load_run(run)
    if language not in (None, "pt", "en"):
        raise UsageError(f"--language {language!r}: choose pt or en")
    done = (loaded.result("gguf") or {}).get("files", {})
    best = next((k for k in ("f16", "q8_0", "f32") if done.get(k, {}).get("passed")), None)
    if best is None:
        raise RunError(f"{run} holds no GGUF file that was shown to behave like the model: run  noesis gguf {run}  first")
    from noesis.constitution.document import load_constitution

    system = load_constitution(loaded.data / "constitution.yaml").system_prompt
    spoken = language or loaded.config().training.data.language
    talk(loaded.gguf / f"{loaded.merged.name}-{best}.gguf", system.en if spoken == "en" else system.pt, max_tokens=max_tokens, temperature=temperature)


@app.command()
def report(run: RunArgument) -> None:
    """Write the run's report again: one page that works offline.

    Example: noesis report runs/demo
    """
    from noesis import pipeline

    s = pipeline.session_of(run)
    with s.run.locked():
        pipeline.report(s)


@app.command()
def init(folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where; must not exist or be empty.")]) -> None:
    """A project of your own: both YAML files, a constitution and three examples to edit.

    Example: noesis init my-philosopher
    """
    from noesis.console import say
    from noesis.scaffold import create_project

    for file in create_project(folder):
        say(f"  {file}")
    say(f"Edit them, then:  noesis demo --project {folder}")


@app.command()
def clean(
    project: ProjectOption = None,
    delete: Annotated[bool, typer.Option("--delete", help="Free it; without this only the list is shown.")] = False,
    as_json: JsonOption = False,
) -> None:
    """What can be freed and how much: archived runs, half-written files, converted models that can be made again.

    Example: noesis clean --delete
    """
    from noesis.config import find_project
    from noesis.console import say, size
    from noesis.housekeeping import free, garbage

    _talk(as_json)
    items = garbage(find_project(project))
    for item in items:
        say(f"  {size(item.bytes):>10}  {item.path}  ({item.what})")
    say(f"{size(sum(i.bytes for i in items))} in {len(items)} places" + ("" if delete or not items else "; free it with  noesis clean --delete"))
    if delete:
        free(items)
        say("freed")
    _result([{"path": str(i.path), "bytes": i.bytes, "what": i.what, "freed": delete} for i in items], as_json)


@app.command()
def doctor(project: ProjectOption = None, as_json: JsonOption = False) -> None:
    """What is here: Python, device, memory, disk, packages, tokens; what is missing and how to get it.

    Example: noesis doctor
    """
    from noesis.console import say
    from noesis.housekeeping import examine

    _talk(as_json)
    checks = examine(project)
    for check in checks:
        state = "ok     " if check.ok else "MISSING" if check.needed else "–      "
        say(f"  {state}  {check.name}: {check.found}" + ("" if check.ok else f"\n           → {check.remedy}"))
    _result([vars(c) for c in checks], as_json)
    if any(not c.ok and c.needed for c in checks):
        raise typer.Exit(1)


@data_app.command("validate")
def data_validate(
    paths: Annotated[list[Path] | None, typer.Argument(metavar="[PATHS]", help="JSONL files or folders; default: the project's examples.")] = None,
    project: ProjectOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check examples by file and line. Exit code 0: no errors (warnings allowed), 1: errors.

    Example: noesis data validate data/training/philosophical
    """
    from noesis.config import find_project, load_config
    from noesis.console import say
    from noesis.constitution.document import load_constitution
    from noesis.data.validate import validate

    _talk(as_json)
    found = find_project(project)
    config = load_config(found)
    sources = paths or [folder for language in ("pt", "en") for folder in found.sources(language) if any(folder.glob("*.jsonl"))]
    result = validate(sources or found.sources("pt"), load_constitution(found.constitution), config.training.data.categories)
    for problem in result.problems:
        say(str(problem))
    say(f"{result.rows} rows in {result.files} files: {len(result.records)} valid, {len(result.errors)} errors, {len(result.warnings)} warnings")
    for name in ("language", "category", "difficulty", "stance", "value"):
        if result.counts[name]:
            say(f"  {name}: " + ", ".join(f"{k} {v}" for k, v in sorted(result.counts[name].items())))
    _result(result.summary(), as_json)
    if result.errors:
        raise typer.Exit(1)


@data_app.command("export")
def data_export(
    source: Annotated[list[Path] | None, typer.Option("--source", metavar="PATH", help="JSONL files or folders; default: the project's examples.")] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where to; default: data/training/exports.")] = None,
    language: Annotated[str | None, typer.Option(help="pt, en or both; default: as in training_config.yaml.")] = None,
    project: ProjectOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write train.jsonl, eval.jsonl and statistics.json: the same bytes for the same input and settings.

    Example: noesis data export --language both --out /tmp/exports
    """
    from noesis.config import find_project, load_config
    from noesis.console import say
    from noesis.constitution.document import load_constitution
    from noesis.data.export import export

    _talk(as_json)
    found = find_project(project)
    config = load_config(found, {"training.data.language": language})
    target = out or found.exports
    statistics = export(source or found.sources(config.training.data.language), target, load_constitution(found.constitution), config)
    for part in ("train", "eval"):
        say(f"  {target / statistics[part]['file']}: {statistics[part]['examples']} examples")
    say(f"  {target / 'statistics.json'}")
    _result(statistics, as_json)


@data_app.command("inspect")
def data_inspect(
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Examples to show; default: the first three.")] = None,
    model: Annotated[str | None, typer.Option(help="Whose tokenizer and template; default: as in training_config.yaml.")] = None,
    project: ProjectOption = None,
) -> None:
    """Exactly what the model is trained on: the rendered conversation, trained tokens coloured (or between « ») and counted.

    Example: noesis data inspect maieutica_001
    """
    from noesis.config import find_project, load_config
    from noesis.data.inspect import show

    found = find_project(project)
    show(found, load_config(found, {"training.model": model}), ids or [])


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False) -> None:
    if version:
        print(f"noesis {__version__}")
        raise typer.Exit()


def _configured(project: Path | None, model: str | None, epochs: int | None, max_examples: int | None, as_json: bool) -> tuple[Any, Any]:
    """The project, and its configuration with the options laid over it."""
    from noesis.config import find_project, load_config

    _talk(as_json)
    found = find_project(project)
    return found, load_config(found, {"training.model": model, "training.num_train_epochs": epochs, "max_examples": max_examples})


def _talk(as_json: bool) -> None:
    if as_json:
        from noesis.console import use_stderr

        use_stderr()


def _result(value: Any, as_json: bool) -> None:
    if as_json:
        print(json.dumps(value, ensure_ascii=False, indent=2, default=str))


def _shown(path: Path) -> str:
    """A path as one would type it from here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def main() -> None:
    """Run the command line; every foreseeable failure ends in one message and an exit code."""
    sys.exit(run_command(sys.argv[1:]))


def run_command(arguments: list[str]) -> int:
    """Run one command and return its exit code."""
    import click

    from noesis.errors import NoesisError

    signal.signal(signal.SIGTERM, _terminated)
    try:
        code = app(arguments, standalone_mode=False)
        return int(code) if isinstance(code, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message())
        return 2
    except click.ClickException as error:
        error.show()
        return 2
    except (KeyboardInterrupt, click.exceptions.Abort):
        print("\nstopped; what was finished is kept, and the same command goes on from there", file=sys.stderr)
        return 130
    except _Terminated:
        print("\nstopped by SIGTERM; what was finished is kept, and the same command goes on from there", file=sys.stderr)
        return 143
    except NoesisError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        return 0
    except OSError as error:
        from noesis.files import explain_os_error

        print(f"error: {explain_os_error(error)}", file=sys.stderr)
        return 1
    except MemoryError:
        print("error: out of memory: choose a smaller --model, or lower max_length in training_config.yaml", file=sys.stderr)
        return 1


class _Terminated(BaseException):
    pass


def _terminated(number: int, frame: object) -> None:
    raise _Terminated


if __name__ == "__main__":
    main()
