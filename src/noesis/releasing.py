"""The stages of a release: merge → GGUF → parity certificate. `noesis merge RUN`, `noesis gguf RUN`, `noesis parity RUN`.

And the same for a plain model folder: `noesis gguf ./noesis_model --outfile noesis.gguf`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from noesis.config import Project, Quantization, find_project
from noesis.console import say, size
from noesis.constitution.conversation import Message, opening, render
from noesis.constitution.tokenizer import load_tokenizer
from noesis.data.load import evenly_spread
from noesis.errors import ModelError, RunError, UsageError
from noesis.files import copy_file, sha256_file, sha256_json, write_json, write_text
from noesis.models import cache_folder
from noesis.sessions import Session
from noesis.train.budget import require_left

PROMPTS = 10  # of each language, compared at every position
ANSWERED = 3  # of each language, answered greedily


def merge(s: Session, *, again: bool = False, original: bool = False) -> dict[str, Any]:
    """Adapter + base → a standalone model.

    Args:
        original: into the base's original weights, though it was trained against dequantised ones.
    """
    from noesis.release.card import model_card
    from noesis.release.merge import merge as merge_weights

    def work() -> dict[str, Any]:
        require_left(s.budget(), "merging")
        require_own(s)
        card = model_card(s.run.merged.name, s.config.training.model, s.model.licence, s.run.manifest)
        into = basis(s, original=original)
        result = merge_weights(
            s.model.path,
            s.run.adapter(),
            s.run.merged,
            quantization=into,
            dtype=s.arithmetic,
            card=card,
            lineage=lineage(s),
        )
        return result | {"basis": "original" if original else "trained"}

    before = (s.run.result("merge") or {}).get("basis", "trained")
    again = again or before != ("original" if original else "trained")
    result = s.run.perform("merge", work, lambda: [p for p in s.run.merged.iterdir() if p.is_file()], again=again)
    say(
        f"  {result['merged_tensors']} of {result['tensors']} tensors merged into {result['into']}; {size(result['bytes'])} → {s.run.merged}"
    )
    if other := result.get("originals"):
        away, own = other["relative_difference"], other["relative_update"]
        say(f"  the original weights are {away:.1%} of their norm away from those; the adapter moves them by {own:.1%}")
    return result


def basis(s: Session, *, original: bool = False) -> Quantization:
    """How the weights that the adapter goes into were stored: as in training, or not at all."""
    trained = s.as_trained.lora.quantization
    return trained.model_copy(update={"load_in_4bit": False}) if original else trained


def require_own(s: Session) -> None:
    """Base and adapter are those of the training.

    Raises:
        RunError: the base model here is another revision, or the adapter's file was changed.
    """
    trained_on = s.run.manifest["identity"]["revision"]
    if s.model.revision != trained_on:
        raise RunError(
            f"{s.run.path} was trained on {s.config.training.model} {trained_on}, here is {s.model.revision}: fetch that revision, or train again"
        )
    file = s.run.adapter() / "adapter_model.safetensors"
    known = s.run.manifest["stages"].get("train", {}).get("outputs", {}).get(file.relative_to(s.run.path).as_posix())
    if known is not None and sha256_file(file) != known["sha256"]:
        raise RunError(f"{file} is not the file that training left (its hash differs): restore it, or train again")


def lineage(s: Session) -> dict[str, Any]:
    """What the model is made of: for noesis.json beside the weights, and the metadata of GGUF files."""
    identity = s.run.manifest["identity"]
    return {
        "noesis": s.run.manifest["noesis"],
        "base": "HuggingFaceTB/SmolLM2-135M-Instruct"
        if s.config.training.model == "smollm2"
        else s.config.training.model,
        "base_revision": identity["revision"],
        "licence": s.model.licence,
        "dataset_sha256": identity["dataset_sha256"],
        "constitution_sha256": identity["constitution_sha256"],
        "config_sha256": identity["config_sha256"],
        "adapter_sha256": sha256_file(s.run.adapter() / "adapter_model.safetensors"),
        "system_prompt": _system(s),
        "system_prompt_pt": s.constitution.system_prompt.pt,
        "system_prompt_en": s.constitution.system_prompt.en,
    }


def gguf(
    s: Session,
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
    from noesis.release.gguf import write_gguf

    require_merged(s)
    wanted = kinds or s.config.training.gguf.quantizations
    if outfile is not None and len(wanted) != 1:
        raise UsageError(f"--outfile names one file and {', '.join(wanted)} are wanted: choose one with --quant")
    files = {kind: s.run.gguf / f"{s.run.merged.name}-{kind}.gguf" for kind in wanted}

    def work() -> dict[str, Any]:
        require_left(s.budget(), "writing GGUF")
        for kind, file in files.items():
            write_gguf(s.run.merged, file, kind, name=s.run.merged.name, licence=s.model.licence)
            say(f"  {file.name}: {size(file.stat().st_size)}")
        return certified(s, files, with_adapter=adapter)

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


def parity(s: Session) -> dict[str, Any]:
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
        "gguf", lambda: certified(s, files, with_adapter=with_adapter, originals=True), outputs, again=True
    )
    show(result)
    return result


def certified(s: Session, files: dict[str, Path], *, with_adapter: bool, originals: bool = False) -> dict[str, Any]:
    """The certificate of `files`, written to gguf/parity.json; what is outside its tolerance is renamed and the stage fails."""
    from noesis.release.families import read_config
    from noesis.release.modelfile import modelfile
    from noesis.release.parity import Adapter, Subject, certify, reject, require

    quantization = basis(s, original=(s.run.result("merge") or {}).get("basis") == "original")
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


def show(certificate: dict[str, Any]) -> None:
    """Print the certificate's figures, a line a stage."""
    parts = [
        ("merged", certificate.get("merge")),
        *certificate["files"].items(),
        ("adapter", certificate.get("adapter")),
    ]
    for what, figure in parts:
        if figure is not None:
            answers = figure["answers"]
            say(
                f"  {what}: mean KL {figure['kl_mean']:.1e}, same first choice {figure['top1']:.3f} at {certificate['positions']:,} positions, "
                f"greedy answers equal for {answers['shared']:.0%} of their length"
            )
    if other := (certificate.get("merge") or {}).get("on_original_weights"):
        say(
            f"  the adapter on the base's original weights instead: mean KL {other['kl_mean']:.1e}, same first choice {other['top1']:.3f}"
        )
    say(f"  token ids equal on {certificate['strings']} strings, chat templates rendered alike")


