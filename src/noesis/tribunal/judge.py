"""One judge, one answer: `build_request`, ask, `parse_reply`, check the evidence.

The answer under judgement is hostile text. It is enclosed in marks that carry a code derived from its own content,
which it can't know; copies of the marks and control tokens inside it are neutralised, and the prompt is filled in one
pass. A reply that can't be parsed is requested once more, then the answer is Unscored: never 0, never dropped.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from noesis.core.console import quoted
from noesis.core.i18n import N_
from noesis.core.jsonl.loose_object import renamed, scanned
from noesis.core.text import fill_template, neutralise
from noesis.llm.clients.cached_client import CachedClient, UnusableReplyError
from noesis.llm.clients.protocol import ModelClient, ModelReply, ModelRequest, NoReplyError
from noesis.llm.clients.reply_cache import ReplyCache
from noesis.tribunal.rubric import VETOES, Rubric, RubricItem, RubricSet
from noesis.tribunal.suite import EvalSample
from noesis.tribunal.verdict import ItemScore, Unscored, Verdict

SCORES: tuple[Literal["0", "1", "2"], ...] = ("0", "1", "2")
SHORTEST_SPAN = 8  # characters; a shorter quotation proves nothing
ATTEMPTS = 2  # requests before an answer is Unscored
LONGEST = 50_000  # characters of a reply in which its objects are looked for
TOKENS_PER_ITEM, TOKENS_REASONING = 64, 200  # of the longest reply
LONGEST_ENDING = 120  # characters of how a reply ended, in a reason
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|[\"\\/bfnrt])?")
_SCORE = re.compile(
    r"\s{0,9}([012])(?:\.0{1,9})?(?: points?| pontos?| ?[-–—:(] ?[^\d\s][^\n]{0,300})?\s{0,9}", re.ASCII
)
# what JSON makes of LaTeX's \beta, \theta, \nu, \frac, \rho if its backslash is not doubled
_LATEX = str.maketrans({"\b": r"\b", "\t": r"\t", "\n": r"\n", "\f": r"\f", "\r": r"\r"})
LONGEST_REPLY = 32_000  # characters, from the end, in which its object is looked for


@dataclass(frozen=True)
class JudgeCase:
    """One answer to be judged.

    dialogue: (role, text) before the answer, the user's last message included
    record: fields of the prompt that rubric items may refer to
    """

    id: str
    language: str
    dialogue: tuple[tuple[str, str], ...]
    answer: str
    record: Mapping[str, Any] = field(default_factory=dict, hash=False)


def case_from_item(item: EvalSample, dialogue: list[tuple[str, str]], answer: str) -> JudgeCase:
    """The case of an answer to a prompt of the evaluation suite; `dialogue` stands before the answer."""
    return JudgeCase(item.id, item.language, tuple(dialogue), answer, item.model_dump(mode="json"))


# --- the request


def reply_schema(items: tuple[RubricItem, ...]) -> dict[str, Any]:
    """The reply's JSON schema, in the portable subset: flat, all required, string enums, reasons before scores."""
    properties: dict[str, Any] = {"reasoning": {"type": "string"}}
    for item in items:
        if item.span != "none":
            properties[f"{item.id}_span"] = {"type": "string"}
        properties[item.id] = {"type": "string", "enum": list(SCORES)}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def build_request(
    rubrics: RubricSet,
    rubric: Rubric,
    case: JudgeCase,
    *,
    seed: int = 0,
    backwards: bool = False,
    only: Collection[str] | None = None,
) -> tuple[ModelRequest, tuple[RubricItem, ...]]:
    """The request to the judge of `rubric` about `case`, and the items that it asks for.

    Args:
        backwards: ask for the items in reverse order (does their position matter?).
        only: ids of the items to ask for; None: all that apply.
    """
    words = rubrics.prompt[case.language]
    items = tuple(i for i in rubric.applicable_items(dict(case.record)) if only is None or i.id in only)
    items = items[::-1] if backwards else items
    schema = reply_schema(items)
    listed = "\n".join(
        f"- {item.id}: {item.question(case.language)}\n"
        + "\n".join(f"   {score} = {item.anchors[score][case.language]}" for score in SCORES)
        for item in items
    )
    system = fill_template(
        words.system,
        {"judge": rubric.system[case.language], "items": listed, "schema": json.dumps(schema, ensure_ascii=False)},
    )
    user = fill_template(words.user, case_fields(rubrics, case))
    max_tokens = TOKENS_REASONING + TOKENS_PER_ITEM * len(items)
    return ModelRequest((("system", system), ("user", user)), schema, max_tokens, seed), items


