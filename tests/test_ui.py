"""The page of `noesis serve --ui` in a headless Chromium: both answers stream in, markup in them stays text, nothing leaves the server."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from noesis.serve.app import Court
from noesis.serve.page import FILE, load_page
from noesis.serve.protocol import Limits
from noesis.serve.server import Files
from running_server import KEY, running
from tiny_gguf import write_reciter

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--lang=en",
]  # fmt: skip
HOSTILE = ["<img src=x", " onerror=document.title='owned'>", "<script>document.title='owned'</script>"]
SAID = ["[ANÁLISE INTERNA]", " a secret ", "[FIM DA ANÁLISE]", "Courage is", " to know", " what to fear."]


async def hear(said: list[dict[str, str]], answer: str, language: str) -> dict:
    judges = {name: [0.5, 0.5] for name in ("veritas", "sophia", "dike")}
    said_by = [{"judge": name, "model": "m", "reasoning": f"weighed {answer[:7]}", "unscored": ""} for name in judges]
    return {"judge": "a judge", "verdict": "CONDITIONAL", "mean": [0.5, 0.6], "judges": judges, "said": said_by, "flags": [], "vetoes": []}


def browse(folder: Path, url: str, *more: str) -> str:
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=8000", "--timeout=20000", *more, url]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=True).stdout


def text_of(dom: str, pattern: str) -> list[str]:
    return re.findall(pattern, re.sub(r"<script>.*?</script>", "", dom, flags=re.DOTALL), re.DOTALL)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_the_page_asks_both_models_and_shows_the_court(tmp_path: Path):
    files = Files(write_reciter(tmp_path / "t.gguf", SAID), write_reciter(tmp_path / "b.gguf", HOSTILE))
    with running(files, Limits(parallel=4, context=1024), court=Court("a judge", hear)) as server:
        dom = browse(tmp_path, f"{server.url}/#key={KEY}&lang=pt&ask=O%20que%20%C3%A9%20a%20coragem%3F", "--dump-dom")
        wrong = browse(tmp_path, f"{server.url}/#key=wrong-key-wrong-key&lang=en", "--dump-dom")
    answers = text_of(dom, r'<p class="answer">(.*?)</p>')
    assert "Courage is to know what to fear." in answers and not text_of(dom, "secret")
    assert any(a.startswith("&lt;img src=x onerror") for a in answers) and "<title>Noesis</title>" in dom  # text, not markup
    assert '<html lang="pt-BR"' in dom and text_of(dom, "O parecer do tribunal") and text_of(dom, r"CONDITIONAL \(0.50–0.60\)")
    assert text_of(dom, r'<p class="said">O que é a coragem\?</p>')
    assert "The server does not accept this key." in wrong and not text_of(wrong, r'<form id="keys" hidden')


def test_the_page_needs_nothing_from_elsewhere_and_sets_no_markup():
    html, page = FILE.read_text(encoding="utf-8"), load_page()
    assert not re.search(r"https?://|@import|url\(|src=|<link|innerHTML|insertAdjacent|document\.write|eval\(| on[a-z]+=\"|style=\"", html)
    assert "'unsafe" not in page.headers["Content-Security-Policy"] and "connect-src 'self'" in page.headers["Content-Security-Policy"]
    words = re.search(r"const WORDS = \{\n  en: \{(.*?)\n  \},\n  pt: \{(.*?)\n  \},", html, re.DOTALL)
    names = [set(re.findall(r"(\w+): \"", part)) for part in words.groups()]
    used = set(re.findall(r'data-t="(\w+)"', html)) | set(re.findall(r'\bt\("(\w+)"\)', html))
    assert names[0] == names[1] and used <= names[0]


@pytest.mark.parametrize("name", ["label", "main", "h1"])
def test_the_page_can_be_used_without_seeing_or_pointing(name: str):
    html = FILE.read_text(encoding="utf-8")
    assert f"<{name}" in html
    fields = re.findall(r'<(?:input|textarea) id="(\w+)"', html)
    assert fields and all(f'<label for="{field}"' in html for field in fields)
    assert not re.findall(r"<(?:div|span|p)[^>]*(?:onclick|tabindex)", html)
