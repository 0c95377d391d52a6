"""`noesis gguf` on a plain model folder, the Modelfile, the model card, and what the stages refuse."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.gguf.ollama_parser import parse_modelfile
from helpers.tiny_tokenizers import STANDINS, write_standin
from noesis.core.errors import ModelError
from noesis.llm.chat_template import render
from noesis.llm.tokenizer import load_tokenizer
from noesis.release.gguf.modelfile import go_template, modelfile, stop_tokens
from noesis.release.gguf.vocabulary import adds_bos
from noesis.release.model_card import (
    CardContent,
    HeldOutFigures,
    JudgeScore,
    display_name,
    llama_release,
    model_card,
)

CARD = CardContent(
    name="noesis-philosopher-v1",
    base="meta-llama/Llama-3.1-8B-Instruct",
    licence="see the model's page",
    noesis="0",
    dataset_sha256="d" * 64,
    constitution_sha256="c" * 64,
    config_sha256="f" * 64,
    base_revision="r",
    held_out=HeldOutFigures(13, 4.0, 3.5, 0.2, 0.5, (0.25, 0.75)),
    reason="no judge is set",
)


@pytest.mark.slow
def test_the_guides_command_finds_the_model_a_level_down(
    tiny_merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from noesis.cli import run_command
    from noesis.release.parity.audit import open_gguf

    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_merged, tmp_path / "noesis_model" / "noesis-philosopher-v1")
    assert run_command(["gguf", "./noesis_model", "--outfile", "noesis.gguf"]) == 0
    assert "one level down" in capsys.readouterr().out
    assert (
        open_gguf(tmp_path / "noesis.gguf").fields["general.file_type"].contents() == 1
    )  # F16, as llama.cpp's converter writes
    certificate = json.loads((tmp_path / "noesis.parity.json").read_text(encoding="utf-8"))
    assert certificate["files"]["f16"]["passed"]
    assert certificate["texts"] == 20

    assert run_command(["gguf", "./noesis_model", "--quant", "f16,q8_0", "--outfile", "x.gguf"]) == 2
    assert run_command(["gguf", "./noesis_model", "--adapter"]) == 2
    assert run_command(["gguf", "./nothing"]) == 2
    shutil.copytree(tiny_merged, tmp_path / "noesis_model" / "another")
    assert run_command(["gguf", "./noesis_model"]) == 2
    (tmp_path / "empty").mkdir()
    assert run_command(["gguf", "./empty"]) == 2
    said = capsys.readouterr().err
    for words in (
        "--outfile names one file",
        "--adapter needs a run",
        "holds several models (another, noesis-philosopher-v1)",
        "no run and no model in empty",
    ):
        assert words in said


@pytest.mark.slow
def test_a_file_outside_its_tolerance_is_put_aside_and_the_command_fails(
    tiny_merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    import noesis.release.gguf.writer as gguf
    from noesis.cli import run_command

    monkeypatch.setattr(gguf, "permuted", lambda name, array, config: array)
    assert run_command(["gguf", str(tiny_merged), "--outfile", str(tmp_path / "noesis.gguf")]) == 1
    assert re.search(
        r"broken by the stage conversion: the rows of query and key .*noesis.parity.json", capsys.readouterr().err
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["noesis.parity.json", "noesis.rejected.gguf"]


def as_ollama(template: str, turns: list[tuple[str, str]], system: str) -> str:
    """What Ollama makes of a template with .System, .Prompt and .Response: a turn after another, the system prompt in the first."""
    text = ""
    for i, (prompt, response) in enumerate(turns):
        part = re.sub(
            r"{{ if \.System }}(.*?)(?:{{ else }}(.*?))?{{ end }}",
            lambda m, i=i: m[1] if system and i == 0 else m[2] or "",
            template,
            flags=re.S,
        )
        before, _, after = (
            part.replace("{{ .System }}", system).replace("{{ .Prompt }}", prompt).partition("{{ .Response }}")
        )
        text += before + (response + after if response else "")
    return text


@pytest.mark.parametrize("name", ["smollm2", "qwen2.5", "llama-3.1", "mistral-0.2", "gemma-2", "gemma-3", "phi-3"])
def test_ollamas_template_says_what_the_models_own_does(name: str, tmp_path: Path):
    tokenizer = load_tokenizer(write_standin(tmp_path, name))
    template, bos = go_template(tokenizer), tokenizer.special["bos_token"] if adds_bos(tokenizer) else ""
    conversation = [{"role": "system", "content": "Diga a verdade."}, {"role": "user", "content": "O que é o bem?"}]
    ours = render(tokenizer, conversation, add_generation_prompt=True)
    assert as_ollama(template, [("O que é o bem?", "")], "Diga a verdade.") == ours.removeprefix(bos)
    longer = [*conversation, {"role": "assistant", "content": "Ninguém sabe."}, {"role": "user", "content": "E o mal?"}]
    ours = render(tokenizer, longer, add_generation_prompt=True)
    said = " Ninguém sabe." if name.startswith("mistral") else "Ninguém sabe."  # Mistral's model says the space itself
    theirs = as_ollama(template, [("O que é o bem?", said), ("E o mal?", "")], "Diga a verdade.")
    assert theirs == ours.removeprefix(bos)
    assert stop_tokens(tokenizer)[0] == STANDINS[name][4]


def test_a_modelfile_holds_what_ollama_needs(tmp_path: Path):
    text = modelfile(
        "m-q8_0.gguf",
        load_tokenizer(write_standin(tmp_path, "smollm2")),
        system='Diga """a verdade""".',
        context=8192,
        licence="Apache-2.0",
    )
    assert text.startswith('FROM ./m-q8_0.gguf\nTEMPLATE """')
    assert "SYSTEM \"\"\"Diga '''a verdade'''.\"\"\"" in text
    for line in ("PARAMETER num_ctx 8192", 'PARAMETER stop "<|im_end|>"', 'LICENSE """Apache-2.0"""'):
        assert line in text.splitlines()


