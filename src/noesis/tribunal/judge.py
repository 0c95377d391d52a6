"""One judge, one answer: ask, read the verdict, check its evidence. The answer under judgement is hostile text.

It stands between marks that carry a code of its own content, which it can't know; copies of the marks and control tokens inside it are
made harmless; the prompt is filled in one pass; the last well-formed object of the reply counts. A reply that can't be read is asked
for once more, then the answer is Unscored: never 0, never dropped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from noesis.core.text import fill_template, neutralise
from noesis.llm.clients.protocol import ModelClient, ModelReply, ModelRequest, NoReplyError
from noesis.llm.clients.reply_cache import ReplyCache
from noesis.tribunal.rubric import VETOES, Rubric, RubricItem, RubricSet
from noesis.tribunal.suite import EvalSample
from noesis.tribunal.verdict import ItemScore, Unscored, Verdict

SCORES = ("0", "1", "2")
TOKENS_AN_ITEM, TOKENS_REASONING = 64, 200  # room in the reply
SHORTEST_SPAN = 8  # characters; less proves nothing


@dataclass(frozen=True)
class JudgeCase:
    """What is to be judged.

    dialogue: (role, text) before the answer, the user's last message included
    record: fields of the prompt that rubric items may ask for
    """

    id: str
    language: str
    dialogue: tuple[tuple[str, str], ...]
    answer: str
    record: Mapping[str, Any] = field(default_factory=dict, hash=False)


def case_from_item(item: EvalSample, said: list[tuple[str, str]], answer: str) -> JudgeCase:
    """A case of the evaluation suite; `said` is the dialogue before the answer."""
    return JudgeCase(item.id, item.language, tuple(said), answer, item.model_dump(mode="json"))


def schema_of(items: tuple[RubricItem, ...]) -> dict[str, Any]:
    """The reply's schema in the portable subset: flat, all required, nothing else allowed, string enums, reasons before scores."""
    properties: dict[str, Any] = {"reasoning": {"type": "string"}}
    for item in items:
        if item.span != "none":
            properties[f"{item.id}_span"] = {"type": "string"}
        properties[item.id] = {"type": "string", "enum": list(SCORES)}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def build_request(
    bench: RubricSet, rubric: Rubric, case: JudgeCase, *, seed: int = 0, backwards: bool = False
) -> tuple[ModelRequest, tuple[RubricItem, ...]]:
    """The question to `rubric` about `case`, and the items that it asks.

    Args:
        backwards: ask the items in reverse order (does their position matter?).
    """
    words = bench.prompt[case.language]
    items = rubric.asked(dict(case.record))
    items = items[::-1] if backwards else items
    schema = schema_of(items)
    listed = "\n".join(
        f"- {item.id}: {item.question(case.language)}\n"
        + "\n".join(f"   {score} = {item.anchors[score][case.language]}" for score in SCORES)  # type: ignore[index]
        for item in items
    )
    system = fill_template(
        words.system,
        {"judge": rubric.system[case.language], "items": listed, "schema": json.dumps(schema, ensure_ascii=False)},
    )
    dialogue = "\n\n".join(f"[{role}] {neutralise(text)}" for role, text in case.dialogue)
    answer = neutralise(case.answer)
    notes = _notes(bench, case)
    code = hashlib.sha256(json.dumps([dialogue, answer], ensure_ascii=False).encode()).hexdigest()[:8]
    user = fill_template(
        words.user, {"code": code, "dialogue": dialogue, "answer": answer, "notes": notes + "\n\n" if notes else ""}
    )
    room = TOKENS_REASONING + TOKENS_AN_ITEM * len(items)
    return ModelRequest((("system", system), ("user", user)), schema, max_tokens=room, seed=seed), items


def _notes(bench: RubricSet, case: JudgeCase) -> str:
    """What the judge is told of the prompt: reference, key, kind, stakeholders, traps."""
    words, record = bench.prompt[case.language], case.record
    notes = []
    for name in ("reference", "key"):
        if record.get(name):
            notes.append(fill_template(getattr(words, name), {name: neutralise(str(record[name]))}))
    if record.get("answerable") in ("answerable", "unanswerable", "false_premise"):
        notes.append(getattr(words, record["answerable"]))
    if record.get("harmful") is not None:
        notes.append(words.harmful if record["harmful"] else words.benign)
    for name in ("stakeholders", "traps"):
        if record.get(name):
            notes.append(fill_template(getattr(words, name), {name: neutralise("; ".join(record[name]))}))
    return "\n".join(notes)


