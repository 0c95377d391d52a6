"""The stages of a release: merge → GGUF → parity certificate. `noesis merge RUN`, `noesis gguf RUN`, `noesis parity RUN`.

And the same for a plain model folder: `noesis gguf ./noesis_model --outfile noesis.gguf`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from noesis.core.console import say, size
from noesis.core.errors import ModelError, RunError, UsageError
from noesis.core.files import copy_file, write_json, write_text
from noesis.core.messages import Message
from noesis.core.project import Project, find_project
from noesis.dataset.encode import prompt_messages
from noesis.dataset.load import evenly_spread
from noesis.llm.chat_template import render
from noesis.llm.tokenizer import load_tokenizer
from noesis.pipeline.gguf_files import _system, adapter_file, base_gguf, write_adapter
from noesis.pipeline.session import RunSession
from noesis.pipeline.stages.merge import merge_quantization
from noesis.planning.budget import require_remaining
from noesis.release.parity.certify import show

PROMPTS = 10  # of each language, compared at every position
ANSWERED = 3  # of each language, answered greedily


def run_gguf(
    s: RunSession,
    *,
    kinds: tuple[str, ...] | None = None,
    adapter: bool = False,
    again: bool = False,
    outfile: Path | None = None,
) -> dict[str, Any]:
    """GGUF files of the merged model, and the certificate that they behave like what was trained.

    Args:
        adapter: the adapter alone as well, for a GGUF of its base.
        outfile: a copy of the one kind asked for, once it is certified.
    """
    from noesis.release.gguf.writer import write_gguf

    require_merged(s)
    wanted = kinds or s.config.training.gguf.quantizations
    if outfile is not None and len(wanted) != 1:
        raise UsageError(f"--outfile names one file and {', '.join(wanted)} are wanted: choose one with --quant")
    files = {kind: s.run.gguf / f"{s.run.merged.name}-{kind}.gguf" for kind in wanted}

    def work() -> dict[str, Any]:
        require_remaining(s.budget(), "writing GGUF")
        for kind, file in files.items():
            write_gguf(s.run.merged, file, kind, name=s.run.merged.name, licence=s.model.licence)
            say(f"  {file.name}: {size(file.stat().st_size)}")
        return certify_files(s, files, with_adapter=adapter)

    def outputs() -> list[Path]:
        return [
            *files.values(),
            s.run.gguf / "parity.json",
            s.run.gguf / "Modelfile",
            *([adapter_file(s)] if adapter else []),
        ]

    before = s.run.result("gguf") or {}
    changed = set(wanted) != set(before.get("files", {})) or (adapter and not before.get("adapter"))
    result = s.run.perform("gguf", work, outputs, again=again or changed)
    show(result)
    if outfile is not None:
        copy_file(files[wanted[0]], outfile)
        say(f"  → {outfile}")
    return result


def parity(s: RunSession) -> dict[str, Any]:
    """Measure again the files that lie there, with the adapter's if there is one; the new certificate replaces the old."""
    require_merged(s)
    found = {
        file.stem.rpartition("-")[2]: file
        for file in sorted(s.run.gguf.glob(f"{s.run.merged.name}-*.gguf"))
        if not file.name.endswith(".rejected.gguf")
    }
    with_adapter = found.pop("adapter", None) is not None
    kinds = [kind for kind in (s.run.result("gguf") or {}).get("files", {}) if kind in found] or sorted(found)
    if not kinds:
        raise RunError(f"{s.run.gguf} holds no GGUF file: run  noesis gguf {s.run.path}  first")
    files = {kind: found[kind] for kind in kinds}

    def outputs() -> list[Path]:
        return [
            *files.values(),
            s.run.gguf / "parity.json",
            s.run.gguf / "Modelfile",
            *([adapter_file(s)] if with_adapter else []),
        ]

    result = s.run.perform(
        "gguf", lambda: certify_files(s, files, with_adapter=with_adapter, originals=True), outputs, again=True
    )
    show(result)
    return result


