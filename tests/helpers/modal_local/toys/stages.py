"""Runs first in each container of the fault campaign: stages without torch, and clocks that run faster.

Everything of noesis.cloud is real, and so are the run directory and its ledger; only what a stage computes is a toy. Training
chains hashes, a state for each step, so that its adapter shows whether every step was taken once, from the state before it.
"""

import hashlib
import importlib.abc
import importlib.util
import json
import os
import sys
import time
import types

SPEED = 20.0
CLOCKS = {  # module → its times, which pass SPEED times faster
    "noesis.cloud.container.orchestrator": ("POLL_S", "OPTIONAL_S"),
    "noesis.cloud.patience": ("PATIENCE_S", "FIRST_PAUSE_S", "LONGEST_PAUSE_S", "OPEN_FILES_S"),
    "noesis.cloud.volume.lease": ("LASTS_S", "LEAVING_S", "RENEW_S", "SETTLE_S"),
    "noesis.cloud.volume.writer": ("LASTS_S", "BEAT_S", "GRACE_S"),
}
STEPS, STEP_S = 6, 0.25
PREFERENCE = {
    "examples": 3,
    "base": {"held_out_loss": 2.0, "preference_accuracy": 0.0, "preferred": 0, "interval_95": [0.0, 0.6], "mean_margin": 0.0},
    "tuned": {"held_out_loss": 1.0, "preference_accuracy": 1.0, "preferred": 3, "interval_95": [0.4, 1.0], "mean_margin": 1.0},
    "by_example": [],
}  # fmt: skip


class Session:
    """A run with its settings, as the stages share it."""

    def __init__(self, run, config):
        self.run, self.config = run, config
        run.usd_per_s = 0.001


class Result(dict):
    def to_json(self):
        return dict(self)


def reopen_run(path, fetch=False):
    from noesis.run.directory import load_run

    run = load_run(path)
    return Session(run, run.config())


def start_run(project, config, path, dataset, *, archive_to, resume, fresh):
    from noesis.core.files import write_text
    from noesis.run.directory import open_run
    from noesis.run.manifest import Identity

    identity = Identity(config.digest(), "data", "constitution", config.training.model, "revision")
    run = open_run(path, identity, config, fresh=fresh, archive_to=archive_to)
    file = run.path / "data" / "train.jsonl"
    run.perform("export", lambda: write_text(file, "{}\n") or {"rows": 1}, lambda: [file])
    return Session(run, config)


def run_plan(s):
    s.run.perform("plan", lambda: {"steps": STEPS, "usd": 0.1, "stages": []}, list)


def run_train(s):
    return Result(
        s.run.perform("train", lambda: _train(s.run), lambda: _files(s.run.path, "checkpoints", "metrics.jsonl"))
    )


def _train(run):
    from noesis.core.files import new_folder, write_text

    resume, metrics = run.path / "checkpoints" / "resume", run.path / "metrics.jsonl"
    done = max((int(p.name.split("-")[1]) for p in resume.glob("checkpoint-[0-9]*")), default=0)
    state = (resume / f"checkpoint-{done}" / "state").read_text() if done else "begin"
    rows = metrics.read_text().splitlines()[:done] if metrics.exists() else []
    for step in range(done + 1, STEPS + 1):
        print(f"STEP {step} {os.environ['MODAL_TASK_ID']}", flush=True)
        time.sleep(STEP_S)
        state = hashlib.sha256(f"{state} {step}".encode()).hexdigest()
        rows.append(
            json.dumps({"step": step, "epoch": 2 * step / STEPS, "loss": 1.0, "tokens": step, "tokens_per_s": 1.0})
        )
        write_text(metrics, "\n".join(rows) + "\n")
        if step % 3 == 0:
            with new_folder(run.path / "checkpoints" / f"epoch_{step // 3 - 1}") as folder:
                write_text(folder / "adapter_model.safetensors", state)
        with new_folder(resume / f"checkpoint-{step}") as folder:
            write_text(folder / "state", state)
    return {"epochs": 2, "seconds": 1.0}