def case_fields(rubrics: RubricSet, case: JudgeCase) -> dict[str, str]:
    """What a prompt's `{code}`, `{dialogue}`, `{answer}` and `{notes}` stand for: the hostile texts made harmless."""
    dialogue = "\n\n".join(f"[{role}] {neutralise(text)}" for role, text in case.dialogue)
    answer = neutralise(case.answer)
    notes = _notes(rubrics, case)
    code = hashlib.sha256(json.dumps([dialogue, answer], ensure_ascii=False).encode()).hexdigest()[:8]
    return {"code": code, "dialogue": dialogue, "answer": answer, "notes": notes + "\n\n" if notes else ""}


def _notes(rubrics: RubricSet, case: JudgeCase) -> str:
    """What the judge learns about the prompt: reference, key, kind, stakeholders, traps."""
    words, record = rubrics.prompt[case.language], case.record
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
    rubrics: RubricSet,
    rubric: Rubric,
    case: JudgeCase,
    cache: ReplyCache,
    *,
    seed: int = 0,
    backwards: bool = False,
    only: Collection[str] | None = None,
) -> Verdict | Unscored:
    """The verdict of `client`, as the judge of `rubric`, on one answer, or on the items `only` of it.

    Raises:
        CapError: the cap is reached. ModelError: the key or the model is refused.
    """
    first, items = build_request(rubrics, rubric, case, seed=seed, backwards=backwards, only=only)
    retry = rubrics.prompt[case.language].retry
    replies: list[ModelReply] = []

    def request(attempt: int, problem: str) -> ModelRequest:
        if not attempt:
            return first
        *before, (role, text) = first.messages
        again = text + "\n" + fill_template(retry, {"problem": problem})
        return ModelRequest((*before, (role, again)), first.schema, first.max_tokens, seed, attempt)

    def read(reply: ModelReply, attempt: int) -> dict[str, str]:
        replies.append(reply)
        return parse_reply(reply, items)

    who: dict[str, Any] = {
        "case": case.id,
        "judge": rubric.id,
        "model": client.name,
        "rubric_sha256": rubrics.digest(rubric.id),
    }
    try:
        fields = await CachedClient(client, cache).ask_until_usable(request, read, attempts=ATTEMPTS)
    except NoReplyError as error:
        return Unscored(**who, reason=str(error))
    except UnusableReplyError as error:
        return Unscored(**who, reason=N_("reply could not be read, twice: {error}", error=error))
    scores = score_items(items, fields, case.answer)
    vetoed = any(item.veto and s.score == 0 and s.span_found for item, s in zip(items, scores, strict=True))
    return Verdict(
        **who,
        items=scores,
        veto=VETOES.get(rubric.id) if vetoed else None,
        reasoning=fields["reasoning"],
        prompt_tokens=sum(reply.prompt_tokens for reply in replies),
        completion_tokens=sum(reply.completion_tokens for reply in replies),
        usd=sum(reply.usd or 0.0 for reply in replies),
    )


# --- the reply


