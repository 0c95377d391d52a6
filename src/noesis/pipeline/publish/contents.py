"""What `noesis push RUN` publishes, and what keeps a run from being published.

Only files that a stage of the run lists and that are unchanged since go out: the merged model and the GGUF files in the
repository's root, where other programs look for them, and the adapter in `adapter/`.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from noesis.core.console import command
from noesis.core.errors import RunError, UsageError
from noesis.core.files import read_text
from noesis.core.i18n import _, ngettext, retold
from noesis.pipeline.results import RunResults
from noesis.release.hub.dataset_card import PARTS, DatasetCard
from noesis.release.hub.licence import Terms, terms_of
from noesis.release.provenance import read_provenance
from noesis.run.directory import Run
from noesis.run.stages import STAGES
from noesis.tribunal.court import APPROVED, CONDITIONAL, REJECTED, UNDECIDED

UNCERTIFIED = "uncertified"
ALLOWANCES = (UNDECIDED.lower(), CONDITIONAL.lower(), REJECTED.lower(), UNCERTIFIED)  # what --allow may name
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
LICENCE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md")
LONGEST_LICENCE = 1_000_000  # bytes
CARD = re.compile(r"\A---\n(?:[^-].*\n)*---\n")  # the Hub's front matter, line by line
LICENCE_ID = re.compile(r"[a-z0-9][a-z0-9.-]{0,40}")
CONSTITUTION = "constitution.yaml"


@dataclass(frozen=True)
class PushOptions:
    """What a user may say.

    allow: of ALLOWANCES: publish although the verdict is this, or without a certificate
    dataset: repository for the run's examples; None: they stay here
    dataset_licence: as the Hub names it, such as cc-by-4.0
    licence_file: the text of the base's licence, where the model's folder has none
    """

    repo: str
    public: bool = False
    allow: Collection[str] = ()
    dataset: str | None = None
    dataset_licence: str | None = None
    licence_file: Path | None = None


@dataclass(frozen=True)
class ModelContents:
    """What goes into the model's repository, apart from the card.

    files: path there → file here, or its content
    card: of the merged model, as it lies in the run
    certified: the kinds of GGUF files
    """

    files: dict[str, Path | bytes]
    card: str
    certified: tuple[str, ...] = ()


def model_contents(run: Run, options: PushOptions) -> ModelContents:
    """The model's files, after every check.

    Raises:
        RunError: the run is not merged, not judged or not certified, was rejected, or its files were changed.
        UsageError: an unknown allowance, a name that the base's licence forbids, or a licence whose text is missing.
    """
    for name in options.allow:
        if name not in ALLOWANCES:
            raise UsageError(
                _(
                    "--allow {name!r} is not known; choose from {allowances}",
                    name=name,
                    allowances=", ".join(ALLOWANCES),
                )
            )
    if options.dataset_licence is not None and not LICENCE_ID.fullmatch(options.dataset_licence):
        raise UsageError(
            _(
                "--dataset-licence {dataset_licence!r} is no licence's id: for example cc-by-4.0",
                dataset_licence=options.dataset_licence,
            )
        )
    if run.state("merge") != "done":
        raise RunError(
            _("{path} holds no merged model: run  {command}  first", path=run.path, command=command("merge", run.path))
        )
    terms = terms_of(read_provenance(run.merged))
    terms.require_name(options.repo)
    needed = [_verdict_problem(run), _certificate_problem(run)]
    for name, problem in filter(None, needed):
        if name not in options.allow:
            raise RunError(
                _(
                    "{path} {problem}, so it is not pushed; --allow {name} pushes it all the same",
                    path=run.path,
                    problem=problem,
                    name=name,
                )
            )
    listed = (run.path / name for name in run.manifest.stages["merge"].outputs)
    files: dict[str, Path | bytes] = {file.name: file for file in listed if file.parent == run.merged}
    adapter = run.adapter()
    files |= {f"adapter/{name}": adapter / name for name in ADAPTER_FILES}
    certified: tuple[str, ...] = ()
    if needed[1] is None:
        certificate = RunResults(run).certificate
        assert certificate is not None
        certified = tuple(kind for kind, found in certificate.files.items() if found.passed)
        names = [*(f"{run.merged.name}-{kind}.gguf" for kind in certified), "parity.json", "Modelfile"]
        files |= {name: run.gguf / name for name in names if (run.gguf / name).is_file()}
    _require_unchanged(run, [file for file in files.values() if isinstance(file, Path)])
    files |= _licence_files(run, terms, options.licence_file)
    card = read_text(run.merged / "README.md", most=LONGEST_LICENCE)
    if not CARD.match(card):
        raise RunError(
            _(
                "{file} is no model card: run  {command}",
                file=run.merged / "README.md",
                command=command("merge", run.path, "--again"),
            )
        )
    return ModelContents(files, card, certified)


def _verdict_problem(run: Run) -> tuple[str, str] | None:
    """(allowance, why not) unless the run is APPROVED."""
    ruling = RunResults(run).ruling
    if ruling.verdict == APPROVED and run.state("trial") == "done":
        return None
    if ruling.verdict == APPROVED:
        return UNDECIDED.lower(), _("was changed since it was judged")
    told = _("has the verdict {verdict} ({reason})", verdict=ruling.verdict, reason=retold(ruling.reason))
    return ruling.verdict.lower(), told


def _certificate_problem(run: Run) -> tuple[str, str] | None:
    certificate = RunResults(run).certificate if run.state("gguf") == "done" else None
    if certificate is not None and any(found.passed for found in certificate.files.values()):
        return None
    return UNCERTIFIED, _("has no certified GGUF file ( {gguf}  makes one)", gguf=command("gguf", run.path))


def _require_unchanged(run: Run, files: list[Path]) -> None:
    """Raises RunError naming the files that are not as their stage left them."""
    wrong = [
        file.relative_to(run.path).as_posix()
        for file in files
        if not any(run.vouches_for(stage, file, thoroughly=True) for stage in STAGES)
    ]
    if wrong:
        raise RunError(
            _(
                "{path}: {files} missing or changed since the run made them, and not pushed: see  {command}",
                path=run.path,
                files=ngettext("{count:,} file", "{count:,} files", len(wrong)),
                command=command("verify", run.path),
            ),
            *wrong[:5],
        )


def _licence_files(run: Run, terms: Terms, given: Path | None) -> dict[str, Path | bytes]:
    """NOTICE and LICENSE as the base's licence asks for them; what the base's own folder held is there already."""
    files: dict[str, Path | bytes] = {}
    if terms.notice:
        files["NOTICE"] = (terms.notice + "\n").encode()
    if given is not None:
        if not given.is_file():
            raise UsageError(_("--licence-file {given}: there is no such file", given=given))
        files["LICENSE"] = read_text(given, most=LONGEST_LICENCE).encode()
    elif terms.with_text and not any((run.merged / name).is_file() for name in LICENCE_FILES):
        raise UsageError(
            _(
                "the base's licence ({licence}) goes with every copy, and its text is not in {merged}: "
                "give it with --licence-file FILE",
                licence=terms.licence,
                merged=run.merged,
            )
        )
    return files


def dataset_contents(run: Run, card: DatasetCard) -> dict[str, Path | bytes]:
    """The run's own examples and constitution, with their cards.

    Raises:
        RunError: one was changed since the run began.
    """
    files: dict[str, Path | bytes] = {
        name: run.data / name for name in (*(file for file, _split in PARTS.values()), CONSTITUTION)
    }
    wrong = [file.name for file in files.values() if isinstance(file, Path) and not run.vouches_for("export", file)]
    if wrong:
        raise RunError(
            _(
                "{data}: {wrong} missing or changed since the run began: not pushed",
                data=run.data,
                wrong=", ".join(wrong),
            )
        )
    return files | {"README.md": card.readme().encode(), "croissant.json": card.croissant().encode()}