def certify_files(
    s: RunSession, files: dict[str, Path], *, with_adapter: bool, originals: bool = False
) -> dict[str, Any]:
    """The certificate of `files`, written to gguf/parity.json; what is outside its tolerance is renamed and the stage fails."""
    from noesis.release.gguf.families import read_config
    from noesis.release.gguf.modelfile import modelfile
    from noesis.release.parity.certify import Adapter, Subject, certify, reject, require

    quantization = merge_quantization(s, original=(s.run.result("merge") or {}).get("basis") == "original")
    own = Adapter(s.run.adapter(), s.model.path, quantization, s.arithmetic)
    if with_adapter:
        own = Adapter(own.folder, own.base, own.quantization, own.dtype, write_adapter(s), base_gguf(s))
    tokenizer = load_tokenizer(s.run.merged)
    texts, prompts, source = _compared(s, tokenizer)
    certificate = certify(Subject(s.run.merged, files, own, texts, prompts, originals=originals), tokenizer) | {
        "prompts_from": source
    }
    reject(certificate, s.run.gguf)
    write_json(s.run.gguf / "parity.json", certificate)
    require(certificate)
    best = next(files[kind] for kind in ("q8_0", "f16", "q4_k_m", "f32") if kind in files)
    context = min(int(read_config(s.run.merged)["max_position_embeddings"]), 8192)
    try:
        text = modelfile(best.name, tokenizer, system=_system(s), context=context, licence=s.model.licence)
    except ModelError as error:
        text = f"# {error}\n"
    write_text(s.run.gguf / "Modelfile", text)
    return certificate


def require_merged(s: RunSession) -> None:
    """Raises:
    RunError: there is no merged model, or it is not that of the trained adapter.
    """
    if not s.run.is_done("merge"):
        raise RunError(f"{s.run.path} holds no merged model: run  noesis merge {s.run.path}  first")


def _compared(s: RunSession, tokenizer: Any) -> tuple[list[str], list[str], str]:
    """(texts compared at every position, prompts answered, where they are from): the Tribunal's open prompts in both languages, where the
    project with them is at hand; else the constitution's principles. And two whole conversations with system prompt and answer."""
    by_language, source = _prompts(s)
    asked = [text for texts in by_language.values() for text in evenly_spread(texts, PROMPTS)]
    answered = [text for texts in by_language.values() for text in evenly_spread(texts, ANSWERED)]

    def one(prompt: str) -> str:
        message: Message = {"role": "user", "content": prompt}
        return render(tokenizer, [message], add_generation_prompt=True)

    whole = [
        render(
            tokenizer,
            [*prompt_messages(s.constitution, example), {"role": "assistant", "content": example.response_revised}],
            add_generation_prompt=False,
        )
        for example in evenly_spread(s.dataset.held_out, 2)
    ]
    return [*map(one, asked), *whole], list(map(one, answered)), source


def _prompts(s: RunSession) -> tuple[dict[str, list[str]], str]:
    from noesis.tribunal.suite import read_suite

    try:
        project: Project | None = find_project()
    except UsageError:
        project = None  # a run alone, as on a volume
    found: dict[str, list[str]] = {"pt": [], "en": []}
    if project is not None and (project.data / "tribunal" / "prompts").is_dir():
        for item in read_suite(project.data / "tribunal", "dev"):
            if not item.turns:
                found[item.language].append(item.prompt)
        found = {
            language: sorted(texts, key=len)[:PROMPTS] for language, texts in found.items()
        }  # the shortest: the figures cost no more than they must
    if min(map(len, found.values())) >= PROMPTS:
        return found, "the Tribunal's open prompts"
    principles = s.constitution.principles
    return {"pt": [p.pt for p in principles], "en": [p.en for p in principles]}, "the constitution's principles"
