"""docs/modal.md and docs/modal.pt-BR.md: the same commands in both, and each is run, here or in test_modal.py, which has the seed guide's."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.modal_guide import GUIDE, SMALLER
from helpers.modal_local import ControlPlane
from helpers.project import ROOT

NOT_RUN = {"pip install modal", "modal token new"}  # they install, or open a browser
ELSEWHERE = {
    "modal run scripts/modal_train.py --epochs 1",
    "modal run scripts/modal_train.py --epochs 3",
    "modal run scripts/modal_train.py --test-only",
    "modal run scripts/modal_train.py --merge-only",
    "modal app logs noesis-philosophical-training",
    "modal app stats noesis-philosophical-training",
}


def commands(page: str) -> list[str]:
    """What stands in the page's blocks of commands, in order."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def test_both_languages_hold_the_same_commands_and_those_of_the_seed_guide():
    assert commands("modal.md") == commands("modal.pt-BR.md")
    assert set(commands("modal.md")) >= ELSEWHERE | NOT_RUN
    seed = {re.sub(r"hf_\w+", "hf_", line) for line in GUIDE.strip().splitlines()}
    assert seed <= {re.sub(r"hf_\w+", "hf_", line) for line in commands("modal.md")}
    assert {re.sub(r"hf_\w+", "hf_", line) for line in ELSEWHERE} <= seed


@pytest.mark.slow
def test_each_command_of_the_guide_works_in_its_order(tmp_path: Path, tiny_model: Path):
    clone = tmp_path / "noesis"
    for name in ("src", "scripts", "data"):
        shutil.copytree(
            ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "exports")
        )
    for file in ROOT.glob("constraints*.txt"):
        shutil.copy(file, clone)
    for file in (clone / "data" / "training").glob("philosophical*/*.jsonl"):
        file.write_text("".join(file.read_text(encoding="utf-8").splitlines(keepends=True)[:2]), encoding="utf-8")
    for file in (clone / "data" / "training").glob("*_config.yaml"):
        text = file.read_text(encoding="utf-8").replace("meta-llama/Llama-3.1-8B-Instruct", str(tiny_model))
        for pattern, line in SMALLER.items():
            text = re.sub(pattern, line, text, flags=re.M)
        file.write_text(text, encoding="utf-8")

    with ControlPlane(visible=[tiny_model], hidden=[clone]) as plane:
        environment = plane.env | {"PYTHONPATH": str(clone / "src")}

        def typed(line: str) -> str:
            program, *words = shlex.split(line)
            real = {
                "python": [sys.executable],
                "noesis": [sys.executable, "-m", "noesis"],
                "modal": [sys.executable, "-m", "modal"],
            }
            done = subprocess.run(
                [*real.get(program, [program]), *words], cwd=clone, env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, f"{line}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
            return done.stdout

        said = {line: typed(line) for line in commands("modal.pt-BR.md") if line not in NOT_RUN | ELSEWHERE}
        assert "Nothing was started" in said["modal run scripts/modal_train.py --dry-run"]
        trained = said["modal run --detach scripts/modal_train.py --epochs 3"]
        for words in (
            "epoch_0  held-out loss",
            "epoch_2  held-out loss",
            "Tribunal: UNDECIDED",
            "in all",
            "/merged/noesis-philosopher-v1",
        ):
            assert words in trained, words
        assert "close this terminal" not in trained
        assert "the one exported here" not in said["noesis cloud doctor"].split("dataset on the volume")[0]
        assert (
            "done; done: export, plan, train, choose, judge, merge, gguf, report" in said["noesis cloud watch --once"]
        )
        assert "metered" in said["noesis cloud cost"]

        # pulled again, only what no hash is known of is copied; a broken file is copied again
        pulled = clone / "runs" / "noesis-philosopher-v1"
        weights = pulled / "merged" / "noesis-philosopher-v1" / "model.safetensors"
        assert (
            weights.read_bytes()
            == (clone / "model_output" / "noesis-philosopher-v1" / "model.safetensors").read_bytes()
        )
        again = json.loads(typed(f"noesis cloud pull {pulled} --json"))
        assert again["already_here"] > 15
        assert again["files"] < again["already_here"]
        weights.write_bytes(b"broken")
        assert json.loads(typed(f"noesis cloud pull {pulled} --json"))["files"] == again["files"] + 1
        assert "all match" in typed(f"noesis verify {pulled}")
