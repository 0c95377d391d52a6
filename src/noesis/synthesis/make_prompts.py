"""`noesis constitution prompts`: prompts varied by construction, instead of a template filled again and again.

Topic × situation × asker × difficulty from hand-written lists (data/constitution_prompts.yaml), each list dealt out evenly; a model
phrases each combination as the message such a person would send. Without a model the combinations are written out as instructions for
people to write from. What asks the same as anything that exists (examples, exports, generated data, the Tribunal's questions and its
judges' benchmark) is left out, and so is what asks the same as an earlier new one.

    DIR/prompts.jsonl (or instructions.jsonl)   DIR/left_out.jsonl   DIR/report.json   and the files of resumable work (work.py)
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from noesis.constitution.document import Both, Constitution, Slug, load_constitution
from noesis.core.config import load_config
from noesis.core.errors import ConfigError, UsageError
from noesis.core.event_loop import run_async
from noesis.core.files import sha256_json, write_json, write_jsonl
from noesis.core.project import Project
from noesis.core.yaml_file import line_of, read_yaml
from noesis.dataset.schema import MIN_PROMPT
from noesis.llm.clients.cached_client import CachedClient, UnusableReplyError, request_seed
from noesis.llm.clients.open import WRITER_SLOTS, open_client
from noesis.llm.clients.protocol import EndpointDownError, ModelClient, ModelReply, ModelRequest, NoReplyError
from noesis.llm.clients.reply_cache import ReplyCache, open_cache
from noesis.llm.clients.spec import WRITER_KINDS, parse_spec
from noesis.llm.clients.spending import Spending
from noesis.synthesis.filters import tallies
from noesis.synthesis.prompt_file import known_prompts
from noesis.synthesis.reply_checks import EMOJI, Work, clean_reply, reply_problem
from noesis.synthesis.resumable_work import Result, open_folder, process_rows

LONGEST, TOKENS = 1200, 240  # characters of a prompt, and how many tokens may be written
Difficulty = Literal["easy", "medium", "hard"]


class _Entry(Both):
    model_config = ConfigDict(extra="forbid", frozen=True)
    id: Slug


class _Topic(_Entry):
    category: Annotated[str, Field(min_length=1)]


class Lists(BaseModel):
    """data/constitution_prompts.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    version: str
    topics: Annotated[tuple[_Topic, ...], Field(min_length=1)]
    situations: Annotated[tuple[_Entry, ...], Field(min_length=1)]
    askers: Annotated[tuple[_Entry, ...], Field(min_length=1)]
    difficulties: dict[Difficulty, Both]

    @property
    def combinations(self) -> int:
        return len(self.topics) * len(self.situations) * len(self.askers) * len(self.difficulties)


def read_lists(file: Path) -> Lists:
    """The lists.

    Raises:
        ConfigError: naming the line of what is wrong.
    """
    try:
        return Lists.model_validate(read_yaml(file))
    except FileNotFoundError:
        raise ConfigError(f"{file} is missing: copy it from the project of Noesis, or write your own lists") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(
            f"{file}:{line_of(file, first['loc'])}: {'.'.join(str(p) for p in first['loc'])}: {first['msg']}"
        ) from None
    except ValueError as error:
        raise ConfigError(f"{file} is not valid YAML: {error}") from None


@dataclass(frozen=True)
class Seed:
    """One combination."""

    id: str
    language: str
    topic: _Topic
    situation: _Entry
    asker: _Entry
    difficulty: Difficulty

    def instruction(self, lists: Lists) -> str:
        """What a writer is asked for."""
        parts = {
            "topic": self.topic,
            "situation": self.situation,
            "asker": self.asker,
            "difficulty": lists.difficulties[self.difficulty],
        }
        texts = {name: part[self.language] for name, part in parts.items()}
        return INSTRUCTION[self.language].format(**texts)

    def row(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "language": self.language,
            "category": self.topic.category,
            "difficulty": self.difficulty,
        }

    def origin(self) -> dict[str, Any]:
        return {"topic": self.topic.id, "situation": self.situation.id, "asker": self.asker.id}


