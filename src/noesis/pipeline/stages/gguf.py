"""Stage gguf: GGUF files of the merged model, and the certificate that they behave like what was trained.

`noesis gguf RUN` writes and certifies them, `noesis parity RUN` measures them again.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from noesis.core.console import command, say
from noesis.core.errors import ModelError, RunError, UsageError
from noesis.core.files import (
    copy_file,
    files_in,
    require_output,
    sha256_file,
    sha256_json,
    write_json,
    write_text,
)
from noesis.core.i18n import N_, _
from noesis.core.project import Project, find_project
from noesis.core.rooted import remove
from noesis.dataset.encode import prompt_messages
from noesis.dataset.load import evenly_spread
from noesis.llm.chat_template import render
from noesis.llm.tokenizer import load_tokenizer
from noesis.pipeline.gguf_files import adapter_file, base_gguf, system_prompt, write_adapter
from noesis.pipeline.results import RunResults, read_result
from noesis.pipeline.session import RunSession
from noesis.pipeline.stages.merge import merge_basis, merge_quantization
from noesis.pipeline.tracking import certificate_figures, track
from noesis.planning.budget import require_remaining
from noesis.release.parity.certificate import Certificate
from noesis.release.parity.outcome import name_files, require_passed, show_certificate
from noesis.release.parity.unfinished import Figures, made_by, unfinished
from noesis.run.manifest import Json

UNFINISHED = ".unfinished"  # folder below gguf/ of what a stopped command had finished
PROMPTS = 10  # of each language, compared at every position
ANSWERED = 3  # of each language, answered greedily
CONVERSATIONS = 2  # whole held-out examples, compared at every position
MODELFILE_ORDER = ("q8_0", "f16", "q4_k_m", "f32")  # the first of these that exists is named in the Modelfile
MODELFILE_CONTEXT = 8192  # tokens, at most


def run_gguf(
    s: RunSession,
    *,
    kinds: tuple[str, ...] | None = None,
    adapter: bool = False,
    again: bool = False,
    outfile: Path | None = None,
) -> Certificate:
    """Write and certify GGUF files of the merged model.

    Those that are there already are written again with them: one certificate covers all, and of one merged model.

    Args:
        kinds: default: those in training_config.yaml.
        adapter: also write the adapter alone, for a GGUF of its base.
        outfile: where to copy the one file asked for, once it is certified.

    Raises:
        RunError: there is no merged model.
        ParityError: a file does not behave like what was trained; it was renamed to *.rejected.gguf.
    """
    from noesis.release.gguf.writer import write_gguf

    require_merged(s)
    wanted = kinds or s.config.training.gguf.quantizations
    if outfile is not None and len(wanted) != 1:
        raise UsageError(
            _("--outfile names one file, but there are {wanted}: choose one with --quant", wanted=", ".join(wanted))
        )
    if outfile is not None:
        require_output(outfile, "--outfile", inputs=(s.run.path, s.model.path), starts=b"GGUF")
    asked = wanted[0]
    before, wanted = previous_certificate(s), (*wanted, *(kind for kind in _kinds_here(s) if kind not in wanted))
    adapter = adapter or adapter_file(s).is_file()
    files = {kind: _gguf_file(s, kind) for kind in wanted}

    def work() -> Json:
        require_remaining(s.budget(), "writing GGUF")
        with unfinished(s.run.gguf / UNFINISHED, _made_from(s)) as begun:
            for kind, file in files.items():
                write = partial(write_gguf, s.run.merged, kind=kind, name=s.run.merged.name, licence=s.model.licence)
                begun.file(kind, file.name, write)
            if adapter:
                begun.file("adapter", adapter_file(s).name, lambda _: write_adapter(s, begun.folder))
            return certify_files(s, files, begun.folder, with_adapter=adapter, figures=begun).to_json()

    covered = before is not None and set(before.files) == set(wanted) and (before.adapter is not None or not adapter)
    result = s.run.perform("gguf", work, lambda: _outputs(s, files, adapter), again=again or not covered)
    certificate = read_result(s.run, "gguf", result, Certificate.from_json)
    show_certificate(certificate)
    if outfile is not None:
        copy_file(files[asked], outfile)
        say(f"  → {outfile}")
    return certificate


def parity(s: RunSession) -> Certificate:
    """Measure the run's GGUF files again, the adapter's included if there is one. The new certificate replaces the old.

    Raises:
        RunError: there is no merged model, or no GGUF file.
        ParityError: as `run_gguf`.
    """
    require_merged(s)
    found = {
        file.stem.rpartition("-")[2]: file
        for file in sorted(s.run.gguf.glob(f"{s.run.merged.name}-*.gguf"))
        if not file.name.endswith(".rejected.gguf")
    }
    with_adapter = found.pop("adapter", None) is not None
    before = previous_certificate(s)
    kinds = [kind for kind in (before.files if before else ()) if kind in found] or sorted(found)
    if not kinds:
        raise RunError(
            _("{gguf} holds no GGUF file: run  {command}  first", gguf=s.run.gguf, command=command("gguf", s.run.path))
        )
    files = {kind: found[kind] for kind in kinds}

    def work() -> Json:
        remove(s.run.gguf / UNFINISHED)  # of a command that was stopped: these files are what holds
        return certify_files(s, files, s.run.gguf, with_adapter=with_adapter, originals=True).to_json()

    result = s.run.perform("gguf", work, lambda: _outputs(s, files, with_adapter), again=True)
    certificate = read_result(s.run, "gguf", result, Certificate.from_json)
    show_certificate(certificate)
    return certificate


def _made_from(s: RunSession) -> str:
    """What an interrupted stage must have started from for this one to go on with it."""
    merged = {file.name: sha256_file(file) for file in files_in(s.run.merged)}
    adapter = sha256_file(s.run.adapter() / "adapter_model.safetensors")
    identity, prompts = asdict(s.run.identity), _prompts(s)
    return sha256_json([made_by(), merged, adapter, identity, prompts, s.model.licence, s.device.kind])


def _gguf_file(s: RunSession, kind: str) -> Path:
    return s.run.gguf / f"{s.run.merged.name}-{kind}.gguf"


def _kinds_here(s: RunSession) -> list[str]:
    from noesis.release.gguf.quantize import KINDS

    return [kind for kind in KINDS if _gguf_file(s, kind).is_file()]


def previous_certificate(s: RunSession) -> Certificate | None:
    """The certificate that the stage left; None if it has not run, or left one that can't be read."""
    try:
        return RunResults(s.run).certificate
    except ModelError:
        return None  # then everything is measured again


