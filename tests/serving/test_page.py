"""The page of `noesis serve --ui` in a headless Chromium: what a person does there, and what a hostile answer can't."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.browser import CHROMIUM, CTRL, SHIFT, Tab, browser
from helpers.running_server import KEY, endless, reciters, running
from helpers.tiny_gguf import write_reciter, write_switch
from noesis.constitution.document import SystemPrompt
from noesis.core.project import Project
from noesis.pipeline.served.page_examples import PageExamples
from noesis.serving.protocol import Limits
from noesis.serving.server import ModelFiles
from noesis.workspace.new_project import create_project

pytestmark = [
    pytest.mark.timing,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here"),
]
HOSTILE = ["<img src=x", " onerror=document.title='owned'>", "<script>document.title='owned'</script>"]
MARKDOWN = ["[ANÁLISE INTERNA]", " a secret ", "[FIM DA ANÁLISE]", "**Courage** is", " to know", " what to fear."]
READY = "document.documentElement.dataset.state === 'connected'"
IDLE = "document.getElementById('stop').hidden"
TEXT = "document.body.innerText"
ROOMY = Limits(parallel=4, context=1024)
ENDLESS = Limits(parallel=2, context=60_000, max_tokens=50_000)


class ScriptedJudge:
    name = "a judge"

    async def judge_answer(self, conversation: list[dict[str, str]], answer: str, language: str) -> dict:
        judges = {name: [0.5, 0.5] for name in ("veritas", "sophia", "dike")}
        weighed = f"weighed {answer[:11]} after {len(conversation)}"
        said = [{"judge": name, "model": "m", "reasoning": weighed, "unscored": ""} for name in judges]
        found = {"judge": "a judge", "verdict": "CONDITIONAL", "mean": [0.5, 0.6], "judges": judges, "said": said}
        return found | {"flags": [], "vetoes": []}


def visit(url: str, folder: Path, what, at: str = f"key={KEY}&lang=pt") -> None:
    async def run() -> None:
        async with browser(folder) as tab:
            await tab.open(f"{url}/#{at}")
            if "key=" in at:
                await tab.until(READY)
            await what(tab)
            assert not tab.said  # no error, no breach of the policy

    asyncio.run(run())


async def ask(tab: Tab, question: str) -> None:
    await tab.evaluate("document.getElementById('question').focus()")
    await tab.write(question)
    await tab.press("Enter")


async def click(tab: Tab, label: str) -> None:
    await tab.evaluate(f"[...document.querySelectorAll('button')].find((b) => b.textContent === {label!r}).click()")


def test_both_models_answer_and_the_court_speaks(tmp_path: Path):
    """By keyboard alone, wide and on a phone."""

    async def what(tab: Tab) -> None:
        await tab.size(1280, 900, phone=False)
        assert await tab.evaluate("document.documentElement.lang") == "pt-BR"
        assert await tab.evaluate("document.activeElement.id") == "question"
        await tab.write("O que é")
        await tab.press("Enter", SHIFT)
        await tab.write("a coragem?")
        await tab.press("Enter")
        await tab.until(f"{TEXT}.split('CONDICIONAL (0,50–0,60)').length === 3")  # the court on both answers
        text = await tab.evaluate(TEXT)
        assert "O que é\na coragem?" in text and "Courage is to know what to fear." in text and "secret" not in text
        assert await tab.evaluate("document.querySelector('.answer strong').textContent") == "Courage"
        assert "".join(HOSTILE) in text and await tab.evaluate("document.title") == "Noesis"  # text, not markup
        assert "O parecer do Tribunal" in text and "Dikē 0,50 — weighed **Courage** after 1" in text
        assert "tokens/s" in text
        tops = "[...document.querySelectorAll('.card')].map((c) => c.getBoundingClientRect().top)"
        assert len(set(await tab.evaluate(tops))) == 1  # side by side
        await tab.until(IDLE)
        await ask(tab, "E a justiça?")
        await tab.until(f"{TEXT}.includes('after 3')")  # the conversation goes on, each model with its own answers
        await tab.until(IDLE)
        await tab.size(390, 844, phone=True)
        assert await tab.evaluate("document.documentElement.scrollWidth") <= 390
        assert len(set(await tab.evaluate(tops))) == 4  # one below the other
        small = "[...document.querySelectorAll('button')].filter((b) => b.offsetParent && b.getBoundingClientRect().height < 40).length"
        assert await tab.evaluate(small) == 0  # fingers

    files = ModelFiles(write_reciter(tmp_path / "t.gguf", MARKDOWN), write_reciter(tmp_path / "b.gguf", HOSTILE))
    with running(files, ROOMY, judge=ScriptedJudge()) as server:
        visit(server.url, tmp_path, what)


def test_a_project_of_another_name_and_language_has_a_page_of_its_own(tmp_path: Path):
    async def what(tab: Tab) -> None:
        assert await tab.evaluate("document.querySelector('h1').textContent") == "Biblioteca"
        languages = "[...document.getElementById('systemLanguage').options].map((o) => o.value + o.textContent).join()"
        assert await tab.evaluate(languages) == "esespañol"
        await ask(tab, "¿Qué es la valentía?")
        await tab.until(f"{IDLE} && {TEXT}.split('CONDICIONAL').length === 3")  # asked in the prompt's language
        text = await tab.evaluate(TEXT)
        assert "Biblioteca (ajustado)" in text and "Noesis" not in text
        assert await tab.evaluate("page.conversation.language") == "es"

    spanish = SystemPrompt.model_validate({"es": "Eres Biblioteca."})
    with running(reciters(tmp_path), ROOMY, judge=ScriptedJudge(), system=spanish, name="Biblioteca") as server:
        visit(server.url, tmp_path, what)


def test_a_reload_keeps_the_conversation_its_settings_and_the_page_s_language(tmp_path: Path):
    async def what(tab: Tab) -> None:
        await tab.call("Emulation.setUserAgentOverride", userAgent="a browser", acceptLanguage="pt-BR")
        await tab.call("Page.reload")
        await tab.until(f"{READY} && document.documentElement.lang === 'pt-BR'")  # whatever the run's language
        await tab.evaluate("document.getElementById('system').value = 'Seja breve.'")
        await tab.evaluate("document.getElementById('temperature').value = 0")
        await tab.evaluate("document.getElementById('system').dispatchEvent(new Event('change', { bubbles: true }))")
        await ask(tab, "O que é a coragem?")
        await tab.until(f"{IDLE} && {TEXT}.includes('Resposta completa') || {TEXT}.includes('estão completas')")
        await click(tab, "English")
        sent = "JSON.stringify(messagesFor(page.conversation, 0, 'noesis'))"
        messages = await tab.evaluate(sent)
        await tab.call("Page.reload")
        await tab.until(f"{READY} && {TEXT}.includes('Courage is knowledge.')")
        assert await tab.evaluate("document.documentElement.lang") == "en" and "Answer again" in await tab.evaluate(
            TEXT
        )
        assert await tab.evaluate(sent) == messages and "Seja breve." in messages  # the page's language is only its own
        assert await tab.evaluate("page.conversation.language + page.conversation.temperature") == "en0"
        await click(tab, "Answer again")
        await tab.until(f"{IDLE} && {TEXT}.includes('The answer is complete.')")
        assert await tab.evaluate("page.conversation.turns.length") == 1
        exported = await tab.evaluate("exported(page.conversation, page.about.models, page.t)")
        assert exported.startswith(
            "# Noesis\n\n## System prompt\n\nSeja breve.\n\n## You\n\nO que é a coragem?\n\n### Noesis (tuned)"
        )
        await click(tab, "New conversation")
        await tab.call("Page.reload")
        await tab.until(READY)
        assert await tab.evaluate("page.conversation.turns.length") == 0
        await tab.evaluate("localStorage.setItem('noesis.conversation', '{\"turns\": [{\"question\": 3}]}')")
        await tab.call("Page.reload")  # what another program left there
        await tab.until(f"{READY} && page.conversation.turns.length === 0")

    with running(reciters(tmp_path), ROOMY) as server:
        visit(server.url, tmp_path, what, f"key={KEY}")


def test_keys_stop_and_order_of_focus(tmp_path: Path):
    async def what(tab: Tab) -> None:
        await tab.until("document.activeElement.id === 'key'")
        await tab.write("a wrong key of 20 characters")
        await tab.evaluate("document.getElementById('keys').requestSubmit()")
        await tab.until(f"{TEXT}.includes('does not accept this key')")
        await tab.evaluate(f"document.getElementById('key').value = '{KEY}'")
        await tab.evaluate("document.getElementById('keys').requestSubmit()")
        await tab.until(READY)
        tab.said.clear()  # Chromium logs the refusal
        await tab.evaluate("document.getElementById('reset').focus()")
        order = []
        for _ in range(5):
            order.append(await tab.evaluate("document.activeElement.id || document.activeElement.tagName"))
            await tab.press("Tab")
        assert order == ["reset", "export", "language", "SUMMARY", "question"]
        await tab.size(390, 600, phone=True)
        await tab.evaluate("document.getElementById('question').focus()")
        await tab.write("Go on")
        await tab.press("Enter", CTRL)
        await tab.until(f"{TEXT}.split('word12').length > 5")  # longer than the screen
        await tab.evaluate("window.scrollTo(0, 300)")
        stop = "document.getElementById('stop').getBoundingClientRect()"
        assert await tab.evaluate(f"{stop}.height >= 40 && {stop}.top >= 0 && {stop}.bottom <= innerHeight")
        await tab.press("Escape")
        await tab.until("document.getElementById('state').textContent === 'Stopped.'")
        await tab.until(IDLE)
        assert await tab.evaluate("page.conversation.turns[0].answers.noesis.text.includes('word12')")

    with running(endless(tmp_path), ENDLESS) as server:
        visit(server.url, tmp_path, what, "lang=en")
        end = time.monotonic() + 60
        while server.metric("noesis_in_flight"):
            assert time.monotonic() < end
            time.sleep(0.05)


def test_nothing_is_lost_when_the_server_stops_in_mid_answer(tmp_path: Path):
    async def what(tab: Tab) -> None:
        await ask(tab, "Continue")
        await tab.until(f"{TEXT}.includes('word12')")
        server.stop()  # at once, as a second Ctrl-C does
        await tab.until(f"{TEXT}.includes('O servidor parou no meio da resposta')")
        await tab.until(IDLE)
        await ask(tab, "Ainda está aí?")
        await tab.until(f"{IDLE} && {TEXT}.includes('o noesis serve ainda está rodando?')")
        text = await tab.evaluate(TEXT)
        assert "word12" in text and "Ainda está aí?" in text and "Tentar de novo" in text
        kept = json.loads(await tab.evaluate("localStorage.getItem('noesis.conversation')"))
        assert [turn["question"] for turn in kept["turns"]] == ["Continue", "Ainda está aí?"]
        tab.said.clear()  # Chromium logs refused connections

    with running(endless(tmp_path), replace(ENDLESS, grace_s=0.1)) as server:
        visit(server.url, tmp_path, what)


def test_an_answer_becomes_an_example_of_the_project(tmp_path: Path):
    create_project(tmp_path / "project")
    project = Project(tmp_path / "project")

    async def what(tab: Tab) -> None:
        await tab.size(390, 844, phone=True)
        await tab.evaluate("document.getElementById('question').focus()")
        await tab.write("O que é a coragem?")
        await click(tab, "Perguntar")
        await tab.until(f"{IDLE} && {TEXT}.includes('estão completas')")
        await click(tab, "Salvar como exemplo")
        assert await tab.evaluate("document.getElementById('initial').value") == "Courage is knowledge."
        fill = "document.getElementById('{}').value = {!r}"
        revised = "Coragem é saber o que se deve temer, e agir bem apesar do medo: nem covardia, nem temeridade."
        for name, text in {"critique": "Reduz a coragem a saber.", "revised": revised, "category": "maieutica"}.items():
            await tab.evaluate(fill.format(name, text))
        await click(tab, "Salvar")
        await tab.until(f"{TEXT}.includes('Escolha pelo menos um valor.')")
        await tab.evaluate("document.querySelector('#values input').click()")
        await click(tab, "Salvar")
        await tab.until("document.getElementById('state').textContent.startsWith('Salvo em')")

    with running(reciters(tmp_path), ROOMY, examples=PageExamples(project)) as server:
        visit(server.url, tmp_path, what)
    (row,) = (
        (tmp_path / "project/data/training/philosophical/from_page.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    )
    assert json.loads(row)["response_initial"] == "Courage is knowledge." and json.loads(row)["language"] == "pt"


def test_the_slider_changes_the_strength_from_the_next_answer_on_and_is_kept(tmp_path: Path):
    plain, tuned = ["plain", " words"], ["tuned", " speech"]
    base = write_reciter(tmp_path / "base.gguf", plain, other=tuned)
    files = ModelFiles(None, base, write_switch(tmp_path / "adapter.gguf", plain, tuned))

    async def what(tab: Tab) -> None:
        await tab.evaluate("document.getElementById('settings').open = true")
        assert "Força do ajuste" in await tab.evaluate(TEXT)
        await tab.evaluate("document.getElementById('question').focus()")
        await tab.write("Olá")
        await click(tab, "Perguntar")
        await tab.until(f"{IDLE} && {TEXT}.includes('tuned speech')")
        slider = "document.getElementById('strength')"
        await tab.evaluate(f"{slider}.value = 10; {slider}.dispatchEvent(new Event('change', {{bubbles: true}}))")
        assert await tab.evaluate("document.getElementById('chosenStrength').value") == "10%"
        await click(tab, "Responder de novo")
        await tab.until(f"{IDLE} && !{TEXT}.includes('tuned speech') && {TEXT}.includes('plain words')")
        assert json.loads(await tab.evaluate("localStorage.getItem('noesis.conversation')"))["strength"] == 0.1

    with running(files, ROOMY) as server:
        visit(server.url, tmp_path, what)
    with running(reciters(tmp_path), ROOMY) as server:  # nothing to scale: no slider

        async def hidden(tab: Tab) -> None:
            assert await tab.evaluate("document.getElementById('strengthField').hidden")

        visit(server.url, tmp_path, hidden)


MARKDOWN_CASES = {
    "**b** *i* `c*d*` 2 * 3 * 4 snake_case_name": "<p><strong>b</strong> <em>i</em> <code>c*d*</code> 2 * 3 * 4 snake_case_name</p>",
    "***both*** and *a **b** c* and **open": "<p><strong><em>both</em></strong> and <em>a <strong>b</strong> c</em> and **open</p>",
    "# T\ntext\n\n- a\n- b\n  1. c\n\nend": "<h5>T</h5><p>text</p><ul><li>a</li><li>b<ol><li>c</li></ol></li></ul><p>end</p>",
    "3. three\n4. four": '<ol start="3"><li>three</li><li>four</li></ol>',
    "> quoted\n---\n```py\n<b>&\n": '<blockquote>quoted</blockquote><hr><pre tabindex="0"><code>&lt;b&gt;&amp;\n</code></pre>',
    "a | b\n--|--\n1 | *2*": '<div class="table" tabindex="0"><table><tr><th scope="col">a</th><th scope="col">b</th></tr><tr><td>1</td><td><em>2</em></td></tr></table></div>',
    "[x](javascript:alert(1)) ![y](https://evil.example/z.png)": "<p>[x](javascript:alert(1)) ![y](https://evil.example/z.png)</p>",
}


def test_markdown_becomes_elements_and_nothing_else(tmp_path: Path):
    async def what(tab: Tab) -> None:
        for text, html in MARKDOWN_CASES.items():
            assert await tab.evaluate(f"markdown({json.dumps(text)}).map((node) => node.outerHTML).join('')") == html
        for evil in ("*a ", "**a *b ", "`", "*", "|-", "- ", "> ", "***a* ", "#", "```\n", "*a** **b* "):
            repeated = f"{json.dumps(evil)}.repeat(100_000)"
            assert await tab.evaluate(f"markdown({repeated}).length") > 0  # in time: each sign is looked at a few times

    with running(reciters(tmp_path), ROOMY) as server:
        visit(server.url, tmp_path, what)