INSTRUCTION = {
    "pt": (
        "Escreva a mensagem que esta pessoa manda a um conselheiro.\nQuem escreve: {asker}.\nO assunto: {topic}.\nO que houve: {situation}.\n"
        "Dificuldade: {difficulty}.\n\nEm português, na primeira pessoa, como ela digitaria: de duas a cinco frases, com um detalhe concreto da vida dela, "
        "terminando numa pergunta ou num pedido. Escreva só a mensagem, sem saudação nem assinatura."
    ),
    "en": (
        "Write the message that this person sends to an adviser.\nWho writes: {asker}.\nThe subject: {topic}.\nWhat happened: {situation}.\n"
        "Difficulty: {difficulty}.\n\nIn English, in the first person, as they would type it: two to five sentences, with one concrete detail of their life, "
        "ending in a question or a request. Write the message alone, with no greeting and no signature."
    ),
}


def deal(lists: Lists, languages: tuple[str, ...], count: int, seed: int) -> list[Seed]:
    """`count` different combinations, languages in turn; every list is dealt out like a shuffled deck, so that its entries come equally often.

    Raises:
        UsageError: there are not so many combinations.
    """
    most = len(languages) * lists.combinations
    if count > most:
        raise UsageError(
            f"--count {count}: the lists make {most:,} prompts in {' and '.join(languages)}; add lines to data/constitution_prompts.yaml"
        )
    decks = {
        language: [_deck(part, f"{seed}:{language}:{name}") for name, part in _parts(lists)] for language in languages
    }
    seen: set[tuple[str, ...]] = set()
    found: list[Seed] = []
    spare = {language: iter(_all(lists)) for language in languages}
    for i in range(count):
        language = languages[i % len(languages)]
        for _ in range(64):
            drawn = tuple(next(deck) for deck in decks[language])
            if (language, *map(_name, drawn)) not in seen:
                break
        else:  # nearly all are taken: the first that is not
            drawn = next(c for c in spare[language] if (language, *map(_name, c)) not in seen)
        seen.add((language, *map(_name, drawn)))
        found.append(Seed(f"q{seed}_{language}_{i:05d}", language, *drawn))
    return found


def _parts(lists: Lists) -> list[tuple[str, tuple[Any, ...]]]:
    return [
        ("topics", lists.topics),
        ("situations", lists.situations),
        ("askers", lists.askers),
        ("difficulties", tuple(lists.difficulties)),
    ]


def _all(lists: Lists) -> Iterator[tuple[Any, ...]]:
    return (
        (t, s, a, d) for t in lists.topics for s in lists.situations for a in lists.askers for d in lists.difficulties
    )


def _deck(entries: tuple[Any, ...], seed: str) -> Iterator[Any]:
    draws = random.Random(seed)  # noqa: S311  (a draw, not a secret)
    while True:
        yield from draws.sample(entries, len(entries))


def _name(entry: Any) -> str:
    return entry if isinstance(entry, str) else str(entry.id)


@dataclass(frozen=True)
class PromptsRequest:
    """What was asked for on the command line."""

    out: Path
    languages: tuple[str, ...] = ("pt", "en")
    count: int = 100
    model: str | None = None
    seed: int = 0
    temperature: float = 0.8
    attempts: int = 3
    max_usd: float | None = None


