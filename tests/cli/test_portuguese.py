"""What a Brazilian who has no English meets: help, a first project, mistakes."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import typer.main

from helpers.command import noesis, speaking
from noesis.cli import app
from noesis.cli.reference.commands import commands

BRAZIL = {"NOESIS_LANG": "", "LC_ALL": "", "LC_MESSAGES": "", "LANG": "pt_BR.UTF-8"}
ENGLISH = re.compile(r"the|of|and|is|are|with|not|from|this|that|it|to|was|be|which|by|an|or|its|has|have|what")
TYPED = re.compile(r"(?<=  )(?:noesis|python|pip|make|modal|export|hf)\b.*?(?=  |$)|`[^`]*`|'[^']*'|\"[^\"]*\"|\S*/\S*")


def english_in(text: str) -> list[str]:
    """Lines that hold an English function word, outside commands, quotes and paths."""
    lines = []
    for line in text.splitlines():
        words = re.findall(r"(?<![\w.-])[A-Za-z]+(?![\w.:-])", TYPED.sub("", line))
        if not line.strip().startswith(("Example: ", "Exemplo: ")) and any(map(ENGLISH.fullmatch, words)):
            lines.append(line)
    return lines


def said(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout + done.stderr


def test_english_is_found_where_it_is():
    assert english_in("run the same command again\nexecute o mesmo comando de novo") == ["run the same command again"]
    assert english_in("veja com  noesis data inspect the_one  e 'in the box'") == []


def test_all_help_is_portuguese():
    with speaking("pt"):
        found = {command.name: command.help for command in commands(typer.main.get_command(app))}
    assert len(found) > 30
    assert {command: lines for command, text in found.items() if (lines := english_in(text))} == {}
    assert all(text.startswith("Uso: ") for text in found.values())


def test_the_first_steps_of_a_brazilian(tmp_path: Path):
    project = tmp_path / "meu-projeto"
    steps = [
        (0, "Edite-os e depois execute:", noesis("init", project, cwd=tmp_path, env=BRAZIL)),
        (0, "6 válidas, 0 erros, 0 avisos", noesis("data", "validate", "--project", project, env=BRAZIL)),
        (0, "1 exemplo", noesis("data", "export", "--project", project, env=BRAZIL)),
        (0, "por quê", noesis("plan", "--project", project, env=BRAZIL)),
        (0, "Comandos:", noesis("--help", env=BRAZIL)),
        (2, "erro: não há execução em", noesis("judge", tmp_path / "nada", env=BRAZIL)),
        (2, "Erro: Opção inexistente: --epoch", noesis("plan", "--epoch", env=BRAZIL)),
        (2, "deve ser um número inteiro", noesis("plan", "--epochs", "x", env=BRAZIL)),
    ]
    for code, expected, done in steps:
        assert (done.returncode, expected in said(done)) == (code, True), said(done)
        assert english_in(said(done)) == [], done.args


@pytest.mark.parametrize(
    ("words", "code", "begins"),
    [
        (["--lang", "pt", "--help"], 0, "Uso: "),
        (["--help", "--lang=pt"], 0, "Uso: "),
        (["plan", "--epochs", "0", "--lang", "pt"], 2, "Uso: "),
        (["--lang", "en", "--help"], 0, "Usage: "),
        (["--help", "--lang", "es"], 2, "error: --lang 'es'"),
        (["--help", "--lang"], 2, "Error: "),
        (["--lang=pt", "--lang=en", "--version"], 0, "noesis "),
    ],
)
def test_lang_stands_before_or_after_the_command(words: list[str], code: int, begins: str):
    done = noesis(*words, env={"NOESIS_LANG": "en"})
    assert (done.returncode, said(done)[: len(begins)]) == (code, begins), said(done)


def test_what_assistants_read_is_english():
    assert noesis("agent-docs", env=BRAZIL).stdout == noesis("agent-docs", env={"NOESIS_LANG": "en"}).stdout


def test_what_programs_read_is_the_same_in_both_languages(project: Path, tmp_path: Path, write_rows, record: dict):
    wrong = write_rows(record | {"prompt": ""}, record | {"values_applied": ["x"]})

    def outputs(env: dict[str, str], name: str) -> list[object]:
        (tmp_path / name).mkdir()
        report, exports = tmp_path / name / "report.json", tmp_path / name / "exports"
        done = [
            noesis("data", "validate", wrong, "--json", report, "--project", project, env=env),
            noesis("data", "export", "--project", project, "--out", exports, "--json", env=env),
            noesis("constitution", "check", "--project", project, "--json", env=env),
            noesis("tribunal", "baselines", "--project", project, "--json", env=env),
        ]
        files = {file.name: file.read_bytes() for file in exports.iterdir()}
        printed = [d.stdout.replace(str(tmp_path / name), "") for d in done[1:]]
        return [[d.returncode for d in done], printed, files, json.loads(report.read_text(encoding="utf-8"))]

    assert outputs({"NOESIS_LANG": "en"}, "english") == outputs(BRAZIL, "portuguese")
