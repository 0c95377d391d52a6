"""The manifest against the files: hashes, what each stage must list, what it read, and what nobody listed."""

from __future__ import annotations

from collections.abc import Iterator

from noesis.core.i18n import _, ngettext
from noesis.pipeline.results import RunResults
from noesis.pipeline.resume_fork import ADAPTER_FILES
from noesis.pipeline.verify.evidence import Evidence, Finding
from noesis.pipeline.verify.status import is_as_read
from noesis.run.contents import files_in, runs_code, stage_of, strays
from noesis.run.directory import Run
from noesis.run.manifest import StageRecord
from noesis.run.stages import SPECS, STAGES, needs_of

MOST_NAMES = 6  # in one message
OTHER_WORK = {"against", "court", "influence", "live_pairs"}  # timed, and no stage; live_pairs: of early versions' demo


def check_stages(run: Run) -> Iterator[Finding]:
    """Every stage's record: its status, its files, and what it read."""
    for name, record in run.manifest.stages.items():
        if record.result is None or record.status not in ("done", "stale"):
            yield _unfinished(name, record)
        elif name in STAGES:
            yield from _finished(run, name, record)
        elif record.outputs:
            yield Finding(
                _("{name}: its files", name=name),
                _("it is no stage, and lists {named}", named=_named(list(record.outputs))),
            )


def _unfinished(name: str, record: StageRecord) -> Finding:
    left = [*(["a result"] if record.result is not None else []), *record.outputs]
    if left:
        return Finding(
            _("{name}: its status", name=name),
            _("it is recorded as {status}, and yet with {named}", status=record.status, named=_named(left)),
        )
    return Finding(
        _("{name}: its status", name=name),
        unchecked=_("it is {status}: nothing vouches for what it has left so far", status=record.status),
    )


def _finished(run: Run, name: str, record: StageRecord) -> Iterator[Finding]:
    wrong = run.changed(name, thoroughly=True)
    unlisted = sorted(must_list(run, name) - record.outputs.keys())
    foreign = sorted(file for file in record.outputs if stage_of(file) != name)
    problems = [_named(wrong, "; ")] if wrong else []
    problems += [_("it does not list {named}", named=_named(unlisted))] if unlisted else []
    problems += [_("it lists files that are not its own: {named}", named=_named(foreign))] if foreign else []
    yield Finding(
        _(
            "{name}: hashes of {files}",
            name=name,
            files=ngettext("{count:,} file", "{count:,} files", len(record.outputs)),
        ),
        "; ".join(problems) or None,
    )
    if record.status == "stale":
        yield Finding(
            _("{name}: what it read", name=name), unchecked=_("it is stale: what it read has changed, do it again")
        )
        return
    # a stage that has to be done again is known to differ, and so is everything that reads it
    read = {other: record.inputs[other] for other in needs_of(name) if other in record.inputs}
    known = [other for other in read if run.state(other) != "done"]
    lost = [other for other, digest in read.items() if other not in known and not is_as_read(run, other, digest)]
    unread = [other for other in _must_have_read(run, name, record) if other not in record.inputs]
    if unread and name in ("trial", "report") and run.manifest.is_early:
        yield Finding(_("{name}: what it read", name=name), unchecked=_("an early version did not record it"))
        return
    problems = [", ".join(lost) + _(" changed since")] if lost else []
    problems += [_("it does not say which {unread} it read", unread=", ".join(unread))] if unread else []
    stale = _("stale: {known} has to be done again", known=", ".join(known)) if known and not problems else None
    yield Finding(_("{name}: what it read", name=name), "; ".join(problems) or None, stale)


def _must_have_read(run: Run, name: str, record: StageRecord) -> tuple[str, ...]:
    """The stages without which `name` can't have been done.

    A report shows those that were done before it, and nobody needs to have turned the dial.
    """
    stages = run.manifest.stages

    def was_there(need: str) -> bool:
        return need in stages and run.state(need) == "done" and stages[need].started <= record.started

    return tuple(n for n in needs_of(name) if (name != "report" and n != "dial") or was_there(n))


def must_list(run: Run, stage: str) -> set[str]:
    """The files without which the outcome of `stage` is not whole, relative to the run."""
    results = RunResults(run)
    match stage:
        case "export":
            return {f"data/{name}" for name in ("train.jsonl", "eval.jsonl", "constitution.yaml", "statistics.json")}
        case "train":
            train = results.train
            epochs = range(train.epochs if train else 0)
            places = ["checkpoints", *(f"checkpoints/seed_{seed}" for seed in (train.seeds if train else None) or {})]
            adapters = {f"{place}/epoch_{epoch}/{n}" for place in places for epoch in epochs for n in ADAPTER_FILES}
            return {"metrics.jsonl", *(f"{place}/metrics.jsonl" for place in places[1:]), *adapters}
        case "choose":
            choice = results.choice
            return {f"tribunal/checkpoints/{name}.json" for name in ("base", *(choice.epochs if choice else ()))}
        case "dial":
            dial = results.dial
            own = {"dial/figures.json"} if dial and dial.curve else set()
            if dial is None or dial.adapter == (results.choice.adapter if results.choice else ""):
                return own
            return own | {f"dial/{dial.adapter}/{name}" for name in ADAPTER_FILES} | {f"dial/{dial.adapter}.json"}
        case "judge":
            return {"tribunal/answers.jsonl", "tribunal/summary.json"}
        case "merge":
            folder = f"merged/{run.manifest.output_name}"
            listed = run.manifest.stages[stage].outputs
            weights = {file for file in listed if file.startswith(folder) and file.endswith(".safetensors")}
            return {f"{folder}/{name}" for name in ("config.json", "README.md", "noesis.json")} | (
                weights or {f"{folder}/model.safetensors"}
            )
        case "gguf":
            certificate = results.certificate
            files = [c.file for _, c in certificate.comparisons() if c.file] if certificate else []
            return {"gguf/parity.json", "gguf/Modelfile", *(f"gguf/{file.name}" for file in files)}
        case "trial":
            return {f"tribunal/{name}" for name in ("trial.json", "trial_answers.jsonl", "verdicts.jsonl")}
        case "report":
            return {"report.html"}
    return set()


def check_contents(e: Evidence) -> str | None:
    """What lies in the run and should not: files that nobody listed, code, links."""
    found = list(files_in(e.run.path))
    names = [name for name, _ in found]
    links, code, unknown = (
        [n for n, linked in found if linked],
        runs_code(names, e.run.path),
        strays(names, e.run.manifest),
    )
    problems = [_("symbolic links: {named}", named=_named(links))] if links else []
    problems += [_("files that can run code: {named}", named=_named(code))] if code else []
    foreign = sorted(repr(name)[:60] for name in e.run.manifest.stages.keys() - SPECS.keys() - OTHER_WORK)
    problems += [_("stages that are none: {named}", named=_named(foreign))] if foreign else []
    problems += (
        [_("files that no stage lists: {named}", named=_named(sorted(set(unknown) - {*links, *code})))]
        if unknown
        else []
    )
    return "; ".join(problems) or None


def _named(names: list[str], separator: str = ", ") -> str:
    """The first names, for a message."""
    more = [f"{len(names) - MOST_NAMES} more"] if len(names) > MOST_NAMES else []
    return separator.join([*names[:MOST_NAMES], *more])
