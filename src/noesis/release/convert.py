"""`noesis gguf FOLDER`: convert a plain model folder to GGUF and certify the files."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from noesis.core.console import say
from noesis.core.device import detect
from noesis.core.errors import UsageError
from noesis.core.files import files_in, require_output, sha256_file, sha256_json, write_json
from noesis.core.i18n import _
from noesis.llm.chat_template import render
from noesis.llm.tokenizer import load_tokenizer
from noesis.release.parity.outcome import name_files, require_passed, show_certificate
from noesis.release.parity.unfinished import made_by, unfinished

ANSWERED_EVERY = 8  # one question in this many is also answered greedily


def convert_folder(folder: Path, outfile: Path | None, kinds: tuple[str, ...]) -> list[Path]:
    """Convert a model folder, or the one model folder inside it (as `modal volume get` leaves it).

    Returns:
        the files, certified against the model in float32; the certificate is `<first file>.parity.json`.

    Raises:
        UsageError: no model is there, or more than one; or a file would stand in its folder, or replace one of another
            kind.
        ParityError: a file does not behave like the model; it was renamed to *.rejected.gguf.
    """
    from noesis.release.gguf.writer import write_gguf
    from noesis.release.parity.certify import Subject, certify

    model = find_model_folder(folder)
    if outfile is not None and len(kinds) != 1:
        raise UsageError(
            _("--outfile names one file, but there are {kinds}: choose one with --quant", kinds=", ".join(kinds))
        )
    name = model.resolve().name
    files = {kind: outfile or Path.cwd() / f"{name}-{kind}.gguf" for kind in kinds}
    for file in files.values():
        require_output(file, "--outfile", inputs=(model,), starts=b"GGUF")
    tokenizer = load_tokenizer(model)
    texts = [render(tokenizer, [{"role": "user", "content": text}], add_generation_prompt=True) for text in QUESTIONS]
    first = next(iter(files.values()))
    with unfinished(first.parent / f".{first.stem}.unfinished", _made_from(model, texts)) as work:
        written = {}
        for kind, file in files.items():
            write = partial(write_gguf, model, kind=kind, name=name, licence="see the model's folder")
            written[kind] = work.file(kind, file.name, write)
        subject = Subject(
            model,
            written,
            texts=texts,
            prompts=texts[::ANSWERED_EVERY],
            prompts_from="twenty questions",
            device=detect().kind,
        )
        certificate = name_files(certify(subject, tokenizer, work), work.folder, first.parent)
        record = first.parent / f"{first.stem}.parity.json"
        write_json(record, certificate.to_json())
        require_passed(certificate, str(record))
    show_certificate(certificate)
    return list(files.values())


def _made_from(model: Path, texts: list[str]) -> str:
    """What an interrupted conversion must have started from for this one to go on with it."""
    return sha256_json([made_by(), {file.name: sha256_file(file) for file in files_in(model)}, texts])


def find_model_folder(folder: Path) -> Path:
    """The model folder at `folder` or one level down.

    Raises:
        UsageError: there is none, or more than one.
    """
    if not folder.is_dir():
        raise UsageError(
            _(
                "{folder} is not a folder: give a run, or a folder with a model's config.json and .safetensors",
                folder=folder,
            )
        )
    if (folder / "config.json").is_file():
        return folder
    below = sorted(p for p in folder.glob("[!.]*") if p.is_dir() and (p / "config.json").is_file())
    if len(below) == 1:
        say(_("  the model is one level down: {below}", below=below[0]))
        return below[0]
    if below:
        raise UsageError(
            _(
                "{folder} holds several models ({name}): name one of them",
                folder=folder,
                name=", ".join(p.name for p in below),
            )
        )
    raise UsageError(
        _(
            "no run and no model in {folder}: neither manifest.json nor config.json is there, nor in a folder below it",
            folder=folder,
        )
    )


QUESTIONS = (
    "O que é a coragem?",
    "É justo mentir para proteger alguém?",
    "Se todo A é B e algum B é C, algum A é C?",
    "Quanto é 17 × 23?",
    "Quem escreveu a Ética a Nicômaco, e em que século?",
    "Explique a diferença entre saber e opinar.",
    "Você tem certeza de que está certo?",
    "Ajude-me a pensar: devo mudar de cidade?",
    "Qual é o sentido da humildade?",
    "Resuma em uma frase: “Só sei que nada sei.”",
    "What is courage?",
    "Is it just to lie in order to protect someone?",
    "If every A is B and some B is C, is some A C?",
    "What is 17 × 23?",
    "Who wrote the Nicomachean Ethics, and in which century?",
    "Explain the difference between knowing and believing.",
    "Are you sure that you are right?",
    "Help me think: should I move to another city?",
    "What is humility good for?",
    "Say in one sentence: “I know that I know nothing.”",
)
