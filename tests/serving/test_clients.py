"""The clients that people use, against the real server: openai, LangChain's ChatOpenAI, llm, Inspect. `pip install -e '.[clients]' -c constraints-clients.txt`"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.running_server import ANSWER, BASE, KEY, Client, reciters, running
from noesis.serving.protocol import Limits

pytestmark = [pytest.mark.slow, pytest.mark.timing]
HI = [{"role": "user", "content": "Hello"}]
SAID = "Courage is knowledge."
SCHEMA = {
    "type": "object",
    "properties": {"wise": {"type": "boolean"}},
    "required": ["wise"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    with running(reciters(tmp_path_factory.mktemp("gguf")), Limits(parallel=4, context=1024, max_tokens=128)) as client:
        yield client


def test_openai(server: Client):
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=server.url + "/v1", api_key=KEY, max_retries=0)
    assert [m.id for m in client.models.list()] == ["noesis", "noesis-base"]
    answer = client.chat.completions.create(model="noesis", messages=HI, logprobs=True, top_logprobs=1)
    assert answer.choices[0].message.content == SAID and answer.usage.completion_tokens == len(ANSWER) + 1
    assert [e.token for e in answer.choices[0].logprobs.content] == ANSWER[6:]
    chunks = list(
        client.chat.completions.create(model="noesis", messages=HI, stream=True, stream_options={"include_usage": True})
    )
    assert (
        "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == SAID
        and chunks[-1].usage.total_tokens > 0
    )
    whole = client.chat.completions.create(model="noesis", messages=HI, extra_body={"include_analysis": True})
    assert whole.choices[0].message.content == "".join(ANSWER)
    base = client.chat.completions.create(model="noesis-base", messages=HI, max_completion_tokens=50)
    assert base.choices[0].message.content == "".join(BASE)
    shaped = client.chat.completions.create(
        model="noesis-base",
        messages=HI,
        temperature=0,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": SCHEMA}},
    )
    assert shaped.choices[0].message.content.lstrip().startswith("{")
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt", messages=HI)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="noesis", messages=HI, n=2)
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=server.url + "/v1", api_key="another-key-of-noone").models.list()


def test_langchain(server: Client):
    chat = pytest.importorskip("langchain_openai").ChatOpenAI(
        base_url=server.url + "/v1", api_key=KEY, model="noesis", temperature=0.2
    )
    answer = chat.invoke([("system", "You are brief."), ("human", "Hello")])
    assert answer.content == SAID and answer.usage_metadata["output_tokens"] == len(ANSWER) + 1
    assert "".join(piece.content for piece in chat.stream("Hello")) == SAID
    assert [a.content for a in chat.batch(["Hello", "Hello"])] == [SAID, SAID]


def test_llm(server: Client, tmp_path: Path):
    """Its own command line, with the model named in its settings as docs/integrate.md says."""
    pytest.importorskip("llm.cli")  # not tests/llm, which is a namespace package of that name
    models = [
        {"model_id": f"my-{name}", "model_name": name, "api_base": server.url + "/v1", "api_key_name": "noesis"}
        for name in ("noesis", "noesis-base")
    ]
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps(models), encoding="utf-8")  # JSON is YAML
    (tmp_path / "keys.json").write_text(json.dumps({"noesis": KEY}), encoding="utf-8")
    environment = os.environ | {"LLM_USER_PATH": str(tmp_path), "LLM_LOAD_PLUGINS": ""}

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "llm", "prompt", *arguments, "Hello"]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=120, env=environment, check=False, stdin=subprocess.DEVNULL
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert run("-m", "my-noesis") == SAID
    assert run("-m", "my-noesis", "--no-stream") == SAID
    assert run("-m", "my-noesis-base", "-s", "Be plain.") == "".join(BASE)


def test_inspect(server: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    inspect_ai = pytest.importorskip("inspect_ai")
    from inspect_ai.dataset import Sample
    from inspect_ai.model import get_model
    from inspect_ai.scorer import includes
    from inspect_ai.solver import generate

    monkeypatch.setenv("INSPECT_DISPLAY", "none")
    model = get_model("openai-api/noesis/noesis", base_url=server.url + "/v1", api_key=KEY)
    task = inspect_ai.Task(
        dataset=[Sample(input=f"What is {what}?", target="knowledge") for what in ("courage", "truth", "justice")],
        solver=generate(),
        scorer=includes(),
    )
    (log,) = inspect_ai.eval(task, model=model, log_dir=str(tmp_path), display="none")
    assert log.status == "success", log.error
    assert log.results.scores[0].metrics["accuracy"].value == 1.0
    assert log.samples[0].output.completion == SAID and log.stats.model_usage
