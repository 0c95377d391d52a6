"""Shared by all tests: a small project, and a tiny Llama with a tokenizer of SmolLM2's build, made here in seconds."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

from helpers.project import ROOT, SHAPE, example_record, make_tokenizer_files, small_project_in, with_small_settings
from noesis.core.project import Project

if TYPE_CHECKING:
    from helpers.modal_local import ControlPlane

if (
    signal.getsignal(signal.SIGINT) == signal.SIG_IGN
):  # a shell's background job ignores Ctrl-C, and so would every program that a test starts
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach a hub
os.environ["NOESIS_LANG"] = "en"  # whatever language the machine speaks
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # the same figures on every machine
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models gain nothing from more, and `make test` runs two processes
os.environ.setdefault(
    "TORCHDYNAMO_DISABLE", "1"
)  # nothing here is compiled, and bitsandbytes loads the compiler for a second
os.environ |= {
    "MODAL_SERVER_URL": "http://127.0.0.1:9",
    "MODAL_CONFIG_PATH": "/dev/null",
}  # nor Modal's service: nothing listens there
for name in ("MODAL_TOKEN_ID", "MODAL_TOKEN_SECRET", "MODAL_PROFILE", "MODAL_ENVIRONMENT"):
    os.environ.pop(name, None)


hypothesis.settings.register_profile("noesis", deadline=None)  # a busy machine is no fault
hypothesis.settings.load_profile("noesis")

FUZZING_S = 300.0  # of one test; each takes seconds on an idle machine

LONGEST = (
    "test_modal_guide.py",
    "test_modal.py",
    "test_cloud_stages.py",
    "test_modal_local.py",
    "test_run_faults.py",
    "test_certificate.py",
    "test_gguf_base.py",
    "test_train_judge.py",
    "test_tokenizers.py",
    "test_pipeline.py",
    "test_notebook.py",
    "test_page.py",
    "test_nodes.py",
    "test_dial.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that the processes of `make test` end together."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(autouse=True)
def torch_is_for_slow_tests(request: pytest.FixtureRequest) -> Iterator[None]:
    """The unit part stays short because nothing in it loads torch, which alone takes several seconds."""
    before = "torch" in sys.modules
    yield
    if not before and "torch" in sys.modules:
        marks = {mark.name for mark in request.node.iter_markers()}
        assert marks & {"slow", "full"}, "this test loads torch: mark it slow"


class NeverEnds(BaseException):
    """No Exception, which Hypothesis would take for a failing example and shrink, example by example, without end."""


@pytest.fixture(autouse=True)
def fuzzing_ends(request: pytest.FixtureRequest) -> Iterator[None]:
    """An example that never ends fails its test. Examples have no deadline: a busy machine is no fault."""
    if not getattr(request.node.obj, "is_hypothesis_test", False) or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_: object) -> None:
        raise NeverEnds(f"all examples together took more than {FUZZING_S:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, FUZZING_S)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def record() -> dict:
    """A valid example with the nine required fields and nothing else."""
    return example_record()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of this checkout's project with its 124 examples, in a folder of its own."""
    shutil.copytree(ROOT / "data", tmp_path / "project" / "data")
    return with_small_settings(tmp_path / "project")


@pytest.fixture
def write_rows(tmp_path: Path):
    """Write rows (dicts, or raw bytes) as a JSONL file and return its path."""

    def write(*rows: dict | bytes, name: str = "rows.jsonl") -> Path:
        file = tmp_path / name
        file.write_bytes(
            b"".join((r if isinstance(r, bytes) else json.dumps(r, ensure_ascii=False).encode()) + b"\n" for r in rows)
        )
        return file

    return write


@pytest.fixture(scope="session")
def tiny_tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's tokenizer alone; needs neither torch nor transformers."""
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer_files(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_shape(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model without its weights: tokenizer and config.json; needs no torch."""
    folder = tmp_path_factory.mktemp("shape")
    make_tokenizer_files(folder)
    (folder / "config.json").write_text(json.dumps(SHAPE), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 2 layers and width 64, whole on disk."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny") / "tiny-llama"
    make_tokenizer_files(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        **SHAPE, max_position_embeddings=2048, bos_token_id=1, eos_token_id=2, pad_token_id=2, initializer_range=0.2
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter of the tiny model with weights far from zero."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_model),
        LoraConfig(r=4, lora_alpha=8, target_modules=modules, task_type="CAUSAL_LM"),
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_merged(tiny_model: Path, tiny_adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both merged."""
    from noesis.core.config import Quantization
    from noesis.release.merge_weights import merge

    target = tmp_path_factory.mktemp("merged") / "m"
    merge(
        tiny_model, tiny_adapter, target, quantization=Quantization(load_in_4bit=False), dtype="bfloat16", card="# card"
    )
    return target


@pytest.fixture
def control_plane() -> Iterator[ControlPlane]:
    """Modal's service on loopback: see tests/helpers/modal_local/README.md."""
    from helpers.modal_local import ControlPlane

    with ControlPlane() as plane:
        yield plane


@pytest.fixture
def quiet_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of this test's own."""
    monkeypatch.setenv("NOESIS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def small_project(tmp_path: Path) -> Project:
    """A small project in a folder of its own."""
    return small_project_in(tmp_path / "project")
