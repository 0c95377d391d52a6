"""What each container does: bring the run, call the package's stages, publish. `app.py` wraps these in Modal's functions.

The volume's root is the run directory. Training, and later judging and merging, write the manifest, one after the other; judging an epoch
beside training writes one file of its own and nothing else.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noesis.cloud.conduct import EPOCHS, Result, failed
from noesis.cloud.judges import judged_by
from noesis.cloud.lease import FOLDER
from noesis.cloud.request import LOCAL_JUDGE, Request
from noesis.cloud.staging import HEAVY, Staging, published
from noesis.cloud.summary import OPENED, epochs_judged
from noesis.cloud.upload import require_upload
from noesis.config import Project, load_config
from noesis.errors import NoesisError, RunError, TrainingError
from noesis.files import write_json, write_text
from noesis.run import Run, load_run

NO_MEMORY = (
    "Out of memory: in training_config.yaml set per_device_train_batch_size: 1 and gradient_accumulation_steps: 8, or take a larger card, "
    "for example --gpu A100-80GB (modal: judge_gpu for judging)"
)


@dataclass(frozen=True)
class Place:
    """Where a container works.

    root: the mounted volume; reload, commit: of that volume
    keep: commits the second volume, with the models' weights
    """

    root: Path
    project: Project
    reload: Callable[[], None]
    commit: Callable[[], None]
    keep: Callable[[], None]


def train(place: Place, asked: dict[str, Any], ticket: str) -> Result:
    """Open the run on the volume (another one that lies there is moved to /data/runs/), train in all epochs, publishing as it goes.

    Returns:
        training's figures.
    """
    from noesis import pipeline, sessions

    request = Request.from_json(asked)

    def work() -> Result:
        config = load_config(place.project, request.overrides())
        require_upload(place.root / "dataset", request.uploaded, config.training.modal.volume)
        data = sessions.from_exports(place.root / "dataset", place.project)
        starts = _starts(place, ticket)  # --fresh must not begin the run anew that this very call began
        options: dict[str, Any] = {
            "archive_to": place.root / "runs",
            "resume": request.resume,
            "fresh": request.fresh and not starts,
        }
        opened = sessions.new_session(place.project, config, place.root, data, **options)
        write_json(
            place.root / FOLDER / OPENED, {"ticket": ticket, "starts": starts + 1, "epochs": config.training.epochs}
        )
        place.commit()
        place.keep()  # the weights were fetched by now: judging an epoch, beside this, need not fetch them again
        if opened.run.is_done("train"):
            return dict(pipeline.train(opened))
        with brought(place) as run:
            s = sessions.session_of(run.path)
            pipeline.plan(s)
            return dict(pipeline.train(s))

    return at_work(place, work)


def _starts(place: Place, ticket: str) -> int:
    """How often a container of this very call opened the run before: it was taken away as often."""
    note = place.root / FOLDER / OPENED
    found = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else {}
    return int(found["starts"]) if found.get("ticket") == ticket else 0


def judge_epoch(place: Place, epoch: int) -> Result:
    """Held-out loss and preference after one epoch, from a copy of the run; its scores are where the stage `choose` looks for them."""
    from noesis import sessions
    from noesis.choosing import BASE, score
    from noesis.tribunal.preference import compare

    name = f"epoch_{epoch}"

    def work() -> Result:
        with tempfile.TemporaryDirectory() as folder:
            copy, scores = copy_of_run(place.root, Path(folder) / name, name), Path("tribunal/checkpoints")
            if (place.root / scores).is_dir():
                shutil.copytree(place.root / scores, copy / scores)
            s = sessions.session_of(copy)
            known = {entry["id"] for entry in s.run.manifest.get("ledger", [])}

            def measure() -> Result:
                found = score(s, [name])
                return {
                    "preference": compare([record["id"] for record in s.examples("eval")], found[BASE], found[name])
                }

            measured = s.run.perform("judge_epoch", measure, list)
            entries = [entry for entry in s.run.manifest["ledger"] if entry["id"] not in known]
            for file in (f"{name}.json", f"{BASE}.json"):  # the base's are the same, whoever measured them
                if not (place.root / scores / file).is_file() or file != f"{BASE}.json":
                    write_text(place.root / scores / file, (copy / scores / file).read_text(encoding="utf-8"))
        found = {"epoch": epoch, "preference": measured["preference"], "ledger": entries}
        write_json(place.root / EPOCHS / f"{name}.json", found)
        return found

    return at_work(place, work)


def copy_of_run(root: Path, target: Path, epoch: str | None = None) -> Path:
    """What scoring and answering need of the run, with one adapter: that of `epoch`, or the one that the run uses."""
    target.mkdir()
    for name in ("manifest.json", "config.json"):
        shutil.copy2(root / name, target / name)
    shutil.copytree(root / "data", target / "data")
    adapter = root / "checkpoints" / epoch if epoch else load_run(root).adapter()
    shutil.copytree(adapter, target / "checkpoints" / adapter.name)
    return target


def judge(place: Place, asked: dict[str, Any], again: bool) -> Result:
    """Judge the checkpoint that the run chose: on the held-out examples, and before the Tribunal where judges are seated."""
    from noesis import pipeline, sessions
    from noesis.cloud.answering import take_answers

    request = Request.from_json(asked)

    def work() -> Result:
        _require_run(place)
        with brought(place) as run:
            s = sessions.session_of(run.path)
            pipeline.choose(s, _hearing(s, place, request))
            result = pipeline.judge(s, again=again)
            if request.judges:
                if request.shards > 1:
                    take_answers(s, place.root, place.project, request)
                result = judged_by(s, place.project, request, again=again) or result
            return dict(result)

    return at_work(place, work)


def _hearing(s: Any, place: Place, request: Request) -> Any:
    """Who may choose the checkpoint: judges at an address. One that is served on this card comes after all answers; it judges, and chooses nothing."""
    from noesis.judging import checkpoint_hearing

    reachable = tuple(judge for judge in request.judges if not judge.startswith(LOCAL_JUDGE))
    return checkpoint_hearing(s, place.project, reachable) if reachable else None


def merge(place: Place, asked: dict[str, Any], again: bool) -> Result:
    """Merge adapter and base, write GGUF and the report; epochs judged beside training are booked here, where nobody else writes."""
    from noesis import pipeline, sessions

    request = Request.from_json(asked)

    def work() -> Result:
        _require_run(place)
        with brought(place, link=() if again else HEAVY) as run:
            s = sessions.session_of(run.path)
            result = pipeline.merge(s, again=again)
            pipeline.gguf(s, kinds=request.gguf or None, again=again)
            _book_epochs(s.run)
            pipeline.report(s)
            return dict(result)

    return at_work(place, work)


def at_work(place: Place, work: Callable[[], Result]) -> Result:
    """See what others committed, do the work, commit it whatever happens. An error comes back as a result.

    As an exception Modal would try it again, ten times, each at the price of a card; what is taken away (KeyboardInterrupt) is tried again.
    """
    place.reload()
    try:
        return work()
    except NoesisError as error:
        return failed(error)
    except Exception as error:
        traceback.print_exc()
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, of a card
            return failed(TrainingError(NO_MEMORY))
        return failed(RunError(f"{type(error).__name__}: {error} (its traceback is in  modal app logs)"))
    finally:
        place.commit()
        place.keep()


@contextmanager
def brought(place: Place, *, link: tuple[str, ...] = HEAVY) -> Iterator[Run]:
    """The run on this container's own disk, published to the volume while it is worked on and at the end."""
    name = load_run(place.root).manifest["output_name"]
    with tempfile.TemporaryDirectory(prefix="noesis-") as folder:
        staging = Staging(place.root, Path(folder) / name, place.commit)
        staging.bring(link=link)
        with published(staging):
            yield load_run(staging.local)


def _require_run(place: Place) -> None:
    """Refuse to judge or merge what was never trained, in the words of the cloud."""
    if not (place.root / "manifest.json").is_file():
        raise RunError("the volume holds no run yet: type  modal run scripts/modal_train.py --epochs 3")
    if not list((place.root / "checkpoints").glob("epoch_[0-9]*")):
        raise RunError(
            "the run on the volume has no finished epoch yet: type  modal run scripts/modal_train.py --epochs 3"
        )


def _book_epochs(run: Run) -> None:
    """Add to the ledger what judging the epochs cost, once."""
    known = {entry.get("id") for entry in run.manifest.get("ledger", [])}
    for row in epochs_judged(run.path):
        for entry in row["ledger"]:
            if entry["id"] not in known:
                run.book(entry | {"stage": "judge_epochs"})
    run.save()
