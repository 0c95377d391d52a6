"""Attacks on the hidden analysis: however its marks are written, and however an answer is cut, nothing of it is shown."""

from __future__ import annotations

import sys
import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noesis.constitution.analysis_block import BRACKETS, AnalysisFilter, hide_analysis
from noesis.serving.analysis_filter import TokenFilter, ends_inside_analysis

SECRET = "segredo"
OPENINGS = [
    pytest.param("[ANÁLISE INTERNA]", id="as trained"),
    pytest.param("[ANÁLISE  INTERNA]", id="two spaces"),
    pytest.param("[ANÁLISE\u00a0INTERNA]", id="a space that does not break"),
    pytest.param("[ANÁLISE\u2009\u202f\u3000INTERNA]", id="thin and wide spaces"),
    pytest.param("[ANÁLISE\nINTERNA]", id="a line break inside"),
    pytest.param("[ANÁLISE\r\n\t INTERNA]", id="a carriage return and a tab inside"),
    pytest.param("[ ANÁLISE INTERNA ]", id="spaces within the brackets"),
    pytest.param("[\nANÁLISE INTERNA\n]", id="line breaks within the brackets"),
    pytest.param("[ANÁLISEINTERNA]", id="no space"),
    pytest.param("[A N Á L I S E  I N T E R N A]", id="spaced letters"),
    pytest.param("[análise interna]", id="lower case"),
    pytest.param("[Análise Interna]", id="title case"),
    pytest.param("[ANALISE INTERNA]", id="no accent"),
    pytest.param("[ANÀLISE INTERNA]", id="another accent"),
    pytest.param(unicodedata.normalize("NFD", "[ANÁLISE INTERNA]"), id="the accent apart (NFD)"),
    pytest.param("[A\u0301\u0301\u0301NA\u0301LISE INTERNA]", id="accents on accents"),
    pytest.param("[AN\u200bÁLISE\u200d INTER\u00adNA]", id="invisible characters inside"),
    pytest.param("[\ufeffANÁLISE INTERNA\u2060]", id="invisible characters at the brackets"),
    pytest.param("[\u202eANÁLISE INTERNA\u202c]", id="marks of writing direction"),
    pytest.param("［ＡＮÁＬＩＳＥ　ＩＮＴＥＲＮＡ］", id="full-width letters"),
    pytest.param("[𝐀𝐍Á𝐋𝐈𝐒𝐄 𝐈𝐍𝐓𝐄𝐑𝐍𝐀]", id="bold letters of mathematics"),
    pytest.param("[[ANÁLISE INTERNA]", id="two brackets"),
    pytest.param("[ANÁLISE [ANÁLISE INTERNA]", id="a mark begun twice"),
    pytest.param("[INTERNAL ANALYSIS]", id="in English"),
    pytest.param("[Internal  analysis]", id="in English, lower case and two spaces"),
    pytest.param("[ANÁLISE-INTERNA]", id="a hyphen"),
    pytest.param("[ANÁLISE_INTERNA]", id="an underscore"),
    pytest.param("[ANÁLISE – INTERNA:]", id="a dash and a colon"),
    pytest.param("[**ANÁLISE INTERNA**]", id="bold type of Markdown"),
    pytest.param("[🔍 ANÁLISE INTERNA]", id="an emoji"),
    pytest.param("[АNÁLISE INTERNA]", id="a Cyrillic letter"),
    pytest.param("[АΝАLІЅЕ ІΝТЕRΝА]", id="Cyrillic and Greek letters"),
    pytest.param("[αναlιse ιντεrνα]", id="small Greek letters"),
    pytest.param("[ᴀɴᴀʟɪꜱᴇ ɪɴᴛᴇʀɴᴀ]", id="small capitals"),
    pytest.param("[ꓮꓠꓮꓡꓲꓢꓰ ꓲꓠꓔꓰꓣꓠꓮ]", id="Lisu letters"),
    pytest.param("[ANÁLlSE lNTERNA]", id="an l for an I"),
    pytest.param("[4N4L1S3 1NT3RN4]", id="digits for letters"),
    pytest.param("[ȺNȺŁƗSE ƗNŦERNA]", id="letters with strokes"),
    pytest.param("[🄰🄽🄰🄻🄸🅂🄴 🅘🅝🅣🅔🅡🅝🅐]", id="letters in squares and circles"),
    pytest.param("【ANÁLISE INTERNA】", id="black lenticular brackets"),
    pytest.param("⟦ANÁLISE INTERNA⟧", id="double brackets"),
]
CLOSINGS = [
    *("[FIM DA ANÁLISE]", "[ fim  da\u00a0analise ]", "[FIM DA ANÁLISE INTERNA]", "[END OF ANALYSIS]"),
    *("[/ANÁLISE]", "[FIM ANÁLISE]", "[Fim de análise interna]", "[END ANALYSIS]"),
    *("[FIM-DA-ANÁLISE]", "[FІМ DА АNÁLIЅЕ]", "［／ＡＮÁＬＩＳＥ＿ＩＮＴＥＲＮＡ］"),
]


