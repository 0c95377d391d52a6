"""`--model file.gguf`: checked by its head, then written once below the cache, by the file's hash.

The description (config.json and tokenizer) is a folder of its own, made without the weights: a plan, a token count or
a validation needs no more.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from noesis.core.console import say, size
from noesis.core.device import detect
from noesis.core.errors import ModelError
from noesis.core.files import copy_folder, make_folder, new_folder, require_space, sha256_file, write_json
from noesis.core.i18n import N_, _
from noesis.core.machine.folders import cache_folder
from noesis.llm.from_gguf.checks import check_content, check_kind, check_tensors
from noesis.llm.from_gguf.config import ORIGINALS, read_base_config, refused
from noesis.llm.from_gguf.dequantise import alone, load_dequantised
from noesis.llm.from_gguf.tokenizer import write_tokenizer
from noesis.llm.gguf.header import NO_TOKEN, GgufHeader, read_header

FETCH_AGAIN = N_("fetch the file again, or choose another")
CONVERSION = 1  # raise it when the conversion changes, so that old caches are not used
LIBRARIES = 1_500_000_000  # bytes that torch, transformers and a large vocabulary take
TEXT = 200  # characters of a name or licence that are kept


@dataclass(frozen=True)
class BaseFile:
    """A GGUF file that can be a base model.

    sha256: of the file
    title, licence: as it says itself; "" where it does not
    lineage: one line: of which file and quantisation, and what that was made from
    """

    file: Path
    sha256: str
    header: GgufHeader
    title: str
    licence: str
    lineage: str

    @property
    def revision(self) -> str:
        return self.sha256[:12]

    @property
    def folder(self) -> Path:
        """Where the whole conversion is, or will be."""
        return cache_folder() / "models" / f"gguf-{self.sha256[:16]}-v{CONVERSION}"

    @property
    def description(self) -> Path:
        """Where config.json and tokenizer are, or will be."""
        return self.folder.with_name(self.folder.name + "-description")


def open_base_file(file: Path) -> BaseFile:
    """Read and check the head of a GGUF file, and hash it (about a second per gigabyte); once per process.

    Raises:
        ModelError: it is missing or damaged, or no model that transformers can be given.
    """
    if not file.is_file():
        raise ModelError(
            _("there is no file {file}: give the path of a .gguf file, a folder, or a Hub name", file=file)
        )
    status = file.stat()
    return _open(file, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=2)
def _open(file: Path, modified_ns: int, length: int) -> BaseFile:
    header = read_header(file, remedy=_(FETCH_AGAIN), refuse=lambda header: check_kind(file, header.metadata))
    check_content(file, header)
    check_tensors(file, header, read_base_config(file, header))
    known, sha256 = header.metadata, sha256_file(file)
    licence = " ".join(filter(None, (_text(known, "general.license"), _text(known, "general.license.link"))))
    title = _text(known, "general.name")
    return BaseFile(file, sha256, header, title, licence, _lineage(file, known, sha256))


def convert(base: BaseFile) -> Path:
    """The folder of the whole model; written on first use, by one process at a time, whole or not at all.

    Raises:
        ModelError: transformers can't read it. NoesisError: the disk or the memory has no room.
    """
    weights = 2 * sum(math.prod(shape) for shape, _ in base.header.tensors.values())
    target = base.folder
    if (target / "config.json").is_file():
        return target
    describe(base)
    with FileLock(target.with_suffix(".lock")):
        if not (target / "config.json").is_file():
            require_space(target.parent, weights, f"{base.file.name}, dequantised,")
            _require_memory(base, weights)
            say(
                _(
                    "  dequantising {name} to bfloat16, once: {weights} in {target} …",
                    name=base.file.name,
                    weights=size(weights),
                    target=target,
                )
            )
            with new_folder(target) as part:
                copy_folder(base.description, part)
                _write_weights(base, part)
    return target


def describe(base: BaseFile) -> Path:
    """The folder with config.json and tokenizer; written on first use (some seconds), as `convert` does.

    Raises:
        ModelError: transformers can't read the tokenizer, or it differs from llama.cpp's.
    """
    target = base.description
    if (target / "config.json").is_file():
        return target
    make_folder(target.parent)
    with FileLock(target.with_suffix(".lock")):
        if not (target / "config.json").is_file():
            say(_("  reading {name}: its tokenizer is compared with llama.cpp's, once …", name=base.file.name))
            with new_folder(target) as part, alone(base.file, target) as gguf:
                write_tokenizer(gguf, base.header, part, shown=base.file)
                write_json(part / "generation_config.json", _generation(base.header.metadata))
                write_json(part / "config.json", read_base_config(base.file, base.header))
    return target


def _write_weights(base: BaseFile, folder: Path) -> None:
    from transformers import AutoConfig

    with alone(base.file, base.folder) as gguf:
        try:
            model, report = load_dequantised(gguf, AutoConfig.from_pretrained(folder), shown=base.file.name)
        except (ValueError, RuntimeError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
            why = " ".join(str(error).split())[:200] or type(error).__name__
            raise refused(base.file, _("transformers can't read it ({why})", why=why)) from None
    if missing := sorted({*report["missing_keys"], *map(str, report["mismatched_keys"])}):
        raise refused(base.file, _("it lacks {missing}, or has it in another shape", missing=missing[0]))
    if sha256_file(base.file) != base.sha256:
        raise ModelError(_("{file} was changed while it was read: run the command again", file=base.file))
    model.save_pretrained(folder)
    write_json(folder / "generation_config.json", _generation(base.header.metadata))


def _require_memory(base: BaseFile, weights: int) -> None:
    """transformers holds the weights, and the largest tensor twice in float32 beside them (1.5B: 5.7 GB measured)."""
    largest = max(math.prod(shape) for shape, _ in base.header.tensors.values())
    needed, free = weights + 8 * largest + LIBRARIES, detect().memory_bytes
    if detect().kind == "cpu" and needed > free:
        raise ModelError(
            _(
                "dequantising {name} takes about {needed} of memory, and {free} are free: "
                "close other programs, or {originals}",
                name=base.file.name,
                needed=size(needed),
                free=size(free),
                originals=_(ORIGINALS),
            )
        )


def _generation(known: dict[str, Any]) -> dict[str, Any]:
    """generation_config.json: all tokens at which an answer ends."""
    ids = [known.get(f"tokenizer.ggml.{name}_token_id", NO_TOKEN) for name in ("eos", "eot", "eom")]
    ends = list(dict.fromkeys(i for i in ids if i != NO_TOKEN))
    return {"eos_token_id": ends} if ends else {}


def _lineage(file: Path, known: dict[str, Any], sha256: str) -> str:
    """From which quantisation the weights come, and from which models that was made."""
    import gguf

    try:
        quantisation = re.sub("^(MOSTLY|ALL)_", "", gguf.LlamaFileType(known.get("general.file_type")).name)
    except (ValueError, TypeError):
        quantisation = N_("unknown quantisation")
    words = [
        N_(
            "dequantised from {name} ({quantisation}, sha256 {sha256})",
            name=file.name,
            quantisation=quantisation,
            sha256=sha256[:16],
        )
    ]
    origin = _text(known, "general.source.repo_url") or _text(known, "general.repo_url")
    count = known.get("general.base_model.count", 0)
    bases = [
        " ".join(filter(None, (_text(known, f"general.base_model.{i}.{key}") for key in ("name", "repo_url"))))
        for i in range(count if isinstance(count, int) and 0 <= count <= 9 else 0)
    ]
    return "; ".join([*words, *filter(None, [origin]), *(N_("made from {base}", base=base) for base in bases if base)])


def _text(known: dict[str, Any], key: str) -> str:
    """A text of the metadata on one line; "" where there is none."""
    value = known.get(key)
    return " ".join(value.split())[:TEXT] if isinstance(value, str) else ""