def make_prompts(project: Project, ask: PromptsRequest) -> dict[str, Any]:
    """Deal, phrase, leave out what exists, write; returns the report."""
    constitution, section = load_constitution(project.constitution), load_config(project).training.tribunal
    lists = read_lists(project.data / "constitution_prompts.yaml")
    seeds = deal(lists, ask.languages, ask.count, ask.seed)
    if ask.model is None:
        ask.out.mkdir(parents=True, exist_ok=True)
        rows = [s.row() | {"instruction": s.instruction(lists), "lineage": s.origin()} for s in seeds]
        write_jsonl(ask.out / "instructions.jsonl", rows)
        return {
            "asked": len(seeds),
            "kept": len(rows),
            "file": str(ask.out / "instructions.jsonl"),
            "left_out": {},
            "of": lists.combinations,
        }
    spending = Spending(max_usd=ask.max_usd)
    voice = open_client(parse_spec(ask.model, "--model", WRITER_KINDS), section, spending, slots=WRITER_SLOTS)
    plan: dict[str, Any] = {
        "command": "prompts",
        "model": voice.identity,
        "lists": sha256_json(lists.model_dump(mode="json")),
        "languages": list(ask.languages),
    }
    plan |= {
        "count": ask.count,
        "seed": ask.seed,
        "temperature": ask.temperature,
        "attempts": ask.attempts,
        "wording": sha256_json(INSTRUCTION),
    }
    with open_folder(ask.out, plan) as folder, open_cache(folder.replies) as cache:
        phraser = _Phraser(constitution, lists, voice, cache, ask)

        async def work() -> list[Result]:
            try:
                keys, window = [s.id for s in seeds], 2 * voice.concurrency
                return await process_rows(
                    folder,
                    keys,
                    lambda i: phraser.phrase(seeds[i]),
                    window=window,
                    what="prompts",
                    unit="prompts",
                    again=_unanswered,
                )
            finally:
                await voice.close()

        results = run_async(work())
        kept, left_out = _new_ones(project, ask.out, results)
        write_jsonl(ask.out / "prompts.jsonl", kept)
        write_jsonl(ask.out / "left_out.jsonl", left_out)
        report = {
            "asked": len(seeds),
            "kept": len(kept),
            "file": str(ask.out / "prompts.jsonl"),
            "of": lists.combinations,
            "model": voice.name,
        }
        report |= {
            "left_out": tallies([row["reason"].split(" (", 1)[0] for row in left_out]),
            "by_category": _by_category(kept),
        }
        report |= {"failures": tallies([f for r in results for f in r["failures"]]), "spending": spending.to_json()}
        write_json(ask.out / "report.json", report)
    return report


@dataclass
class _Phraser:
    """Has a model phrase combinations."""

    constitution: Constitution
    lists: Lists
    voice: ModelClient
    cache: ReplyCache
    ask: PromptsRequest

    async def phrase(self, seed: Seed) -> Result:
        failures: list[str] = []
        instruction = seed.instruction(self.lists)

        def number(attempt: int) -> int:
            return request_seed(self.ask.seed, seed.id, attempt)

        def request(attempt: int, problem: str) -> ModelRequest:
            messages = (("user", instruction),)
            return ModelRequest(messages, {}, TOKENS, number(attempt), attempt, self.ask.temperature)

        def read(reply: ModelReply, attempt: int) -> Result:
            text = clean_reply(reply.text)
            work = Work("critique", instruction, seed.language)
            if wrong := reply_problem(reply, text, work, self.constitution) or _unfit(text):
                failures.append(wrong)
                raise UnusableReplyError(wrong)
            lineage = seed.origin() | {"model": self.voice.name, "seed": number(attempt)}
            return seed.row() | {"prompt": text, "generated": True, "lineage": lineage}

        row, reason = None, None
        try:
            client = CachedClient(self.voice, self.cache)
            row = await client.ask_until_usable(request, read, attempts=self.ask.attempts)
        except EndpointDownError:
            raise
        except NoReplyError as error:
            reason = f"unanswered ({error})"
        except UnusableReplyError as error:
            reason = f"{error}, {self.ask.attempts} times"
        return {"row": row, "id": seed.id, "reason": reason, "failures": failures}


def _unanswered(result: Result) -> bool:
    return str(result["reason"]).startswith("unanswered")


def _unfit(text: str) -> str | None:
    if len(text) < MIN_PROMPT:
        return "empty"
    if len(text) > LONGEST:
        return "too long"
    return "emojis" if EMOJI.search(text) else None


def _new_ones(project: Project, out: Path, results: list[Result]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Prompts that ask what nothing before them asks, and what was left out with its reason."""
    files = [
        f
        for f in sorted(project.data.rglob("*.jsonl"))
        if not f.resolve().is_relative_to(out.resolve()) and "shards" not in f.parts
    ]
    known = known_prompts(files)
    kept, left_out = [], []
    for result in results:
        row, reason = result["row"], result["reason"]
        if row and (place := known.find_similar(row["prompt"])):
            reason = f"asks what another asks ({place})"
        if reason:
            left_out.append({"id": result["id"], "reason": reason, "failures": result["failures"]})
        else:
            known.add([row["prompt"]], [row["id"]])
            kept.append(row)
    return kept, left_out


def _by_category(rows: list[dict[str, Any]]) -> dict[str, int]:
    return dict(sorted(Counter(row["category"] for row in rows).items()))