def _outputs(s: RunSession, files: dict[str, Path], with_adapter: bool) -> list[Path]:
    adapter = [adapter_file(s)] if with_adapter else []
    return [*files.values(), s.run.gguf / "parity.json", s.run.gguf / "Modelfile", *adapter]


def certify_files(
    s: RunSession,
    files: dict[str, Path],
    folder: Path,
    *,
    with_adapter: bool,
    originals: bool = False,
    figures: Figures | None = None,
) -> Certificate:
    """Certify what is to become `files`, and write gguf/parity.json and gguf/Modelfile.

    Args:
        folder: where the files, and the adapter's, are until they have passed; a file out of tolerance is renamed.
        originals: also measure the adapter on the base's original weights.
        figures: as in `certify`.

    Raises:
        ParityError: a file is out of tolerance.
    """
    from noesis.release.parity.certify import Subject, TrainedAdapter, certify

    quantization = merge_quantization(s, original=merge_basis(s) == "original")
    adapter = TrainedAdapter(s.run.adapter(), s.model.path, quantization, s.arithmetic)
    if with_adapter:
        adapter = replace(adapter, file=folder / adapter_file(s).name, base_file=base_gguf(s))
    tokenizer = load_tokenizer(s.run.merged)
    texts = _parity_texts(s, tokenizer)
    subject = Subject(
        s.run.merged,
        {kind: folder / file.name for kind, file in files.items()},
        adapter,
        texts.compared,
        texts.answered,
        originals=originals,
        prompts_from=texts.source,
        device=s.device.kind,
    )
    certificate = name_files(certify(subject, tokenizer, figures), folder, s.run.gguf)
    write_json(s.run.gguf / "parity.json", certificate.to_json())
    track(s, certificate_figures(certificate))
    require_passed(certificate)
    _write_modelfile(s, files, tokenizer)
    return certificate


