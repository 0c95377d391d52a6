"""Hiding the analysis block: however an answer is cut, the same is shown, and nothing of the block."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noesis.constitution.analysis_block import AnalysisFilter, hide_analysis
from noesis.serving.analysis_filter import TokenFilter, ends_inside_analysis

BLOCK = "[ANÁLISE INTERNA]\nsegredo\n[FIM DA ANÁLISE]"


def shown(*pieces: str, inside: bool = False) -> str:
    f = AnalysisFilter(inside=inside)
    return "".join(f.feed(p) for p in pieces) + f.finish()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (f"{BLOCK}\n\nA coragem é isto.", "A coragem é isto."),
        (f"  {BLOCK} sim ", "sim"),
        (f"antes {BLOCK} depois", "antes  depois"),
        (f"{BLOCK}um{BLOCK}dois", "umdois"),
        ("sim [ANÁLISE INTERNA] segredo sem fim", "sim"),
        ("[ANÁLISE INTERN", "[ANÁLISE INTERN"),
        ("[[ANÁLISE INTERNA]segredo[[FIM DA ANÁLISE]]x", "[]x"),
        ("[FIM DA ANÁLISE] dois", "dois"),  # of a block that has no beginning
        ("[analise interna]segredo[Fim da Análise]fim", "fim"),
        ("[ANA\u0301LISE INTERNA]segredo[FIM DA ANA\u0301LISE]fim", "fim"),  # the accent as a character of its own
        ("x[ANÁLISE [ANÁLISE INTERNA]segredo[FIM DA [FIM DA ANÁLISE]y", "x[ANÁLISE y"),
        ("", ""),
        ("linha\n\nlinha", "linha\n\nlinha"),
    ],
)
def test_what_is_shown(answer: str, expected: str):
    assert shown(answer) == expected
    assert shown(*answer) == expected  # a character at a time
    for cut in range(len(answer)):
        assert shown(answer[:cut], answer[cut:]) == expected


@given(
    st.lists(
        st.sampled_from(
            [
                "[",
                "]",
                "ANÁLISE",
                " ",
                "INTERNA",
                "[ANÁLISE INTERNA]",
                "[FIM DA ANÁLISE]",
                "FIM DA",
                "x",
                "**",
                "\n> ",
                ":",
                "é\n",
                "\u0301",
                "ß",
            ]
        ),
        max_size=14,
    ),
    st.data(),
)
@settings(max_examples=300)
def test_however_it_is_cut(parts: list[str], data):
    answer = "".join(parts)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(answer)), max_size=8)))
    pieces = [answer[a:b] for a, b in zip([0, *cuts], [*cuts, len(answer)], strict=True)]
    streamed, whole = shown(*pieces), shown(answer)
    if "FIM DA" in answer:  # an end without a beginning takes back what was not sent yet
        rest = iter(streamed)
        assert all(char in rest for char in whole)
    else:
        assert streamed == whole


@given(st.text("ab \n[é", max_size=20), st.text("cd \n]", max_size=20), st.text("ef \n", max_size=20))
def test_one_block_is_hidden_as_it_is_in_the_records(before: str, secret: str, after: str):
    answer = f"{before}[ANÁLISE INTERNA]{secret}[FIM DA ANÁLISE]{after}"
    assert shown(answer) == hide_analysis(answer)


def test_text_is_not_held_back_longer_than_needed():
    f = AnalysisFilter()
    assert f.feed("A coragem [") == "A coragem"
    assert f.feed("x") == " [x"
    assert f.feed("[ANÁLISE INTERNA] segredo") == ""
    assert f.inside


def test_an_answer_that_the_client_began_inside_a_block():
    assert (
        ends_inside_analysis("[ANÁLISE INTERNA] pois")
        and not ends_inside_analysis(BLOCK)
        and not ends_inside_analysis("sim")
    )
    assert shown("segredo [FIM DA", " ANÁLISE] sim", inside=True) == "sim"


def test_log_probabilities_of_hidden_tokens_are_hidden():
    tokens = ["ok", " [AN", "ÁLISE INTERNA", "] segredo", "[FIM DA ANÁLISE", "]", " sim", "."]
    f = AnalysisFilter()
    t = TokenFilter(f)
    seen = []
    for token in tokens:
        f.feed(token)
        seen += t.feed([{"token": token, "bytes": list(token.encode())}])
    f.finish()
    seen += t.feed([])
    assert [e["token"] for e in seen] == ["ok", " sim", "."]


def test_halves_of_a_letter_are_followed_by_their_bytes():
    f = AnalysisFilter()
    t = TokenFilter(f)
    f.feed("[ANÁLISE INTERNA]é[FIM DA ANÁLISE]é")
    head, tail = "[ANÁLISE INTERNA]é[FIM DA ANÁLISE]".encode(), "é".encode()
    entries = [{"token": "", "bytes": list(head)}, {"token": "", "bytes": [tail[0]]}, {"token": "", "bytes": [tail[1]]}]
    assert t.feed(entries) == entries[1:]