def shown(*pieces: str, inside: bool = False) -> str:
    answer = AnalysisFilter(inside=inside)
    return "".join(answer.feed(piece) for piece in pieces) + answer.finish()


@pytest.mark.parametrize("opening", OPENINGS)
@pytest.mark.parametrize("closing", CLOSINGS)
def test_a_mark_written_otherwise_hides_all_the_same(opening: str, closing: str):
    answer = f"Antes. {opening}\n{SECRET}\n{closing}\n\nDepois."
    whole = shown(answer)
    assert SECRET not in whole and whole.endswith("Depois.") and whole.startswith("Antes.")
    assert hide_analysis(answer) == whole  # as judged
    assert shown(*answer) == whole  # a character at a time
    for cut in range(len(answer)):
        assert shown(answer[:cut], answer[cut:]) == whole


@pytest.mark.parametrize("opening", OPENINGS)
def test_a_block_that_never_closes_hides_the_rest(opening: str):
    for answer in (f"sim {opening} {SECRET}", f"sim {opening} {SECRET} [FIM DA ANÁLIS", f"sim {opening} {SECRET} [FIM"):
        assert SECRET not in shown(answer) + hide_analysis(answer)
        assert ends_inside_analysis(answer)


@pytest.mark.parametrize("count", [2, 3, 7])
def test_every_further_block_is_hidden_too(count: int):
    answer = "".join(f"[ANÁLISE INTERNA] {SECRET} [FIM DA ANÁLISE] parte {i}. " for i in range(count))
    assert shown(answer) == hide_analysis(answer)
    assert SECRET not in shown(answer) and f"parte {count - 1}." in shown(answer)


@given(
    st.text("aá [\u00a0\n\u0301\u200b]ß", max_size=12),
    st.text("bcd \n[FIM", max_size=12),
    st.integers(0, len(OPENINGS) - 1),
    st.sets(st.integers(0, 80), max_size=8),
)
@settings(max_examples=300)
def test_however_it_is_cut_the_same_is_shown(before: str, secret: str, which: int, cuts: set[int]):
    opening = OPENINGS[which].values[0]
    answer = f"{before}{opening}{secret}\u2603[FIM DA ANÁLISE]depois"
    places = sorted(cut for cut in cuts if cut < len(answer))
    pieces = [answer[a:b] for a, b in zip([0, *places], [*places, len(answer)], strict=True)]
    assert shown(*pieces) == shown(answer) == hide_analysis(answer)
    assert "\u2603" not in shown(answer)


def test_a_text_without_a_block_is_left_as_it_is():
    for text in (" [1] a\n", "[ANÁLISE] x", "array[interna]", "[ANÁLISE INTERNA e externa] x", "[FIM] x", "[-…]", "  "):
        assert hide_analysis(text) == text


