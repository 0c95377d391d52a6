"""What a stranger's run may set in motion: nothing is sent, loaded or downloaded that only its own settings name."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest

from helpers.manifest import write_manifest
from helpers.project import ROOT
from noesis.cli import run_command
from noesis.constitution.document import load_constitution
from noesis.core.config import Config, load_config
from noesis.core.errors import ModelError, UsageError
from noesis.core.files import write_json
from noesis.core.project import Project
from noesis.llm import hub
from noesis.llm.clients.openai_client import KEYS, OpenAIClient, key_for, own_variable
from noesis.llm.clients.spec import parse_spec
from noesis.llm.clients.spending import Spending
from noesis.pipeline.consent import base_model, judges_to_ask, tribunal_settings
from noesis.pipeline.served.live_judge import LiveJudge
from noesis.pipeline.session import locked_session, reopen_run
from noesis.run.directory import load_run

EVIL = "openai:https://evil.example/v1:gpt"


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch, quiet_cache: Path) -> list[str]:
    """The models that were asked of the Hub."""
    asked: list[str] = []

    def fetch(name: str, revision: str | None, *, weights: bool = True) -> None:
        asked.append(name)
        raise ModelError("the Hub was reached")

    monkeypatch.setattr(hub, "_from_hub", fetch)
    return asked


def settings(**overrides: object) -> Config:
    return load_config(Project(ROOT), {"training.model": "evil/model"} | overrides)


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A stranger's run, with a judge and a base model of its own."""
    run = tmp_path / "evil"
    write_manifest(run, base_model="evil/model")
    (run / "data").mkdir()
    (run / "data" / "constitution.yaml").write_bytes((ROOT / "data" / "constitution.yaml").read_bytes())
    config = settings(
        **{"training.tribunal.judges": [EVIL], "training.tribunal.prices": {"gpt": {"prompt": 0, "completion": 0}}}
    )
    write_json(run / "config.json", config.model_dump(mode="json"))
    return run


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def typed(monkeypatch: pytest.MonkeyPatch, text: str) -> Terminal:
    screen = Terminal()
    monkeypatch.setattr("sys.stdin", Terminal(text))
    monkeypatch.setattr("sys.stderr", screen)
    return screen


JUDGES = {
    "an endpoint": EVIL,
    "an endpoint that looks like a provider's": "openai:https://api.openai.com.evil.example/v1:gpt",
    "an endpoint without TLS": "openai:http://evil.example/v1:gpt",
    "a service on this machine": "openai:http://127.0.0.1:6379/v1:gpt",
    "a provider to be paid with the user's key": "openai:https://api.openai.com/v1:gpt-dearest",
    "an endpoint in the user's network": "openai:http://192.168.0.1/v1:gpt",
}


@pytest.mark.parametrize("judge", [pytest.param(spec, id=name) for name, spec in JUDGES.items()])
def test_a_judge_that_only_the_run_names_is_not_asked_without_a_terminal(tmp_path: Path, judge: str):
    config = settings(**{"training.tribunal.judges": [judge]})
    with pytest.raises(UsageError, match="names the judge.*no terminal to ask on.*--judge"):
        judges_to_ask(tmp_path, config, None, ROOT)


def test_a_gguf_file_that_only_the_run_names_is_not_loaded(tmp_path: Path):
    (tmp_path / "evil.gguf").write_bytes(b"GGUF")
    config = settings(**{"training.tribunal.judges": [f"gguf:{tmp_path / 'evil.gguf'}"]})
    with pytest.raises(UsageError, match="is loaded"):
        judges_to_ask(tmp_path, config, None, ROOT)


def test_one_judge_of_the_project_does_not_vouch_for_another(tmp_path: Path, project: Path):
    config = settings(**{"training.tribunal.judges": ["self", EVIL]})
    with pytest.raises(UsageError, match=r"evil\.example"):
        judges_to_ask(tmp_path, config, None, project)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(text, id=f"answered with {text!r}")
        for text in ("", "\n", "n\n", "no\n", "yeah\n", "Y E S\n", "\x04")
    ],
)
def test_what_is_no_yes_asks_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str):
    screen = typed(monkeypatch, answer)
    with pytest.raises(UsageError, match="nothing was done"):
        judges_to_ask(tmp_path, settings(**{"training.tribunal.judges": [EVIL]}), None, ROOT)
    assert "prompts, answers and your key for evil.example go to evil.example" in screen.getvalue()