def require_merged(s: Session) -> None:
    """Raises:
    RunError: there is no merged model, or it is not that of the trained adapter.
    """
    if not s.run.is_done("merge"):
        raise RunError(f"{s.run.path} holds no merged model: run  noesis merge {s.run.path}  first")


def adapter_file(s: Session) -> Path:
    """Where the adapter's GGUF lies."""
    return s.run.gguf / f"{s.run.merged.name}-adapter.gguf"


def write_adapter(s: Session) -> Path:
    """The adapter as GGUF, for a GGUF of its base."""
    from noesis.release.gguf import write_adapter_gguf

    write_adapter_gguf(s.run.adapter(), s.model.path, adapter_file(s), licence=s.model.licence, about=lineage(s))
    return adapter_file(s)


def base_gguf(s: Session) -> Path:
    """The base as it was trained on (stored in 4 bits, if it was), as a GGUF file; written once and cached."""
    from noesis.release.gguf import write_gguf

    quantization, dtype = s.as_trained.lora.quantization, s.arithmetic
    key = sha256_json([s.model.revision, quantization.model_dump(), dtype, 1])[:12]
    base = cache_folder() / "models" / f"base-{key}-f16.gguf"
    if not base.is_file():
        say("  writing the base as it was trained on to GGUF, once …")
        write_gguf(
            s.model.path, base, "f16", name="base", licence=s.model.licence, quantization=quantization, dtype=dtype
        )
    return base


def _system(s: Session) -> str:
    prompt = s.constitution.system_prompt
    return prompt.en if s.config.training.data.language == "en" else prompt.pt


