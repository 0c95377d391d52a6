"""`noesis push RUN --repo NAME`: adapter, merged model, GGUF and card, and the examples if asked, onto the Hub.

The examples first, so that the model's card can name them. The manifest records what was published, and where.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from noesis.core.console import say
from noesis.core.i18n import _
from noesis.core.jsonl import read_objects
from noesis.core.language import CODES
from noesis.pipeline.publish.contents import ModelContents, PushOptions, dataset_contents, model_contents
from noesis.pipeline.results import RunResults
from noesis.release.hub.dataset_card import PARTS, DatasetCard
from noesis.release.hub.upload import Publication, Published, full_name, upload
from noesis.run.directory import Run, load_run
from noesis.run.lock import locked
from noesis.run.manifest import Json

PUSH = "push"  # its name in the manifest


@dataclass(frozen=True)
class PushResult:
    """What was published; `dataset` is None where the examples stay here."""

    model: Published
    dataset: Published | None

    def to_json(self) -> Json:
        return {"model": asdict(self.model), "dataset": None if self.dataset is None else asdict(self.dataset)}


def push(path: Path, options: PushOptions) -> PushResult:
    """Publish a run. The same call goes on after an interruption, and pushes what has changed after it.

    Raises:
        RunError, UsageError: as `model_contents` and `upload`: nothing was sent.
        ModelError: as `upload`.
    """
    load_run(path)  # locking would make a folder where there is none
    with locked(path):
        run = load_run(path)
        contents = model_contents(run, options)  # before the network is asked for anything
        options = replace(
            options,
            repo=full_name(options.repo),
            dataset=None if options.dataset is None else full_name(options.dataset),
        )
        done: list[PushResult] = []

        def work() -> Json:
            done.append(_publish(run, contents, options))
            return done[0].to_json()

        run.perform(PUSH, work, list, again=True)
        return done[0]


def _publish(run: Run, contents: ModelContents, options: PushOptions) -> PushResult:
    message = f"noesis {run.manifest.noesis}: {RunResults(run).ruling.verdict}"
    dataset = None
    if options.dataset is not None:
        files = dataset_contents(run, _dataset_card(run, options.dataset, options.dataset_licence))
        dataset = upload(Publication(options.dataset, "dataset", files, message), public=options.public)
        say(f"  {dataset.url}")
    card = published_card(contents, options).encode()
    files = contents.files | {"README.md": card}
    model = upload(Publication(options.repo, "model", files, message), public=options.public)
    say(f"  {model.url}" + (_("  (private)") if model.private else ""))
    return PushResult(model, dataset)


def published_card(contents: ModelContents, options: PushOptions) -> str:
    """The merged model's card, with the data set in its front matter and a section on the files."""
    front, matter, body = contents.card.split("---\n", 2)
    if options.dataset is not None:
        matter += f"datasets: [{options.dataset}]\n"
    gguf = [
        f"- `*-{kind}.gguf`: for llama.cpp, Ollama and LM Studio; how far it is from the trained model stands in "
        "parity.json"
        for kind in contents.certified
    ]
    lines = [
        "## Files",
        "",
        "- `model*.safetensors`, `config.json`, tokenizer: the merged model, for transformers, vLLM and MLX",
        "- `adapter/`: the LoRA adapter alone, for PEFT and vLLM's `--lora-modules`",
        *gguf,
        *(["- `Modelfile`: for  ollama create"] if gguf else []),
        "- `noesis.json`: base, revision and the hashes of examples, constitution, configuration and adapter",
        *(["- `NOTICE`"] if "NOTICE" in contents.files else []),
        "",
    ]
    return f"{front}---\n{matter}---\n{body.rstrip()}\n\n" + "\n".join(lines)


def _dataset_card(run: Run, repo: str, licence: str | None) -> DatasetCard:
    train, held_out = (read_objects(run.data / file) for file, _split in PARTS.values())
    languages = sorted({row.get("language", "pt") for row in (*train, *held_out)} & set(CODES))
    return DatasetCard(
        repo=repo,
        folder=run.data,
        licence=licence,
        languages=tuple(languages),
        examples=(len(train), len(held_out)),
        dataset_sha256=run.identity.dataset_sha256,
        constitution_sha256=run.identity.constitution_sha256,
    )
