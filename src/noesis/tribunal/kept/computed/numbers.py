"""Arithmetic and dates; every key is computed."""

from __future__ import annotations

import calendar
from datetime import date, timedelta
from random import Random

from noesis.tribunal.kept.items import Tongue

Task = tuple[str, str, list[str]]  # prompt, answer, distractors


def listed(words: str) -> list[str]:
    """The words of a text."""
    return words.split()


NUMBER = {"en": "Answer with the number only.", "pt": "Responda só com o número."}
WORD = {"en": "Answer with one word.", "pt": "Responda com uma palavra."}
DAYS = {
    "en": ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"],
    "pt": ["segunda-feira", "terça-feira", "quarta-feira", "quinta-feira", "sexta-feira", "sábado", "domingo"],
}
MONTHS = {
    "en": listed("January February March April May June July August September October November December"),
    "pt": listed("janeiro fevereiro março abril maio junho julho agosto setembro outubro novembro dezembro"),
}


def near(rng: Random, key: int, *likely: int) -> list[str]:
    """Three wrong numbers: the likely slips first, then neighbours of the key; none negative."""
    found = [n for n in dict.fromkeys(likely) if n != key and n >= 0][:2]
    around = [key + d for d in (-10, -2, -1, 1, 2, 10) if key + d >= 0 and key + d not in found]
    return [str(n) for n in [*found, *rng.sample(around, 3 - len(found))]]


def arithmetic(rng: Random, lang: Tongue, tier: int) -> Task:
    """Sums of one digit, of two, products and small stories, order of operations and percentages."""
    if tier <= 2:
        a, b = (rng.randint(1, 9), rng.randint(1, 9)) if tier == 1 else (rng.randint(12, 89), rng.randint(11, 79))
        a, b = max(a, b), min(a, b)
        sign = rng.choice("+-" if tier == 1 else "+-×")
        if sign == "×":
            a, b = rng.randint(3, 9), rng.randint(3, 9)
        key = {"+": a + b, "-": a - b, "×": a * b}[sign]
        return _what_is(lang, f"{a} {sign} {b}"), str(key), near(rng, key)
    if tier == 3:
        boxes, each, given = rng.randint(3, 9), rng.randint(11, 24), rng.randint(3, 9)
        key = boxes * each - given
        story = {
            "en": f"A shop has {boxes} boxes with {each} pens in each. It sells {given} pens. How many are left?",
            "pt": f"Uma loja tem {boxes} caixas com {each} canetas em cada uma. Vende {given} canetas. Quantas sobram?",
        }
        return f"{story[lang]} {NUMBER[lang]}", str(key), near(rng, key, boxes * each, boxes * each + given)
    if rng.random() < 0.5:
        share, of = rng.choice([5, 15, 35, 45]), 20 * rng.randint(7, 49)
        text = {"en": f"What is {share}% of {of}?", "pt": f"Quanto é {share}% de {of}?"}[lang]
        key = share * of // 100
        return f"{text} {NUMBER[lang]}", str(key), near(rng, key, of - key, of // share)
    a, b, c, d = rng.randint(12, 49), rng.randint(6, 9), rng.randint(12, 19), rng.randint(3, 9)
    key = a + b * c - d
    return _what_is(lang, f"{a} + {b} × {c} - {d}"), str(key), near(rng, key, (a + b) * c - d, a + b * (c - d))


def _what_is(lang: Tongue, expression: str) -> str:
    return f"{'What is' if lang == 'en' else 'Quanto é'} {expression}? {NUMBER[lang]}"


def dates(rng: Random, lang: Tongue, tier: int) -> Task:
    """Neighbours in the calendar, days later, times of day, and the days between two dates."""
    english = lang == "en"
    if tier == 1:
        names, place = rng.choice([DAYS[lang], MONTHS[lang]]), rng.randrange(7)
        after = rng.random() < 0.6
        key = names[(place + (1 if after else -1)) % len(names)]
        what = ("day" if english else "dia") if names is DAYS[lang] else ("month" if english else "mês")
        text = (
            f"Which {what} comes right {'after' if after else 'before'} {names[place]}?"
            if english
            else f"Que {what} vem logo {'depois' if after else 'antes'} de {names[place]}?"
        )
        return f"{text} {WORD[lang]}", key, rng.sample([n for n in names if n not in (key, names[place])], 3)
    if tier == 2 or (tier == 3 and rng.random() < 0.5):
        later, today = rng.randint(2, 5) if tier == 2 else rng.randint(9, 40), rng.randrange(7)
        key = DAYS[lang][(today + later) % 7]
        text = (
            f"Today is {DAYS[lang][today]}. Which day is it in {later} days?"
            if english
            else f"Hoje é {DAYS[lang][today]}. Que dia será daqui a {later} dias?"
        )
        return f"{text} {WORD[lang]}", key, rng.sample([n for n in DAYS[lang] if n != key], 3)
    if tier == 3:
        start, lasts = rng.randint(8 * 60, 20 * 60), rng.randint(35, 170)
        key, wrong = _clock(start + lasts), [_clock(start + lasts + d) for d in (60, -60, 10, -10, 40)]
        text = (
            f"A film starts at {_clock(start)} and lasts {lasts} minutes. When does it end? Answer with the time only."
            if english
            else f"Um filme começa às {_clock(start)} e dura {lasts} minutos. Quando acaba? Responda só com a hora."
        )
        return text, key, rng.sample(wrong, 3)
    year = rng.randint(2001, 2030)
    first = date(year, rng.randint(1, 3), rng.randint(1, 28))
    days = rng.randint(35, 140)
    last = first + timedelta(days)
    short = days - 1 if calendar.isleap(year) else days + 1
    text = (
        f"How many days after {_day(first, lang)}, {year}, is {_day(last, lang)}, {year}?"
        if english
        else f"Quantos dias depois de {_day(first, lang)} de {year} é {_day(last, lang)} de {year}?"
    )
    return f"{text} {NUMBER[lang]}", str(days), near(rng, days, short)


def _clock(minutes: int) -> str:
    return f"{minutes // 60 % 24}:{minutes % 60:02}"


def _day(day: date, lang: Tongue) -> str:
    month = MONTHS[lang][day.month - 1]
    return f"{month} {day.day}" if lang == "en" else f"{day.day} de {month}"