def run_judge(s, *, again=False, no_trial=None):
    def work():
        from noesis.core.files import write_text

        write_text(s.run.path / "tribunal" / "summary.json", "{}")
        return {"preference": PREFERENCE, "court": {"verdict": "UNDECIDED", "reason": "a toy"}}

    return Result(s.run.perform("judge", work, lambda: _files(s.run.path, "tribunal/summary.json"), again=again))


def judge_copy(s, epoch):
    from noesis.cloud.volume.notes import JudgedEpoch
    from noesis.tribunal.heldout import Preference

    known = {entry.id for entry in s.run.manifest.ledger}
    s.run.perform("judge_epoch", dict, list)
    return JudgedEpoch(
        epoch, Preference.from_json(PREFERENCE), tuple(e for e in s.run.manifest.ledger if e.id not in known)
    )


def copied(stage, folder, name):
    def run_stage(s, *, again=False, kinds=None):
        def work():
            from noesis.core.files import write_text

            write_text(s.run.path / folder / name, (s.run.adapter() / "adapter_model.safetensors").read_text())
            return {}

        return Result(s.run.perform(stage, work, lambda: _files(s.run.path, f"{folder}/{name}"), again=again))

    return run_stage


def _files(root, *names):
    places = [root / name for name in names]
    return [f for p in places for f in ([p] if p.is_file() else sorted(x for x in p.rglob("*") if x.is_file()))]


EXPORTS = {"from_exports": lambda folder, project: None, "would_continue": lambda *_: True}


def stub(name, **content):
    module = types.ModuleType(name)
    module.__dict__.update(content)
    sys.modules[name] = module


stub("noesis.pipeline.session", reopen_run=reopen_run, RunSession=Session)
stub("noesis.pipeline.start_run", start_run=start_run, **EXPORTS)
stub("noesis.pipeline.stages.plan", run_plan=run_plan, plan_without_run=None)
stub("noesis.pipeline.stages.train", run_train=run_train)
stub("noesis.pipeline.stages.choose", run_choose=lambda s, scorer: None, BASE="base")
stub("noesis.pipeline.stages.dial", run_dial=lambda s, tribunal: None)
stub("noesis.pipeline.stages.trial", checkpoint_scorer=None)
stub("noesis.pipeline.stages.judge", run_judge=run_judge)
stub("noesis.pipeline.stages.merge", run_merge=copied("merge", "merged/noesis-philosopher-v1", "model.safetensors"))
stub("noesis.pipeline.stages.gguf", run_gguf=copied("gguf", "gguf", "noesis-philosopher-v1-f16.gguf"))
stub("noesis.pipeline.stages.report", run_report=copied("report", ".", "report.html"))


def adapt(module):
    """Change a module of noesis.cloud as soon as it is imported."""
    name = module.__name__
    for constant in CLOCKS.get(name, ()):
        setattr(module, constant, getattr(module, constant) / SPEED)
    if name == "noesis.cloud.patience":
        module.patiently.__kwdefaults__["patience_s"] = module.PATIENCE_S
    elif name == "noesis.cloud.volume.sync":
        module.publishing.__wrapped__.__kwdefaults__.update(check_s=0.1, publish_s=60.0 / SPEED)
    elif name == "noesis.cloud.container.stages":
        module._judge_copy, module._publish_scores = judge_copy, lambda copy, root, epoch: None
    elif name == "noesis.llm.hub":
        module.find_model = lambda model, revision=None: None


class Adapter(importlib.abc.MetaPathFinder):
    def __init__(self):
        self.waiting = {*CLOCKS, "noesis.cloud.volume.sync", "noesis.cloud.container.stages", "noesis.llm.hub"}

    def find_spec(self, name, path, target=None):
        if name not in self.waiting:
            return None
        self.waiting.remove(name)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            adapt(module)

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Adapter())
