"""Specs of models, whose key goes where, and Retry-After."""

from __future__ import annotations

import pytest

from noesis.core.errors import UsageError
from noesis.llm.clients.openai_client import key_for
from noesis.llm.clients.spec import parse_spec, same_model
from noesis.llm.http_reply import retry_after


def test_a_key_goes_to_its_own_host_only(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "k1")
    monkeypatch.setenv("NOESIS_KEY_OPENROUTER_AI", "k2")
    assert key_for("https://api.openai.com/v1") == "k1"
    assert key_for("https://openrouter.ai/api/v1") == "k2"
    assert key_for("https://example.org/v1") is None
    assert key_for("http://openrouter.ai/api/v1") is None  # in the clear


def test_specs():
    spec = parse_spec("openai:http://localhost:11434/v1:llama3:8b")
    assert (spec.url, spec.model) == ("http://localhost:11434/v1", "llama3:8b")
    assert parse_spec("openai:https://openrouter.ai/api/v1/:qwen/qwen3:free").url == "https://openrouter.ai/api/v1"
    for wrong in ("gpt-5", "openai:localhost:model", "gguf:nowhere.gguf", "openai:https://x.org/v1"):
        with pytest.raises(UsageError):
            parse_spec(wrong)


def test_a_model_is_known_under_its_other_names():
    assert same_model("meta-llama/Llama-3.1-8B-Instruct", "models/llama-3.1-8b-instruct-q4_K_M.gguf")
    assert not same_model("smollm2", "llama-3.1-8b-instruct")


def test_retry_after_in_both_forms():
    assert retry_after("1.5") == 1.5
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert retry_after("soon") is None
    assert retry_after(None) is None