@pytest.mark.parametrize("name", STANDINS)
def test_ollamas_parser_reads_what_was_written(name: str, tmp_path: Path):
    """A quotation mark, a backslash and a no-break space in the prompt: the parser knows no escapes, and drops the last."""
    tokenizer = load_tokenizer(write_standin(tmp_path, name))
    system = 'Diga "a\\verdade".\n\nSempre:\u00a0"sim"'
    text = modelfile("m v1-q8_0.gguf", tokenizer, system=system, context=8192, licence="Apache-2.0")
    found = parse_modelfile(text)
    assert found[:4] == [
        ("from", "./m v1-q8_0.gguf"),
        ("template", go_template(tokenizer)),
        ("system", system.replace("\u00a0", " ")),
        ("parameter num_ctx", "8192"),
    ]
    assert [value for key, value in found if key == "parameter stop"] == stop_tokens(tokenizer)
    assert found[-1] == ("license", "Apache-2.0")


def test_a_template_of_which_ollama_would_drop_a_part_has_no_modelfile(tmp_path: Path):
    template = "{% for m in messages %}{{ m['role'] }}\u00a0{{ m['content'] }}<|im_end|>{% endfor %}"
    tokenizer = load_tokenizer(write_standin(tmp_path, "smollm2", template=template))
    with pytest.raises(ModelError, match="Ollama drops"):
        modelfile("m.gguf", tokenizer, system="x", context=1)


def test_a_template_that_drops_a_message_has_no_modelfile(tmp_path: Path):
    tokenizer = load_tokenizer(
        write_standin(tmp_path, "smollm2", template="{% for m in messages %}{{ m['role'] }}{% endfor %}")
    )
    with pytest.raises(ModelError, match="moves or drops a message"):
        go_template(tokenizer)


def test_a_llamas_card_carries_its_name_and_notice():
    card = model_card(CARD)
    assert "# Llama-noesis-philosopher-v1" in card
    assert "Built with Llama." in card
    assert (
        "Llama 3.1 is licensed under the Llama 3.1 Community License, Copyright © Meta Platforms, Inc. All Rights Reserved."
        in card
    )
    assert "license: llama3.1" in card
    assert "| preference accuracy | 0.20 → 0.50 [0.25, 0.75] on 13 held-out examples |" in card
    assert "UNDECIDED: no judge is set" in card
    other = model_card(replace(CARD, name="noesis", base="smollm2", licence="Apache-2.0"))
    assert "Llama" not in other
    assert "license: apache-2.0" in other
    assert (llama_release("unsloth/Llama-3.2-1B"), llama_release("Qwen/Qwen2.5-7B")) == ("Llama 3.2", None)
    assert display_name("Llama-x", "Llama 3.1") == "Llama-x"
    named = {
        "Meta Llama 3.1 8B Instruct": "Llama 3.1",
        "open_llama_3b": None,
        "CodeLlama-34b": None,
        "Llama-2-7b": "Llama 2",
    }
    assert {name: llama_release(name) for name in named} == named
    assert llama_release("Hermes 3", "llama3") == llama_release("Hermes", "", "made from Llama-3-8B") == "Llama 3"
    file = model_card(
        replace(CARD, base="Some Name", licence="gemma https://x.org", lineage="dequantised from a|b.gguf")
    )
    assert "license: gemma\n" in file
    assert r"| base weights | dequantised from a\|b.gguf |" in file


def test_a_trials_intervals_are_on_the_card():
    scores = tuple(JudgeScore(name, 0.71, (0.62, 0.8)) for name in ("weighted mean", "Dikē"))
    reason = "the interval reaches below 0.7"
    card = model_card(replace(CARD, verdict="CONDITIONAL", reason=reason, scores=scores))
    assert "CONDITIONAL: the interval reaches below 0.7" in card
    assert "| weighted mean | 0.710 [0.620, 0.800] |" in card
    assert "| Dikē | 0.710 [0.620, 0.800] |" in card
