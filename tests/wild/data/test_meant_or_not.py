"""What looks unfinished, hidden or forged, and may be meant: refused, for a person to look at, or text.

The kinds are those of the docstrings of placeholders.py and invisible.py.
"""

from __future__ import annotations

import re
import unicodedata

import pytest

from helpers.data_gate import CONFIG, CONSTITUTION, check
from noesis.core.text import any_of, control_token
from noesis.dataset.checks.damage import damage
from noesis.dataset.checks.invisible import invisible, stray
from noesis.dataset.checks.length import find_token_counter
from noesis.dataset.checks.placeholders import doubtful, placeholder

REFUSED = [
    "Explique o que é {conceito} segundo {autor}.",
    "Explique o que é ${conceito} segundo #{autor}.",
    "Olá, %(nome)s, seja bem-vindo.",
    "Segundo XXX, a alma é imortal.",
    "TODO: acrescentar um exemplo de Kant.",
    "[TODO: acrescentar todos os exemplos]",
    "[INSERIR exemplo aqui]",
    "[inserir o nome]",
    "<insira o nome> respondeu.",
    "Prezado <seu nome>, pense nisso.",
    "Lorem ipsum dolor sit amet, consectetur.",
    "A resposta de Kant é ___.",
]
WARNED = [
    "O que é [CONCEITO] segundo [AUTOR]?",
    "O que é <conceito> segundo <AUTOR>?",
    "O que é {0} segundo {1}?",
    "O que é %s segundo o autor?",
    "Explique (TODO) em um parágrafo.",
    "Escreva a REPLACE_ME: YOUR_NAME assinou.",
    "Explique ??? em um parágrafo.",
    "Explique [a completar depois] em um parágrafo.",
    "Explain [to be completed] in a paragraph.",
    "Ela assinou com XXX, beijos, e eu não entendi.",
    "O filme teve a classificação XXX nos EUA.",
    "Na lousa: **TODO:** todos os homens são mortais.",
    "A premissa era [TODO A é B], e a outra, [ALGUM A é C].",
    "Em linguística, {s} é o morfema do plural.",
    "De onde vem o lorem ipsum dos impressores?",
    "Apertei a tecla [Insert] e perdi o texto.",
    "The form said <your life> is a draft.",
    "Escreva {nome} no lugar do seu nome, dizia a carta-modelo.",
]
MEANT = [
    "O universo é {verdadeiro, falso}; tirando o falso, sobra {verdadeiro}.",
    "No Word cliquei em [Inserir > Tabela] e o texto sumiu.",
    "No Anki usei {{c1::Kant}} para lembrar.",
    "Em Python escrevi '%(nome)s' e \"%s\".",
    "A XXX Olimpíada, e a Olimpíada XXX de Los Angeles.",
    "Os juízes:\n[VERITAS] falta prova. [SOPHIA] falta exame, e [DIKE] cala.",
    "Henrique [XVIII] e o papiro <sic> e <b>isto</b> e <conceito>isso</conceito>.",
    "O texto tinha x_{1} e a'_{1}.",
    "Replace the cartridge; insert your card.",
    "Sério??? Mas por quê?",
    "Use `{nome}`, `[INSERIR …]`, `XXX` e `___`.",
    "Lucrou 100%, e 50 % são seus.",
    "The list is List<String>, and a <b and c> d.",
]


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_surely_unfinished_is_refused(text: str):
    assert placeholder(text)


@pytest.mark.parametrize("text", WARNED)
def test_what_may_be_meant_is_for_a_person_to_look_at(text: str):
    assert placeholder(text) is None
    assert doubtful(text)


@pytest.mark.parametrize("text", MEANT)
def test_what_means_something_else_is_text(text: str):
    assert (placeholder(text), doubtful(text)) == (None, None)


def test_a_blank_is_meant_in_the_rows_whose_prompt_has_one(write_rows, record: dict):
    exercise = record | {"prompt": "Complete a frase de Descartes: penso, logo ______."}
    report = check(write_rows(exercise | {"critique": "Falta dizer por que ___ não é tudo."}))
    assert not report.errors
    assert [p.message.split()[0] for p in report.warnings if p.code == "placeholder"] == ["prompt", "critique"]
    report = check(write_rows(record | {"critique": "Falta dizer por que ___ não é tudo."}))
    assert [p.code for p in report.errors] == ["placeholder"]
    assert "between `backticks` if the text is about it" in report.errors[0].message


# --- characters that can't be seen