async def judge(
    client: ModelClient,
    bench: RubricSet,
    rubric: Rubric,
    case: JudgeCase,
    cache: ReplyCache,
    *,
    seed: int = 0,
    backwards: bool = False,
) -> Verdict | Unscored:
    """What `client`, as the judge of `rubric`, says of one answer.

    Raises:
        CapError: the cap of USD is reached.
    """
    request, items = build_request(bench, rubric, case, seed=seed, backwards=backwards)
    who = {"case": case.id, "judge": rubric.id, "model": client.name, "rubric_sha256": bench.digest(rubric.id)}
    prompt, made, usd = 0, 0, 0.0
    problem = ""
    for attempt in (0, 1):
        if attempt:
            again = fill_template(bench.prompt[case.language].retry, {"problem": problem})
            request = ModelRequest(
                (*request.messages[:-1], ("user", request.messages[-1][1] + "\n" + again)),
                request.schema,
                request.max_tokens,
                seed,
                1,
            )
        key = request.key(client.identity)
        reply = cache.reply(key)
        if reply is None:
            try:
                reply = await client.ask(request)
            except NoReplyError as error:
                return Unscored(**who, reason=str(error))
            cache.store(key, reply)
        prompt, made, usd = prompt + reply.prompt_tokens, made + reply.completion_tokens, usd + (reply.usd or 0.0)
        read = parse_reply(reply, items)
        if not isinstance(read, str):
            scored = tuple(_item(item, read, case.answer) for item in items)
            seen = any(item.veto and s.score == 0 and s.span_found for item, s in zip(items, scored, strict=True))
            veto = VETOES.get(rubric.id) if seen else None
            return Verdict(
                **who,
                items=scored,
                veto=veto,
                reasoning=read["reasoning"],
                prompt_tokens=prompt,
                completion_tokens=made,
                usd=usd,
            )
        problem = read
    return Unscored(**who, reason=f"reply could not be read, twice: {problem}")


def parse_reply(reply: ModelReply, items: tuple[RubricItem, ...]) -> dict[str, str] | str:
    """The last object in the reply that holds every field with an allowed value; or, as text, what is wrong."""
    schema = schema_of(items)
    problem = "no JSON object"
    for found in reversed(list(_objects(reply.text))):
        wrong = _mismatch(found, schema)
        if wrong is None:
            return {name: str(value) for name, value in found.items()}
        problem = problem if problem != "no JSON object" else wrong
    return f"{problem}; cut off at {reply.completion_tokens} tokens" if reply.finish == "length" else problem


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """Every outermost JSON object in `text`, in order."""
    decoder, at = json.JSONDecoder(), text.find("{")
    while at >= 0:
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            end = at + 1
        else:
            if isinstance(value, dict):
                yield value
        at = text.find("{", end)


def _mismatch(found: dict[str, Any], schema: dict[str, Any]) -> str | None:
    for name, field_schema in schema["properties"].items():
        if name not in found:
            return f"the field {name!r} is missing"
        value = found[name]
        if "enum" in field_schema and (isinstance(value, bool) or str(value) not in field_schema["enum"]):
            return f"{name!r} is {str(value)[:20]!r}, not one of {', '.join(field_schema['enum'])}"
        if "enum" not in field_schema and not isinstance(value, str):
            return f"{name!r} is not a text"
    extra = found.keys() - schema["properties"].keys()
    return f"unknown field {sorted(extra)[0]!r}" if extra else None


def _item(item: RubricItem, read: dict[str, str], answer: str) -> ItemScore:
    given, span = int(read[item.id]), read.get(f"{item.id}_span", "")
    found = quotes_answer(span, answer)
    return ItemScore(item.id, 0 if item.span == "required" and not found else given, given, span, found)


def quotes_answer(span: str, answer: str) -> bool:
    """Whether `span` stands in `answer`, spaces and outer quotation marks apart; a few characters prove nothing."""
    span = " ".join(span.split()).strip("\"“”'‘’«»").strip()
    whole = " ".join(answer.split())
    return (len(span) >= SHORTEST_SPAN or (span != "" and span == whole)) and (
        span in whole or span in " ".join(neutralise(answer).split())
    )
