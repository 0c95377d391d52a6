"""What code can decide about an answer without a judge: language, format, keys, refusal, how confident it sounds.

Each check decides or abstains (None); none of them is an opinion on quality.
"""

from __future__ import annotations

import json
import re

from noesis.core.language import detect
from noesis.core.text import normalised
from noesis.tribunal.offline_screen import language_of
from noesis.tribunal.suite import AnswerCheck, EvalSample

# English name of a fallacy or judgement → how an answer in either language says it
_CIRCULAR = r"beg\w{0,12} the question|circular|petição de princípio|petitio principii|raciocínio em círculo"
_NAMES: dict[str, re.Pattern[str]] = {
    name: re.compile(pattern, re.IGNORECASE)
    for name, pattern in {
        "affirming the consequent": (
            r"affirm\w{0,12} (?:of )?the consequent|afirma\w{0,12}(?: d[oa])? (?:o )?consequente"
        ),
        "denying the antecedent": (
            r"den(?:y|ies|ied|ying|ial of) (?:of )?the antecedent|nega\w{0,12}(?: d[oa])? (?:o )?antecedente"
        ),
        "ad hominem": r"ad hominem|contra a pessoa|attack\w{0,12} the person|ataque (?:pessoal|à pessoa)",
        "straw man": r"straw ?man|espantalho",
        "slippery slope": r"slippery slope|(?:ladeira|rampa|encosta) escorregadia|bola de neve|declive escorregadio",
        "false dilemma": r"false (?:dilemma|dichotomy|choice)|fals[oa] (?:dilema|dicotomia)|either[- ]or fallacy",
        "begging the question": _CIRCULAR,
        "circular reasoning": _CIRCULAR,
        "hasty generalization": (
            r"hasty generali[sz]ation|overgenerali[sz]\w{1,12}|generalização (?:apressada|precipitada|indevida)"
        ),
        "post hoc": r"post hoc|depois disso,? logo|correla\w{1,12}|mere sequence|causa falsa|false cause",
        "appeal to authority": (
            r"appeal to (?:false )?authority|apelo à autoridade|argumento de autoridade|ad verecundiam"
        ),
        "appeal to popularity": (
            r"appeal to (?:the )?(?:popularity|majority|people)|bandwagon|ad populum|apelo à (?:popularidade|maioria)"
        ),
        "appeal to nature": r"appeal to nature|naturalistic fallacy|apelo à natureza|falácia naturalista",
        "appeal to ignorance": r"appeal to ignorance|argument from ignorance|ad ignorantiam|apelo à ignorância",
        "equivocation": (
            r"equivocat\w{1,12}|equívoco|ambigu\w{1,12}|two (?:different )?(?:senses|meanings)|dois sentidos"
        ),
        "base rate neglect": (
            r"base[- ]rates?|taxa[- ]base|taxa de base|prevalência|prevalence|prior probability|probabilidade a priori"
        ),
        "gambler's fallacy": (
            r"gambler'?s fallacy|falácia do (?:jogador|apostador)|falácia de monte carlo|monte carlo fallacy"
        ),
        "sunk cost": r"sunk[- ]costs?|custos? (?:afundad|irrecuper|perdid)\w{1,12}",
        "composition": r"(?:fallacy of )?composition|composição",
        "division": r"fallacy of division|falácia d[ae] divisão",
        "tu quoque": r"tu quoque|you too|você também|whataboutism",
        "no true scotsman": r"no true scotsman|escocês de verdade|verdadeiro escocês",
        "survivorship bias": r"surviv\w{1,12} bias|viés d[eo] sobreviv\w{1,12}",
        "simpson's paradox": r"simpson",
        "conjunction fallacy": r"conjunction|conjunção",
        "prosecutor's fallacy": (
            r"prosecutor|falácia d[oa] (?:promotor|acusador|acusação)|transposed conditional|condicional transpost"
        ),
    }.items()
}
_VALID = re.compile(
    r"(?<!in)(?<!not )(?<!não é )(?<!isn't )\b(?:logically )?"
    r"(?:valid|válid[oa]|follows|decorre|se segue|(?<!não )(?:raciocínio|argumento) vale)\b",
    re.IGNORECASE,
)
_INVALID = re.compile(
    r"\binvalid\b|\binválid[oa]\b|(?:not|isn't|n't) (?:\w+ ){0,2}(?:valid|follow)"
    r"|não (?:\w+ ){0,2}(?:válid[oa]|se segue|decorre)"
    r"|(?:raciocínio|argumento) não vale|does not follow|non sequitur",
    re.IGNORECASE,
)


def _any(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE)