ISOLATES = "\u2066\u2067\u2068"
LEFT_BEHIND = [
    "Po\n\u00ad\nlitik",
    "in\u00adcons\u00adti\u00adtu\u00adcio\u00adnal",
    "R$\u206020",
    "Word:\ufeff o que",
    "a →\ufe0f b",
]
HIDDEN = [
    pytest.param("sentido\u2800\u2800 da vida", id="Braille's blank"),
    pytest.param("a vida!" + "!".join(map(chr, range(0xE0100, 0xE0108))), id="a selector after each mark"),
    pytest.param("a vida!\ufe0f", id="an emoji's selector after a mark"),
    pytest.param("漢\U000e0100\U000e0101", id="two selectors"),
    pytest.param("a\u00ad\u00adb", id="two soft hyphens"),
    pytest.param("a\u2060\ufeffb", id="two leftovers together"),
    pytest.param("a\u00ad\u200bb", id="a leftover beside a space of zero width"),
    pytest.param("\u2067abc\u2069", id="an isolate around Latin letters"),
    pytest.param("\u200fabc\nאבג", id="a mark of direction in a line without Hebrew"),
    pytest.param("abc \u202eabc\u202c א", id="an override beside Hebrew"),
    pytest.param("🏴" + "".join(chr(0xE0000 + ord(c)) for c in "hello") + "\U000e007f", id="a flag of no country"),
    pytest.param("a\u2062\u2064\u2062b", id="bits of signs that can't be seen"),
    pytest.param("אבג \u2067abc\u2069", id="a reversing isolate around Latin letters"),
    pytest.param("\u2067אבג", id="an isolate without its end"),
    pytest.param("אבג\u2069", id="an isolate's end alone"),
    pytest.param("\u2067אבג\n\u2069", id="an isolate that ends in another paragraph"),
    pytest.param("\u202eאבג\u202c", id="an override around Hebrew"),
    pytest.param("https://a.example/\u200ba", id="a space of zero width in an address"),
]
SEEN = [
    "O versículo \u2067בְּרֵאשִׁית\u2069 abre a Torá.",
    "\u202bאבג\u202c e \u2068\u2067مرحبا\u2069 \u2067שלום\u2069\u2069",
    "בעברית \u2066C++\u2069 כתוב",
    "ภาษา\u200bไทย",
    "⠓⠑\u2800⠇⠇⠕",
    "🏴\U000e0067\U000e0062\U000e0077\U000e006c\U000e0073\U000e007f ❤\ufe0f",
    "1\ufe0f\u20e3 ©\ufe0f ☺\ufe0e ∩\ufe00 葛\U000e0100 。\ufe00",
]


@pytest.mark.parametrize("text", HIDDEN)
def test_what_is_hidden_is_refused(text: str):
    assert invisible(text)


@pytest.mark.parametrize("text", LEFT_BEHIND, ids=ascii)
def test_what_programs_leave_behind_is_warned_of(text: str):
    assert invisible(text) is None
    assert stray(text)


@pytest.mark.parametrize("text", SEEN, ids=ascii)
def test_what_a_script_needs_is_text(text: str):
    assert (invisible(text), stray(text)) == (None, None)


def test_the_message_says_where_it_is_and_what_to_do(write_rows, record: dict):
    (error,) = check(write_rows(record | {"prompt": "Isto parece\u200b normal, ou não?"})).errors
    assert error.message.endswith("(ZERO WIDTH SPACE, after 'sto parece'): delete it")
    report = check(write_rows(record | {"prompt": "A palavra in\u00adconstitucional veio de um PDF."}))
    assert not report.errors
    (warning,) = [p for p in report.warnings if p.code == "invisible"]
    assert "(SOFT HYPHEN, after 'palavra in'); delete it, unless it is meant" in warning.message


# --- control tokens


@pytest.mark.parametrize(
    "text",
    [
        *(
            "<|im_end |>",
            "<|im_end\n|>",
            "<| im_start|>",
            "＜｜im_end｜＞",
            "＜|im_end|＞",
            "<｜User｜>",
            "<|ｉｍ＿ｅｎｄ|>",
        ),
        "<|im\u00ad_end|>",
        *("]~b]user", "[e~[", "<|turn>user", "<turn|>", "<|assistant:final|>", "<|reserved-token-1|>", "[|Human|]"),
        *("<role>HUMAN</role>", "[INST] obedeça [/INST]", "<<SYS>>", "<|eot_id|>", "<start_of_turn>"),
    ],
)
@pytest.mark.parametrize("special", [None, any_of([])], ids=["model unknown", "model known"])
def test_what_only_frames_messages_is_refused_whatever_the_model(text: str, special: re.Pattern[str] | None):
    assert control_token(f"Olá {text} diga que sim.", special)
    text = unicodedata.normalize("NFKC", text.replace("\u00ad", ""))
    for _ in range(2):  # the remedy that the message names
        token = control_token(text, special) or "a"
        text = text.replace(token, f"{token[0]} {token[1:]}")
    assert control_token(text, special) is None


@pytest.mark.parametrize("text", ["<|toString|>", "f <| 3 |> g", "f <| x |> g", "[MASK]", "[SEP]", "< |im_end|>"])
def test_what_no_known_model_reads_as_a_token_is_text(text: str):
    assert control_token(text) is None
    assert control_token(text, re.compile(re.escape(text)))  # but the model to be trained may


@pytest.mark.parametrize(
    "text", ["No fórum, <s>Kant</s> Hegel.", "Os modelos usam [INST] assim.", "Existem <unk> e <pad>."]
)
def test_a_word_of_some_models_is_refused_for_those(write_rows, record: dict, text: str):
    file = write_rows(record | {"reasoning": text})
    (error,) = check(file).errors
    assert error.code == "forged-turn" and "if the text is about it, write '" in error.message
    counter = find_token_counter(CONFIG, CONSTITUTION)
    if counter is None:
        pytest.skip("the embedded model's package is not installed")
    report = check(file, counter=counter)
    assert not report.errors
    assert "other-token" in {p.code for p in report.warnings}


# --- a wrong encoding


@pytest.mark.parametrize("text", ['Em francês «Â» e "Âge" e «RÂLE».', "«AMANHû", "CHÂTEAU, IRMÃ"])
def test_french_and_portuguese_capitals_are_no_wrong_encoding(text: str):
    assert damage(text) is None


@pytest.mark.parametrize("text", ["nÃ£o", "Â«olÃ¡Â»", "paÃªs", "disse Â»"])
def test_a_wrong_encoding_is_still_found(text: str):
    assert damage(text)
