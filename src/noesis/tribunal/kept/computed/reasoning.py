"""Orderings, syllogisms and strings; every key is computed."""

from __future__ import annotations

from itertools import pairwise
from random import Random

from noesis.tribunal.kept.computed.numbers import NUMBER, WORD, Task, listed, near
from noesis.tribunal.kept.items import Tongue

NAMES = {
    "en": listed("Alice Brian Clara David Emma Frank Grace Henry Irene Jack"),
    "pt": listed("Ana Bruno Carla Diego Elisa Fábio Gabriela Heitor Iara João"),
}
# plural and singular of groups; with invented ones no fact about the world helps
GROUPS = {
    "en": [("bakers", "baker"), ("singers", "singer"), ("pilots", "pilot"), ("farmers", "farmer"), ("poets", "poet")],
    "pt": [("padeiros", "padeiro"), ("cantores", "cantor"), ("pilotos", "piloto"), ("atletas", "atleta"),
           ("poetas", "poeta")],
}  # fmt: skip
INVENTED = {
    "en": [("zorps", "zorp"), ("miffs", "miff"), ("tarks", "tark"), ("lunds", "lund"), ("brells", "brell")],
    "pt": [("zorpes", "zorpe"), ("mifos", "mifo"), ("tarques", "tarque"), ("lundos", "lundo"), ("brelos", "brelo")],
}
VERDICTS = {"en": ("yes", "no", "unknown"), "pt": ("sim", "não", "indefinido")}
WORDS = {
    "en": listed(
        "garden window planet butter silver market rocket orange winter basket forest bridge candle pocket ladder "
        "monkey thunder kitchen blanket picture"
    ),
    "pt": listed(
        "janela planeta cavalo mercado laranja inverno martelo cadeira bandeira sapato barriga tesoura dinheiro "
        "caderno semana boneca estrada gaveta girafa tomate"
    ),
}


def logic(rng: Random, lang: Tongue, tier: int) -> Task:
    """Who is tallest of three; a chain of two; who is second of four; chains with invented words and bad inferences."""
    if tier in (1, 3):
        return _order(rng, lang, 3 if tier == 1 else 4)
    a, b, c, d = rng.sample(GROUPS[lang] if tier == 2 else INVENTED[lang], 4)
    name = rng.choice(NAMES[lang][::2] if lang == "en" else [n for n in NAMES[lang] if n[-1] == "o"])
    english = lang == "en"
    all_of = "All {} are {}." if english else "Todos os {} são {}."
    none_of = "No {} are {}." if english else "Nenhum dos {} está entre os {}."
    one = "{} is a {}." if english else "{} é {}."
    chain = [all_of.format(a[0], b[0])] + ([all_of.format(b[0], c[0])] if tier == 4 else [])
    top = c if tier == 4 else b
    form = rng.randrange(4)
    if form == 0:  # from the first group to the last
        facts, ask, key = [*chain, one.format(name, a[1])], top, 0
    elif form == 1:  # and out of another
        facts, ask, key = [*chain, none_of.format(top[0], d[0]), one.format(name, a[1])], d, 1
    elif form == 2:  # who is in the last group need not be in the first
        facts, ask, key = [*chain, one.format(name, top[1])], a, 2
    else:  # who is in the excluded group is not in the first
        facts, ask, key = [*chain, none_of.format(top[0], d[0]), one.format(name, d[1])], a, 1
    yes, no, open_ = VERDICTS[lang]
    question = (
        f"Is {name} a {ask[1]}? Answer {yes}, {no} or {open_}."
        if english
        else f"{name} é {ask[1]}? Responda {yes}, {no} ou {open_}."
    )
    verdict = VERDICTS[lang][key]
    return f"{' '.join(facts)} {question}", verdict, [v for v in VERDICTS[lang] if v != verdict]