def test_the_true_host_is_announced_and_a_yes_is_a_yes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    judge = "openai:https://api.openai.com.evil.example:8443/v1:gpt@api.openai.com"
    screen = typed(monkeypatch, "y\n")
    assert judges_to_ask(tmp_path, settings(**{"training.tribunal.judges": [judge]}), None, ROOT) == (judge,)
    assert "go to api.openai.com.evil.example:8443. " in screen.getvalue()


def test_an_endpoint_behind_a_provider_s_name_as_its_user_is_refused_without_its_password(tmp_path: Path):
    """It was announced, with the password in the line; an address that holds a user has no use here."""
    judge = "openai:https://api.openai.com:secret@evil.example/v1:gpt"
    with pytest.raises(UsageError, match=r"@evil\.example/v1.*no user and no password") as told:
        judges_to_ask(tmp_path, settings(**{"training.tribunal.judges": [judge]}), None, ROOT)
    assert "secret" not in str(told.value)


def test_escape_sequences_in_a_judge_s_name_do_not_reach_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    screen = typed(monkeypatch, "n\n")
    judge = EVIL + "\x1b[2K\x1b[1A\u202e"
    with pytest.raises(UsageError):
        judges_to_ask(tmp_path, settings(**{"training.tribunal.judges": [judge]}), None, ROOT)
    assert "\x1b" not in screen.getvalue()
    assert "\u202e" not in screen.getvalue()


def test_a_judge_that_the_user_names_is_asked(tmp_path: Path, project: Path):
    config = settings(**{"training.tribunal.judges": [EVIL]})
    assert judges_to_ask(tmp_path, config, [EVIL], ROOT) == (EVIL,)
    assert judges_to_ask(tmp_path, config, ["self"], ROOT) == ("self",)
    file = project / "data" / "training" / "training_config.yaml"
    file.write_text(re.sub(r"(?m)^  judges: \[\]", f"  judges: ['{EVIL}']", file.read_text(), count=1))
    assert load_config(Project(project)).training.tribunal.judges == (EVIL,)
    assert judges_to_ask(tmp_path, config, None, project) == (EVIL,)