def _write_modelfile(s: RunSession, files: dict[str, Path], tokenizer: Any) -> None:
    """Write Ollama's Modelfile, or why there is none."""
    from noesis.llm.gguf.families import read_config
    from noesis.release.gguf.modelfile import modelfile

    best = next(files[kind] for kind in MODELFILE_ORDER if kind in files)
    context = min(read_config(s.run.merged).context, MODELFILE_CONTEXT)
    try:
        text = modelfile(best.name, tokenizer, system=system_prompt(s), context=context, licence=s.model.licence)
    except ModelError as error:
        text = f"# {error}\n"
    write_text(s.run.gguf / "Modelfile", text)


def require_merged(s: RunSession) -> None:
    """Check that there is a merged model of the chosen adapter.

    Raises:
        RunError: there is none.
    """
    if not s.run.is_done("merge"):
        raise RunError(
            _(
                "{path} holds no merged model: run  {command}  first",
                path=s.run.path,
                command=command("merge", s.run.path),
            )
        )


@dataclass(frozen=True)
class _ParityTexts:
    """What is compared, as rendered conversations."""

    compared: list[str]  # at every position
    answered: list[str]  # greedily
    source: str


def _parity_texts(s: RunSession, tokenizer: Any) -> _ParityTexts:
    """Prompts in each language, and two whole held-out conversations with system prompt and answer."""
    prompts, source = _prompts(s)

    def choose(count: int) -> list[str]:  # of each of two languages; as many in all where there are more or fewer
        count = -(-2 * count // len(prompts))
        return [
            render(tokenizer, [{"role": "user", "content": record["prompt"]}], add_generation_prompt=True)
            for texts in prompts.values()
            for record in evenly_spread([{"prompt": text} for text in texts], count)
        ]

    conversations = [
        render(
            tokenizer,
            [*prompt_messages(s.constitution, example), {"role": "assistant", "content": example.response_revised}],
            add_generation_prompt=False,
        )
        for example in evenly_spread(s.dataset.held_out, CONVERSATIONS)
    ]
    return _ParityTexts([*choose(PROMPTS), *conversations], choose(ANSWERED), source)


def _prompts(s: RunSession) -> tuple[dict[str, list[str]], str]:
    """(language → prompts, where they come from): the Tribunal's dev prompts where the project is at hand, else the
    constitution's principles."""
    from noesis.tribunal.suite import read_suite

    try:
        project: Project | None = find_project()
    except UsageError:
        project = None  # a run alone, as on a volume
    found: dict[str, list[str]] = {language: [] for language in s.constitution.languages}
    if project is not None and (project.data / "tribunal" / "prompts").is_dir():
        for sample in read_suite(project.data / "tribunal", "dev"):
            if not sample.turns and sample.language in found:
                found[sample.language].append(sample.prompt)
        # the shortest, which cost the least
        found = {language: sorted(texts, key=len)[: -(-2 * PROMPTS // len(found))] for language, texts in found.items()}
    if min(map(len, found.values())) >= -(-2 * PROMPTS // len(found)):
        return found, N_("the Tribunal's open prompts")
    principles = s.constitution.principles
    return {language: [p[language] for p in principles] for language in found}, N_("the constitution's principles")
