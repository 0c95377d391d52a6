"""Personal data and secrets in a text: CPF and CNPJ by their check digits, e-mail, telephone, access tokens.

What is found is only shown masked. CPF and CNPJ have the modulo-11 digits of Brazil's Receita Federal; since July 2026
a CNPJ may contain letters, valued by their ASCII code less 48.
"""

from __future__ import annotations

import re

from noesis.core.i18n import _

_RUN = re.compile(r"\d[\d().\s/-]{6,60}\d")  # digits with what people put between them
_CPF = re.compile(r"(?<!\d)\d{3}\.?\d{3}\.?\d{3}-?\d{2}(?!\d)")
_CNPJ_WITH_LETTERS = re.compile(r"(?<![A-Z\d.])[A-Z\d]{2}\.[A-Z\d]{3}\.[A-Z\d]{3}/[A-Z\d]{4}-\d{2}(?![A-Z\d])")
_CNPJ = re.compile(rf"(?<!\d)\d{{2}}\.?\d{{3}}\.?\d{{3}}/?\d{{4}}-?\d{{2}}(?!\d)|{_CNPJ_WITH_LETTERS.pattern}")
_PHONE = re.compile(
    r"(?<![\d.])(?:\+55[ .-]?)?(?:\(\d{2}\)|\d{2})[ .-]?9?\d{4}[ .-]\d{4}(?!\d)"  # (11) 91234-5678, 11 3456-7890
    r"|\+\d{1,3}[ .-]?\(?\d{2,4}\)?(?:[ .-]?\d{2,4}){2,3}(?!\d)"  # +44 20 7946 0958
)
_EMAIL = re.compile(r"[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,5}[A-Za-z]{2,24}")
_EXAMPLE_HOSTS = ("example.com", "example.org", "example.net", "exemplo.com", "exemplo.com.br")
_TOKEN = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|xox[abprs]-[A-Za-z0-9-]{10,}"
    r"|A[KS]IA[A-Z0-9]{16}|AIza[A-Za-z0-9_-]{30,}|a[ks]-[A-Za-z0-9]{20,}|eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{5,})"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
_TOKEN_HINTS = (
    "hf_",
    "sk-",
    "ghp_",
    "gho_",
    "ghu_",
    "ghs_",
    "ghr_",
    "github_pat_",
    "xox",
    "AKIA",
    "ASIA",
    "AIza",
    "ak-",
    "as-",
    "eyJ",
)
_DIGIT = re.compile(r"\d")


def find_personal(text: str) -> list[tuple[str, str]]:
    """(kind, masked text) of what looks personal or secret, at most one of a kind, in a fixed order of kinds."""
    found = []
    digits = _DIGIT.search(text) is not None  # all but addresses and key blocks contain one
    if ((digits and any(hint in text for hint in _TOKEN_HINTS)) or "PRIVATE KEY" in text) and (
        match := _TOKEN.search(text)
    ):
        found.append((_("access token"), mask(match.group())))
    if "@" in text:
        addresses = (match.group() for match in _EMAIL.finditer(text))
        if address := next((a for a in addresses if a.lower().rpartition("@")[2] not in _EXAMPLE_HOSTS), None):
            found.append((_("e-mail address"), mask(address)))
    if not digits:
        return found
    runs = [text[max(match.start() - 2, 0) : match.end()] for match in _RUN.finditer(text)]  # with the + or ( before it
    if "/" in text:
        runs += [match.group() for match in _CNPJ_WITH_LETTERS.finditer(text)]
    for kind, pattern, is_one in (
        ("CPF", _CPF, is_cpf),
        ("CNPJ", _CNPJ, is_cnpj),
        (_("telephone number"), _PHONE, _is_phone),
    ):
        numbers = (match.group() for run in runs for match in pattern.finditer(run))
        if number := next((n for n in numbers if is_one(n)), None):
            found.append((kind, mask(number)))
    return found


def mask(text: str) -> str:
    """`text` with all but its first two letters and digits hidden: `12*.***.***-**`."""
    shown, result = 0, []
    for character in text[:60]:
        if character.isalnum():
            shown += 1
            result.append(character if shown <= 2 else "*")
        else:
            result.append(character)
    return "".join(result)


def is_cpf(text: str) -> bool:
    """Whether `text` is eleven digits with the right check digits (and not one digit eleven times)."""
    digits = [int(c) for c in text if c.isdigit()]
    if not _CPF.fullmatch(text) or len(set(digits)) == 1:
        return False
    return all(_modulo_11(digits[:n], range(n + 1, 1, -1)) == digits[n] for n in (9, 10))


def is_cnpj(text: str) -> bool:
    """Whether `text` is a CNPJ, numeric or alphanumeric, with the right check digits."""
    values = [ord(c) - 48 for c in text if c.isalnum()]
    if not _CNPJ.fullmatch(text) or len(set(values)) == 1:
        return False
    weights = [6, 5, 4, 3, 2, 9, 8, 7, 6, 5, 4, 3, 2]
    return all(_modulo_11(values[:n], weights[13 - n :]) == values[n] for n in (12, 13))


def _is_phone(text: str) -> bool:
    """Whether a match of the telephone pattern is not a CPF."""
    return not is_cpf(text)


def _modulo_11(values: list[int], weights: range | list[int]) -> int:
    rest = sum(v * w for v, w in zip(values, weights, strict=True)) % 11
    return 0 if rest < 2 else 11 - rest