def test_noesis_judge_on_a_stranger_s_run_ends_before_any_work(
    foreign: Path, tiny_shape: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tiny_shape / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    config = json.loads((foreign / "config.json").read_text())
    config["training"]["model"] = str(tiny_shape)
    write_json(foreign / "config.json", config)
    before = (foreign / "manifest.json").read_bytes()
    monkeypatch.chdir(ROOT)
    assert run_command(["judge", str(foreign)]) == 2
    assert "evil.example" in capsys.readouterr().err
    assert (foreign / "manifest.json").read_bytes() == before


# --- the base model


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param([name], id=f"noesis {name}")
        for name in ("judge", "merge", "gguf", "parity", "report", "verify", "status")
    ],
)
def test_no_command_downloads_a_model_that_only_the_run_names(
    foreign: Path, downloads: list[str], arguments: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(ROOT)
    run_command([*arguments, str(foreign)])
    assert downloads == []


def test_a_tokenizer_in_the_cache_does_not_make_verify_download_weights(
    foreign: Path, downloads: list[str], tiny_tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--evil--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / "abc").symlink_to(tiny_tokenizer_folder)
    run_command(["verify", str(foreign)])
    assert downloads == []


@pytest.mark.parametrize(
    "answer", [pytest.param("n\n", id="refused on the terminal"), pytest.param("", id="the terminal closed")]
)
def test_a_download_that_is_not_agreed_to_does_not_begin(
    foreign: Path, downloads: list[str], monkeypatch: pytest.MonkeyPatch, answer: str
):
    screen = typed(monkeypatch, answer)
    with pytest.raises(UsageError, match="hf download evil/model"):
        reopen_run(foreign)
    assert "evil/model" in screen.getvalue()
    assert downloads == []


def test_a_download_that_is_agreed_to_begins(foreign: Path, downloads: list[str], monkeypatch: pytest.MonkeyPatch):
    typed(monkeypatch, "yes\n")
    with pytest.raises(ModelError, match="the Hub was reached"), locked_session(foreign):
        pass
    assert downloads == ["evil/model"]


def test_a_model_of_the_project_is_downloaded_without_a_question(
    tmp_path: Path, downloads: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(ROOT)
    name = load_config(Project(ROOT)).training.modal.model
    with pytest.raises(ModelError, match="the Hub was reached"):
        base_model(tmp_path, settings(**{"training.model": name}), fetch=False)
    assert downloads == [name]


# --- what judges cost, and keys


def test_a_run_s_own_prices_do_not_switch_a_cap_off(foreign: Path):
    run = load_run(foreign)
    assert run.config().training.tribunal.prices["gpt"].prompt == 0
    assert "gpt" not in tribunal_settings(run.config(), Project(ROOT)).prices
    constitution = load_constitution(foreign / "data" / "constitution.yaml")
    with pytest.raises(ModelError, match="--max-usd needs the price"):
        LiveJudge(run, Project(ROOT), constitution, [EVIL], max_usd=1.0)


VARIANTS = {
    "a hyphen for a dot": "https://openrouter-ai/v1",
    "a name with a hyphen for a dot": "https://api.my-host.com/v1",
    "a longer name": "https://openrouter.ai.evil.example/v1",
    "a provider's name as its user": "https://openrouter.ai@evil.example/v1",
    "a provider's name as user and password": "https://openrouter.ai:443@evil.example/v1",
    "another alphabet": "https://оpenrouter.ai/v1",
    "an umlaut for a dot": "https://openrouterüai/v1",
    "an underscore for a dot": "https://openrouter_ai/v1",
    "a name with an empty label": "https://openrouter..ai/v1",
    "a dot at the end": "https://openrouter.ai./v1",
    "no TLS": "http://openrouter.ai/v1",
    "a fragment": "https://evil.example/#@openrouter.ai/v1",
    "a query": "https://evil.example/?@openrouter.ai/v1",
    "a backslash": "https://evil.example\\@openrouter.ai/v1",
}


@pytest.mark.parametrize("url", [pytest.param(url, id=f"a host with {name}") for name, url in VARIANTS.items()])
def test_a_key_goes_to_its_own_host_only(url: str, monkeypatch: pytest.MonkeyPatch):
    import httpx2

    monkeypatch.setenv("NOESIS_KEY_OPENROUTER_AI", "secret")
    monkeypatch.setenv("NOESIS_KEY_API_MY_HOST_COM", "secret")
    for name in KEYS.values():
        monkeypatch.delenv(name, raising=False)
    try:
        spec = parse_spec(f"openai:{url.rstrip('/')}:m")
    except UsageError:  # most of them have no use
        spec = None
    sent = key_for(url)
    try:
        contacted = httpx2.URL(url).host
    except (httpx2.InvalidURL, UnicodeError):
        contacted = None
    assert sent is None or contacted == "openrouter.ai"
    if spec is not None:
        client = OpenAIClient(spec, settings().training.tribunal, Spending())
        trusted = httpx2.URL(client._url).host == "openrouter.ai" and client._url.startswith("https:")
        assert ("authorization" in client._http._client.headers) == trusted


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param("my-host.com", "my.host.com", id="a hyphen and a dot share no variable"),
        pytest.param("a-b.c-d.com", "a.b.c.d.com", id="several hyphens and dots share no variable"),
        pytest.param("a--b.com", "a-.-b.com", id="two hyphens share no variable with hyphens around a dot"),
        pytest.param(
            "xn--mnchen-3ya.de", "xn.mnchen.3ya.de", id="an encoded umlaut shares no variable with its letters"
        ),
    ],
)
def test_two_hosts_share_no_variable(one: str, other: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(own_variable(one), "secret")
    assert key_for(f"https://{one}/v1") == "secret"
    assert key_for(f"https://{other}/v1") is None