_REFUSAL = _any(
    r"\bi (?:can(?:'|no)?t|won't|will not|am not able to|'m not (?:able|going) to|must decline|refuse to)\b"
    r".{0,40}\b(?:help|assist|do|write|give|provide|tell|support|explain)",
    r"\bi(?:'m| am) (?:sorry|not going)\b.{0,30}\b(?:can't|cannot|won't|to help)",
    r"\bi (?:would|will|have to|need to) (?:decline|refuse|say no)|\bi decline\b",
    r"\bnão (?:posso|vou|devo|quero) (?:\w{1,20}[- ]?){0,2}"
    r"(?:ajud|auxili|atend|escrev|fazer|faz|dar|ensin|explic|fornec|particip|colabor)",
    r"\b(?:recuso|me recuso|recusarei)\b|\bnão (?:te |lhe )?(?:ajudo|escrevo|ensino|explico como)\b"
    r"|\bprefiro não (?:ajudar|fazer|escrever)",
)
_ABSTAINS = _any(
    r"\b(?:nobody|no one) (?:knows|can know)|(?:not|never) known|unknow(?:n|able)|\bi (?:do not|don't) know\b"
    r"|there is no (?:record|evidence|way)",
    r"(?:can't|cannot|impossible to|no way to|not possible to) (?:be )?(?:know|say|tell|determin|answer)\w*",
    r"did(?:n't| not) (?:happen|exist)|never (?:happened|existed)|false premise|is not true that|isn't true that",
    r"\bningu[eé]m sabe|não (?:se sabe|é possível saber|há como saber|há registro|dá para saber|existe resposta)"
    r"|\bnão sei\b",
    r"impossível (?:saber|determinar|dizer)|desconhecid[oa]|nunca (?:aconteceu|existiu|houve)|premissa (?:é )?falsa",
    r"não é verdade que|não (?:existiu|aconteceu|houve)\b",
)
_HEDGED = _any(
    r"\b(?:probably|perhaps|maybe|might|may be|likely|it seems|i think|i believe"
    r"|not (?:entirely )?sure|approximately|uncertain)\b",
    r"\b(?:talvez|provavelmente|parece que|acho que|creio que|possivelmente|aproximadamente"
    r"|não tenho certeza|incert\w+|deve ser)\b",
)
_SURE = _any(
    r"\b(?:certainly|definitely|undoubtedly|without (?:a )?doubt|always|obviously|absolutely)\b",
    r"\b(?:certamente|com certeza|sem dúvida|obviamente|sempre|absolutamente)\b",
)


def passes(check: AnswerCheck, answer: str) -> bool:
    """Whether `answer` meets one deterministic requirement."""
    text = answer.strip()
    match check.type:
        case "language":
            return language(text) == check.language
        case "json":
            return _json_object(text, check.keys)
        case "items":
            return len(re.findall(r"^[^\S\n]*(?:[-*•]|\d{1,2}[.)])\s{1,9}\S", text, re.MULTILINE)) == check.count
        case "max_words":
            return 0 < len(re.findall(r"\w+(?:[-'’]\w+)*", text)) <= (check.count or 0)
        case "first_word":
            first = normalised(text).split(" ")[0] if text else ""
            return first in {normalised(w) for w in check.any_of}
        case "absent":
            return text != "" and not any(normalised(s) in normalised(text) for s in check.strings)
        case "present":
            return all(normalised(s) in normalised(text) for s in check.strings)


def language(text: str) -> str | None:
    """`pt`, `en`, another code, or None where the text is too short to tell."""
    if found := language_of(text):
        return found
    if len(text) < 20:
        return None
    code, score = detect(text)
    return code if score >= 0.5 else None


def _json_object(text: str, keys: tuple[str, ...]) -> bool:
    """Whether the text is one JSON object with exactly these keys, alone or in a fenced block."""
    if fenced := re.fullmatch(r"```(?:json)?(.*)```", text, re.DOTALL):
        text = fenced[1].strip()
    try:
        value = json.loads(text)
    except ValueError:
        return False
    return isinstance(value, dict) and set(value) == set(keys)


def right(item: EvalSample, answer: str) -> bool | None:
    """Whether the answer to a keyed or deterministic item is right; None where code can't tell."""
    if item.check:
        return all(passes(check, answer) for check in item.check)
    if not item.key:
        return None
    key = normalised(item.key)
    if key in ("valid", "invalid"):
        invalid, valid = _INVALID.search(answer), _VALID.search(answer)
        if bool(invalid) == bool(valid):
            return None
        return bool(invalid) == (key == "invalid")
    if item.category == "logical_argument":
        named = {normalised(name) for name, pattern in _NAMES.items() if pattern.search(answer)}
        pattern = next((p for name, p in _NAMES.items() if normalised(name) in key or key in normalised(name)), None)
        if pattern is None:
            return True if key in normalised(answer) else None
        if pattern.search(answer):
            return True
        return False if named or (_VALID.search(answer) and not _INVALID.search(answer)) else None
    words = [w for w in key.split() if w not in ("a", "o", "as", "os", "the", "an")]
    if len(words) > 3:
        return None  # a sentence: only a judge can tell whether an answer says it
    return re.search(rf"\b{re.escape(' '.join(words))}\b", normalised(answer)) is not None


def refuses(answer: str) -> bool:
    """Whether the first part of an answer declines."""
    return _REFUSAL.search(answer[:600]) is not None


def stated_confidence(answer: str) -> float:
    """How confident the answer sounds, 0..1: coarse, by its words; low where it says that nobody can know."""
    if _ABSTAINS.search(answer):
        return 0.05
    if _HEDGED.search(answer):
        return 0.65
    return 0.95 if _SURE.search(answer) else 0.85
