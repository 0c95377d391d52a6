"""Messages in the language that is spoken, numbers as it writes them, and English for every file."""

from __future__ import annotations

import copy
import json
import pickle
import time
from pathlib import Path

import pytest

from helpers.command import speaking
from noesis.core.console import duration, size
from noesis.core.errors import UsageError
from noesis.core.files import read_text, sha256_json, write_json
from noesis.core.i18n import N_, Message, _, in_english, joined, ngettext, number, retold, spoken
from noesis.core.i18n.speech import preferred


@pytest.mark.parametrize(
    ("environment", "code"),
    [
        ({}, "en"),
        ({"LANG": "pt_BR.UTF-8"}, "pt"),
        ({"LANG": "pt_PT"}, "pt"),
        ({"LANG": "pt"}, "pt"),
        ({"LANG": "PT-br"}, "pt"),
        ({"LANG": "C"}, "en"),
        ({"LANG": "POSIX"}, "en"),
        ({"LANG": "C.UTF-8"}, "en"),
        ({"LANG": "ptolemaic"}, "en"),
        ({"LANG": "../../etc/passwd"}, "en"),
        ({"LANG": "es_ES.UTF-8"}, "en"),
        ({"LANG": "pt_BR.UTF-8", "LC_ALL": "C"}, "en"),
        ({"LANG": "C", "LC_MESSAGES": "pt_BR"}, "pt"),
        ({"LANG": "pt_BR", "LC_MESSAGES": ""}, "pt"),
        ({"LANG": "pt_BR", "NOESIS_LANG": "en"}, "en"),
        ({"LANG": "C", "LC_ALL": "C", "NOESIS_LANG": "pt"}, "pt"),
        ({"LANG": "pt_BR", "NOESIS_LANG": "\x1b[31m"}, "en"),
    ],
)
def test_the_first_variable_that_is_set_decides(environment: dict[str, str], code: str):
    assert preferred(environment) == code


def test_numbers_and_plurals_are_written_as_the_language_writes_them():
    def said() -> list[str]:
        return [
            ngettext("{count:,} example", "{count:,} examples", 4087),
            ngettext("{count:,} example", "{count:,} examples", 1),
            number(0.7, ".2f"),
            number(1234567.5, ",.1f"),
            duration(8.44),
            size(1.44e9),
            _("{usd:.2f} USD", usd=1234.5),
        ]

    with speaking("en"):
        assert said() == ["4,087 examples", "1 example", "0.70", "1,234,567.5", "8.4 s", "1.4 GB", "1234.50 USD"]
    with speaking("pt"):
        assert said() == ["4.087 exemplos", "1 exemplo", "0,70", "1.234.567,5", "8,4 s", "1,4 GB", "US$ 1234,50"]


def test_values_are_never_read_as_templates_and_numbers_in_names_stay():
    with speaking("pt"):
        assert _("unknown field {name!r}", name="{0.__class__} 1,5") == "campo desconhecido '{0.__class__} 1,5'"


def test_every_file_is_written_in_english(tmp_path: Path):
    with speaking("pt"):
        inner = _("no errors")
        outer = UsageError(_("{what}: {remedy}", what=inner, remedy="x"), inner)
        record = {"why": str(outer), "parts": [inner, (inner,)], "n": 1, "joined": joined("; ", [inner, "y"])}
        write_json(tmp_path / "record.json", record)
        hashed = sha256_json(record)
        assert str(outer) == "nenhum erro: x\n  nenhum erro"
        assert f"{N_('no errors')}, {N_('{answers} first', answers=inner)}" == "no errors, no errors first"
    stored = json.loads(read_text(tmp_path / "record.json"))
    assert stored == {
        "why": "no errors: x\n  no errors",
        "parts": ["no errors", ["no errors"]],
        "n": 1,
        "joined": "no errors; y",
    }
    assert hashed == sha256_json(stored)


def test_a_message_keeps_its_english_when_it_is_copied():
    message = Message("perda", "loss")
    copies = (copy.deepcopy(message), copy.copy(message), pickle.loads(pickle.dumps(message)), str(message))
    assert all(isinstance(found, Message) and (found, found.english) == ("perda", "loss") for found in copies)


def test_what_a_record_says_is_told_again():
    with speaking("pt"):
        assert retold("no errors") == "nenhum erro"
        assert retold("3 examples") == "3 exemplos"
        assert retold("epoch_1 is used, the only one left on 4 held-out examples") == (
            "usa-se epoch_1, a única que resta em 4 exemplos de validação"
        )
        assert retold("no judge is set; all match") == "não há juiz definido; todas conferem"
        assert retold("mean 0.700 [0.600, 0.800]") == "média 0,700 [0,600, 0,800]"
        assert retold("1 loses 0.0100 [0.0000, 0.0200] of the 24 keyed items, within 0.05") == (
            "1 perde 0,0100 [0,0000, 0,0200] dos 24 itens com gabarito, dentro de 0,05"
        )
        assert retold(
            "1 loses 0.1250 [-0.0417, 0.3333] of the 24 keyed items, above 0.05 but not beyond chance; 1.25 does not "
            "help beyond chance (margin 0.1159 [0.0973, 0.1404] higher, held-out loss 0.0172 [0.0084, 0.0265] higher)"
        ) == (
            "1 perde 0,1250 [-0,0417, 0,3333] dos 24 itens com gabarito, acima de 0,05 mas não além do acaso; 1,25 não "
            "ajuda além do acaso (margem 0,1159 [0,0973, 0,1404] maior, perda na validação 0,0172 [0,0084, 0,0265] maior)"
        )
        assert retold(
            "epoch_1 is out: its held-out loss is 0.0291 [0.0163, 0.0432] above that of epoch_0; "
            "epoch_0 is used, the only one left on 13 held-out examples (no judge is set)"
        ) == (
            "epoch_1 sai: a perda na validação é 0,0291 [0,0163, 0,0432] maior que a de epoch_0; "
            "usa-se epoch_0, a única que resta em 13 exemplos de validação (não há juiz definido)"
        )
        assert retold("the weather in Olinda") == "the weather in Olinda"
        assert retold(retold("no errors")) == "nenhum erro"
    with speaking("en"):
        assert retold("no errors") == "no errors"


def test_braces_that_stand_for_themselves_are_no_fields():
    comment = "USD a million tokens, for --max-usd: {a-model: {prompt: 0.15, completion: 0.60}}"
    with speaking("pt"):
        assert retold(comment) == _(comment) != comment
        assert retold("USD a million tokens, for --max-usd: mine") == "USD a million tokens, for --max-usd: mine"


def test_a_hostile_text_is_soon_given_up():
    with speaking("pt"):
        began = time.monotonic()
        for text in ("a; " * 1300, "(" * 4000, " (x" * 1300 + ")", "x " * 2000, "; ".join(["error: " * 40] * 12)):
            retold(text)
        assert time.monotonic() - began < 5


def test_the_language_is_asked_of_the_environment_once():
    with speaking(LANG="pt_BR.UTF-8", LC_ALL=""):
        assert (spoken(), in_english(_("all match"))) == ("pt", "all match")