def parse_reply(reply: ModelReply, items: tuple[RubricItem, ...]) -> dict[str, str]:
    """The fields of the last object in the reply that has all of them with allowed values.

    The last one, since a reply may repeat an object from the judged answer before it gives its own.

    Raises:
        UnusableReplyError: there is none; the message says what is wrong with the last object.
    """
    schema = reply_schema(items)
    names = list(schema["properties"])
    text, problem = reply.text[-LONGEST_REPLY:], ""
    for written in reversed(list(_objects(text))):
        found = renamed(written, names)
        if schema["properties"].keys() - found.keys() == {"reasoning"}:
            found["reasoning"] = ""  # not asked for twice for its sake
        wrong = _mismatch(found, schema)
        if wrong is None:
            return _fields(found, schema)
        problem = problem or wrong
    loose = scanned(text, names) or scanned(text, [name for name in names if name != "reasoning"])
    if loose and _mismatch({"reasoning": "", **loose}, schema) is None:
        return _fields({"reasoning": "", **loose}, schema)
    problem = problem or ("no JSON object" if reply.text.strip() else N_("an empty reply"))
    if reply.finish == "length":
        problem += N_("; cut off at {completion_tokens} tokens", completion_tokens=reply.completion_tokens)
    elif reply.finish != "stop":
        problem += N_("; it ended with {finish}", finish=quoted(reply.finish)[:LONGEST_ENDING])
    raise UnusableReplyError(problem)


def _fields(found: dict[str, Any], schema: dict[str, Any]) -> dict[str, str]:
    properties = schema["properties"].items()
    return {name: _score_in(found[name]) or "" if "enum" in of else found[name] for name, of in properties}


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """Every outermost JSON object in the last LONGEST characters of `text`, in order."""
    text = text[-LONGEST:]  # each brace may be tried to no avail, which takes quadratic time
    text = _ESCAPE.sub(lambda m: m[0] if m[1] else "\\\\", text)  # "\(" as LaTeX writes it, not as JSON does
    decoder, start = json.JSONDecoder(strict=False), text.find("{")  # line breaks and tabs in texts are let pass
    while start >= 0:
        try:
            value, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            end = start + 1
        else:
            if isinstance(value, dict):
                yield value
        start = text.find("{", end)


def _mismatch(found: dict[str, Any], schema: dict[str, Any]) -> str | None:
    """Where `found` differs from `schema`, None if it doesn't."""
    for name, field_schema in schema["properties"].items():
        if name not in found:
            return N_("the field {name!r} is missing", name=name)
        value = found[name]
        if "enum" in field_schema and _score_in(value) not in field_schema["enum"]:
            return N_(
                "{name!r} is {value!r}, not one of {field_schema}",
                name=name,
                value=str(value)[:20],
                field_schema=", ".join(field_schema["enum"]),
            )
        if "enum" not in field_schema and not _is_text(value):
            return N_("{name!r} is not a text", name=name)
    return None


def _score_in(value: Any) -> str | None:
    """The score that `value` is, however a model writes it: 1, 1.0, "1", "1.0"; None where it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    match = _SCORE.fullmatch(str(value))
    return match[1] if match else None


def _is_text(value: Any) -> bool:
    """Whether `value` can be written to a file: JSON's escapes allow half a character, which can't."""
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def score_items(items: tuple[RubricItem, ...], fields: dict[str, str], answer: str) -> tuple[ItemScore, ...]:
    """Each item's score; 0 where a quotation is required and is not in the answer."""
    return tuple(_score(item, fields, answer) for item in items)


def _score(item: RubricItem, fields: dict[str, str], answer: str) -> ItemScore:
    given, span = int(fields[item.id]), fields.get(f"{item.id}_span", "")
    found = quotes_answer(span, answer)
    return ItemScore(item.id, 0 if item.span == "required" and not found else given, given, span, found)


def quotes_answer(span: str, answer: str) -> bool:
    """Whether `span` occurs in `answer`, apart from spacing and outer quotation marks; not if it is very short.

    A backslash that a judge did not double, as JSON wants it, is taken for one.
    """
    return _quotes(span, answer) or (span != span.translate(_LATEX) and _quotes(span.translate(_LATEX), answer))


def _quotes(span: str, answer: str) -> bool:
    span = " ".join(span.split()).strip("\"“”'‘’«»").strip()
    whole = " ".join(answer.split())
    return (len(span) >= SHORTEST_SPAN or (span != "" and span == whole)) and (
        span in whole or span in " ".join(neutralise(answer).split())
    )