def _compared(s: Session, tokenizer: Any) -> tuple[list[str], list[str], str]:
    """(texts compared at every position, prompts answered, where they are from): the Tribunal's open prompts in both languages, where the
    project with them is at hand; else the constitution's principles. And two whole conversations with system prompt and answer."""
    by_language, source = _prompts(s)
    asked = [text for texts in by_language.values() for text in evenly_spread([{"prompt": t} for t in texts], PROMPTS)]
    answered = [
        text for texts in by_language.values() for text in evenly_spread([{"prompt": t} for t in texts], ANSWERED)
    ]

    def one(record: dict[str, Any]) -> str:
        message: Message = {"role": "user", "content": record["prompt"]}
        return render(tokenizer, [message], add_generation_prompt=True)

    whole = [
        render(
            tokenizer,
            [*opening(s.constitution, r), {"role": "assistant", "content": r["response_revised"]}],
            add_generation_prompt=False,
        )
        for r in evenly_spread(s.examples("eval"), 2)
    ]
    return [*map(one, asked), *whole], list(map(one, answered)), source


def _prompts(s: Session) -> tuple[dict[str, list[str]], str]:
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


def convert_folder(folder: Path, outfile: Path | None, kinds: tuple[str, ...]) -> list[Path]:
    """`noesis gguf ./noesis_model`: a plain model folder, or one with it a level down, as `modal volume get` leaves it.

    Returns:
        the files, certified against the model in float32.

    Raises:
        UsageError: no model is there, or more than one.
        ParityError: a file does not behave like the model; it was renamed to *.rejected.gguf.
    """
    from noesis.release.gguf import read_lineage, write_gguf
    from noesis.release.parity import Subject, certify, reject, require

    model = model_in(folder)
    if outfile is not None and len(kinds) != 1:
        raise UsageError(f"--outfile names one file and {', '.join(kinds)} are wanted: choose one with --quant")
    name = model.resolve().name
    files = {kind: outfile or Path.cwd() / f"{name}-{kind}.gguf" for kind in kinds}
    tokenizer = load_tokenizer(model)
    about = read_lineage(model)
    for kind, file in files.items():
        write_gguf(model, file, kind, name=name, licence=str(about.get("licence", "see the model's folder")))
        say(f"  {file}: {size(file.stat().st_size)}")
    texts = [render(tokenizer, [{"role": "user", "content": text}], add_generation_prompt=True) for text in QUESTIONS]
    place = next(iter(files.values())).parent
    certificate = certify(Subject(model, files, None, texts, texts[::8]), tokenizer) | {
        "prompts_from": "twenty questions"
    }
    reject(certificate, place)
    record = place / f"{next(iter(files.values())).stem}.parity.json"
    write_json(record, certificate)
    require(certificate, str(record))
    show(certificate)
    return list(files.values())


def model_in(folder: Path) -> Path:
    """The model folder at `folder` or one level down.

    Raises:
        UsageError: none, or more than one.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder: give a run, or a folder with a model's config.json and .safetensors")
    if (folder / "config.json").is_file():
        return folder
    below = sorted(p for p in folder.iterdir() if p.is_dir() and (p / "config.json").is_file())
    if len(below) == 1:
        say(f"  the model is one level down: {below[0]}")
        return below[0]
    if below:
        raise UsageError(f"{folder} holds several models ({', '.join(p.name for p in below)}): name one of them")
    raise UsageError(
        f"no run and no model in {folder}: neither manifest.json nor config.json is there, nor in a folder below it"
    )


QUESTIONS = (
    "O que é a coragem?", "É justo mentir para proteger alguém?", "Se todo A é B e algum B é C, algum A é C?", "Quanto é 17 × 23?",
    "Quem escreveu a Ética a Nicômaco, e em que século?", "Explique a diferença entre saber e opinar.", "Você tem certeza de que está certo?",
    "Ajude-me a pensar: devo mudar de cidade?", "Qual é o sentido da humildade?", "Resuma em uma frase: “Só sei que nada sei.”",
    "What is courage?", "Is it just to lie in order to protect someone?", "If every A is B and some B is C, is some A C?", "What is 17 × 23?",
    "Who wrote the Nicomachean Ethics, and in which century?", "Explain the difference between knowing and believing.", "Are you sure that you are right?",
    "Help me think: should I move to another city?", "What is humility good for?", "Say in one sentence: “I know that I know nothing.”",
)  # fmt: skip