def _order(rng: Random, lang: Tongue, count: int) -> Task:
    people, english = rng.sample(NAMES[lang], count), lang == "en"
    older, younger = ("was born before", "was born after") if english else ("nasceu antes de", "nasceu depois de")
    facts = []
    for first, second in pairwise(people):
        turned = count > 3 and rng.random() < 0.5
        x, y, how = (second, first, younger) if turned else (first, second, older)
        facts.append(f"{x} {how} {y}.")
    if count > 3:
        rng.shuffle(facts)
    place = rng.choice([0, count - 1] if count == 3 else [1, 2])
    which = {
        ("en", 0): "Who is the oldest?",
        ("en", count - 1): "Who is the youngest?",
        ("pt", 0): "Quem é a pessoa mais velha?",
        ("pt", count - 1): "Quem é a pessoa mais nova?",
    }.get((lang, place))
    if which is None:
        rank = (("second", "third") if english else ("segunda", "terceira"))[place - 1]
        which = f"Who is the {rank} oldest?" if english else f"Quem é a {rank} pessoa mais velha?"
    key = people[place]
    return f"{' '.join(facts)} {which} {WORD[lang]}", key, [p for p in people if p != key]


def strings(rng: Random, lang: Tongue, tier: int) -> Task:
    """Ends of a word; its length and the alphabet; words backwards and in a row; letters counted or left out."""
    english, word = lang == "en", rng.choice(WORDS[lang])
    if tier == 1:
        first = rng.random() < 0.5
        key = word[0] if first else word[-1]
        text = (
            f"What is the {'first' if first else 'last'} letter of the word {word!r}? Answer with the letter only."
            if english
            else f"Qual é a {'primeira' if first else 'última'} letra da palavra {word!r}? Responda só com a letra."
        )
        return text, key, rng.sample(sorted(set(word + "aeiorst") - {key}), 3)
    if tier == 2:
        if rng.random() < 0.5:
            text = (
                f"How many letters are in the word {word!r}?" if english else f"Quantas letras tem a palavra {word!r}?"
            )
            return f"{text} {NUMBER[lang]}", str(len(word)), [str(len(word) + d) for d in (-2, -1, 1)]
        some = rng.sample(WORDS[lang], 4)
        key = min(some)
        text = "Which word comes first in the alphabet" if english else "Qual palavra vem primeiro na ordem alfabética"
        return f"{text}: {', '.join(some)}? {WORD[lang]}", key, [w for w in some if w != key]
    if tier == 3 and rng.random() < 0.5:
        some, place = rng.sample(WORDS[lang], 6), rng.randint(1, 4)
        ordinal = (("second", "third", "fourth", "fifth") if english else ("segunda", "terceira", "quarta", "quinta"))[
            place - 1
        ]
        text = f"Which is the {ordinal} word" if english else f"Qual é a {ordinal} palavra"
        key = some[place]
        return f"{text}: {' '.join(some)}? {WORD[lang]}", key, rng.sample([w for w in some if w != key], 3)
    if tier == 3 or rng.random() < 0.5:
        text = "Write the word {!r} backwards." if english else "Escreva a palavra {!r} de trás para a frente."
        back = word[::-1]
        if tier == 4:
            text = "Write the word {!r} without its vowels." if english else "Escreva a palavra {!r} sem as vogais."
            back = "".join(letter for letter in word if letter not in "aeiou")
        return f"{text.format(word)} {WORD[lang]}", back, _swapped(rng, back)
    some = rng.sample(WORDS[lang], 4)
    letter = rng.choice([x for x in "aeo" if any(x in w for w in some)])
    count = sum(w.count(letter) for w in some)
    text = (
        f"How many times does the letter {letter!r} occur in: {' '.join(some)}?"
        if english
        else f"Quantas vezes a letra {letter!r} aparece em: {' '.join(some)}?"
    )
    return f"{text} {NUMBER[lang]}", str(count), near(rng, count)


def _swapped(rng: Random, word: str) -> list[str]:
    """Three spellings with two neighbouring letters exchanged, or one doubled."""
    found = {word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in range(len(word) - 1)}
    found |= {word[:i] + word[i] + word[i:] for i in range(len(word))}
    return rng.sample(sorted(found - {word}), 3)