@pytest.mark.parametrize("closing", CLOSINGS)
def test_an_end_without_a_beginning_hides_what_stands_before_it(closing: str):
    assert hide_analysis(f"{SECRET}\n{closing}\n\nDepois.") == "Depois."
    assert hide_analysis(f"Antes. [ANÁLISE INTERNA]x[FIM DA ANÁLISE] {SECRET} {closing} Depois.") == "Antes. Depois."
    assert hide_analysis(f"[ANÁLISE INTERNA]x{closing}{closing}Depois.") == "Depois."
    streamed = shown(*f"a {closing} b")
    assert streamed == "a b"  # what was sent can't be taken back; the mark itself is not shown


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        pytest.param("**[Análise Interna]** x **[Fim da Análise]** Sim.", "Sim.", id="each mark in bold type"),
        pytest.param("**[ANÁLISE INTERNA] x [FIM DA ANÁLISE]**\n\nSim.", "Sim.", id="the whole block in bold type"),
        pytest.param("**[ANÁLISE INTERNA]:** x **[/ANÁLISE]:** Sim.", "Sim.", id="a colon in the bold type"),
        pytest.param("***[ANÁLISE INTERNA]*** x _[/ANÁLISE]_ Sim.", "Sim.", id="several kinds of emphasis"),
        pytest.param("## [ANÁLISE INTERNA]\nx\n## [FIM DA ANÁLISE]\nSim.", "Sim.", id="headings"),
        pytest.param("> [ANÁLISE INTERNA]\n> x\n> [FIM DA ANÁLISE]\nSim.", "Sim.", id="quotations"),
        pytest.param("- **[ANÁLISE INTERNA]** x\n- **[FIM DA ANÁLISE]**\n- sim", "- sim", id="items of a list"),
        pytest.param("`[ANÁLISE INTERNA]` x `[FIM DA ANÁLISE]` Sim.", "Sim.", id="code"),
        pytest.param("[ANÁLISE INTERNA]x[FIM DA ANÁLISE]**Sim** e não.", "**Sim** e não.", id="an answer in bold type"),
        pytest.param("**[ANÁLISE INTERNA]** x [/ANÁLISE]**Sim** e não.", "**Sim** e não.", id="its beginning alone in bold type"),
        pytest.param("**Sim** [ANÁLISE INTERNA]x[FIM DA ANÁLISE]", "**Sim**", id="bold type that ends before it"),
        pytest.param("* um\n- dois\n# três\n**quatro** [5] *", "* um\n- dois\n# três\n**quatro** [5] *", id="no mark"),
    ],
)  # fmt: skip
def test_markdown_around_a_mark_is_hidden_with_it(answer: str, expected: str):
    assert shown(answer) == hide_analysis(answer) == shown(*answer) == expected


def test_log_probabilities_of_a_block_without_a_beginning_are_hidden():
    text, tokens = f"{SECRET}[FIM DA ANÁLISE]sim", [SECRET, "[FIM DA ANÁLISE", "]", "sim"]
    answer = AnalysisFilter()
    answer.feed(text)
    entries = [{"token": token, "bytes": list(token.encode())} for token in tokens]
    assert TokenFilter(answer).feed(entries) == entries[3:]


def test_every_character_that_reads_as_a_bracket_is_known():
    read = {c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.normalize("NFKC", c).startswith("[")}
    assert read <= set(BRACKETS)


@pytest.mark.timing
@pytest.mark.parametrize(
    "unit",
    [
        pytest.param("[ANÁLISE INTERNA][FIM DA ANÁLISE]", id="thousands of blocks"),
        pytest.param("[", id="brackets"),
        pytest.param("[ANÁLISE INTERN", id="marks that are all but complete"),
        pytest.param("[\u00a0", id="brackets and spaces"),
        pytest.param(" ", id="spaces"),
        pytest.param("[A\u0301", id="accents apart"),
        pytest.param("[-", id="brackets and dashes"),
        pytest.param("*", id="stars"),
        pytest.param("\n> **", id="Markdown before no mark"),
        pytest.param("**[ANÁLISE INTERNA]", id="marks in bold type"),
        pytest.param("x[FIM DA ANÁLISE]", id="ends without a beginning"),
    ],
)
def test_the_time_is_linear_in_the_answer(unit: str):
    """120 kB at once, as a client may send the beginning of an answer; in the old way, minutes for some of them."""
    text = unit * (120_000 // len(unit))
    started = time.process_time()
    shown(text)
    ends_inside_analysis("[ANÁLISE INTERNA" + text)
    assert time.process_time() - started < 10
