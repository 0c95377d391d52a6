"""The page of `noesis serve --ui` in a headless Chromium: both answers stream in, markup in them stays text, nothing leaves the server."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path

import pytest

from helpers.browser import CHROMIUM, CTRL, browser
from helpers.running_server import KEY, endless, running
from helpers.tiny_gguf import write_reciter
from noesis.serving.page import FILE, load_page
from noesis.serving.protocol import Limits
from noesis.serving.server import ModelFiles

pytestmark = pytest.mark.timing

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
HOSTILE = ["<img src=x", " onerror=document.title='owned'>", "<script>document.title='owned'</script>"]
SAID = ["[ANÁLISE INTERNA]", " a secret ", "[FIM DA ANÁLISE]", "Courage is", " to know", " what to fear."]
READY = "document.documentElement.dataset.state === 'connected'"
TEXT = "document.body.innerText"


class ScriptedJudge:
    name = "a judge"

    async def judge_answer(self, conversation: list[dict[str, str]], answer: str, language: str) -> dict:
        judges = {name: [0.5, 0.5] for name in ("veritas", "sophia", "dike")}
        said_by = [
            {
                "judge": name,
                "model": "m",
                "reasoning": f"weighed {answer[:7]} after {len(conversation)}",
                "unscored": "",
            }
            for name in judges
        ]
        return {
            "judge": "a judge",
            "verdict": "CONDITIONAL",
            "mean": [0.5, 0.6],
            "judges": judges,
            "said": said_by,
            "flags": [],
            "vetoes": [],
        }


@pytest.mark.slow
@needs_chromium
def test_the_page_asks_both_models_and_shows_the_court(tmp_path: Path):
    """By keyboard alone, wide and on a phone, in both languages."""

    async def visit(url: str) -> None:
        async with browser(tmp_path) as tab:
            await tab.size(1280, 900, phone=False)
            await tab.open(f"{url}/#key={KEY}&lang=pt")
            await tab.until(READY)
            assert await tab.evaluate("document.documentElement.lang") == "pt-BR"
            assert await tab.evaluate("document.activeElement.id") == "question"
            await tab.write("O que é a coragem?")
            await tab.press("Enter", CTRL)
            await tab.until(f"{TEXT}.split('CONDITIONAL (0,50–0,60)').length === 3")  # the court on both answers
            text = await tab.evaluate(TEXT)
            assert "O que é a coragem?" in text and "Courage is to know what to fear." in text and "secret" not in text
            assert "".join(HOSTILE) in text and await tab.evaluate("document.title") == "Noesis"  # text, not markup
            assert "O parecer do tribunal" in text and "Dikē 0,50 — weighed Courage after 1" in text
            tops = "[...document.querySelectorAll('.card')].map((c) => c.getBoundingClientRect().top)"
            assert len(set(await tab.evaluate(tops))) == 1  # side by side
            await tab.write("E a justiça?")
            await tab.press("Enter", CTRL)
            await tab.until(f"{TEXT}.includes('after 3')")  # the conversation goes on, each model with its own answers
            await tab.size(390, 844, phone=True)
            assert await tab.evaluate("document.documentElement.scrollWidth") <= 390
            assert len(set(await tab.evaluate(tops))) == 4  # one below the other
            small = "[...document.querySelectorAll('button:not([disabled])')].filter((b) => b.offsetParent && b.getBoundingClientRect().height < 40).length"
            assert await tab.evaluate(small) == 0  # fingers
            assert not tab.said  # no error, no breach of the policy

    files = ModelFiles(write_reciter(tmp_path / "t.gguf", SAID), write_reciter(tmp_path / "b.gguf", HOSTILE))
    with running(files, Limits(parallel=4, context=1024), judge=ScriptedJudge()) as server:
        asyncio.run(visit(server.url))


@pytest.mark.slow
@needs_chromium
def test_keys_stop_and_order_of_focus(tmp_path: Path):
    async def visit(url: str) -> None:
        async with browser(tmp_path) as tab:
            await tab.open(f"{url}/#lang=en")
            await tab.until("document.activeElement.id === 'key'")
            await tab.write("a wrong key of 20 characters")
            await tab.evaluate("document.getElementById('keys').requestSubmit()")
            await tab.until(f"{TEXT}.includes('does not accept this key')")
            await tab.open(f"{url}/#key={KEY}&lang=en")
            await tab.until(READY)
            await tab.evaluate("document.getElementById('language').focus()")
            order = []
            for _ in range(4):
                order.append(await tab.evaluate("document.activeElement.id"))
                await tab.press("Tab")
            assert order == ["language", "question", "send", "reset"]
            await tab.evaluate("document.getElementById('question').focus()")
            await tab.write("Go on")
            await tab.press("Enter", CTRL)
            await tab.until(f"{TEXT}.includes('word12')")
            await tab.press("Escape")
            await tab.until("document.getElementById('state').textContent === 'Stopped.'")
            assert await tab.evaluate("document.getElementById('send').disabled") is False

    with running(endless(tmp_path), Limits(parallel=2, context=60_000, max_tokens=50_000)) as server:
        asyncio.run(visit(server.url))
        end = time.monotonic() + 60
        while server.metric("noesis_in_flight"):
            assert time.monotonic() < end
            time.sleep(0.05)


def test_the_page_needs_nothing_from_elsewhere_and_sets_no_markup():
    html, page = FILE.read_text(encoding="utf-8"), load_page()
    assert not re.search(
        r"https?://|@import|url\(|src=|<link|innerHTML|insertAdjacent|document\.write|eval\(| on[a-z]+=\"|style=\"",
        html,
    )
    assert (
        "'unsafe" not in page.headers["Content-Security-Policy"]
        and "connect-src 'self'" in page.headers["Content-Security-Policy"]
    )
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
