"""One fault of Modal's control plane in each of many whole runs: each ends as undisturbed, or in one message.

python benchmarks/modal_faults.py --faults 200                        (about 20 s each on two cores)
python benchmarks/modal_faults.py --faults 200 --keep all.jsonl       (the same command again goes on where it stopped)
python benchmarks/modal_faults.py --faults 200 --keep all.jsonl --part 2/5      (a fifth; tallies all in the file)

The real `modal` command, the real container runtime and all of noesis.cloud run against tests/helpers/modal_local; the
stages compute toys instead of a model. The plan of faults is drawn from every (call, caller) that an undisturbed run
shows: refused once, refused for longer than the SDK tries, refused with a status that it does not try again, silent for
a minute, done with its answer lost once and for good; and, every tenth, a container that is preempted or killed while a
second one starts.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))  # helpers/

from helpers.modal_guide import make_clone
from helpers.modal_local import Fault, RpcFault, fault_plan
from helpers.modal_local.toys.campaign import Campaign
from helpers.project import ROOT

CAP_USD = 90.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--part", default="1/1", help="I/N: only that part of them")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once")
    parser.add_argument("--keep", type=Path, help="append each outcome to this file, try only those that it lacks")
    arguments = parser.parse_args()
    part, _, parts = arguments.part.partition("/")
    campaign = Campaign(exported_clone(Path(tempfile.mkdtemp(prefix="noesis-modal-faults-"))))
    reference = campaign.undisturbed()
    print(f"undisturbed: {reference.usd:.2f} USD by the double's clock, {len(campaign.calls)} calls", flush=True)
    head, rows = begin(arguments.keep, campaign.calls, arguments.faults, arguments.seed)
    plan = [
        container_fault(i) if i % 10 == 9 else fault
        for i, fault in enumerate(fault_plan(map(tuple, head["calls"]), head["faults"], head["seed"]))
    ]
    first, end = ((int(part) - 1 + more) * len(plan) // int(parts) for more in (0, 1))
    tried = {row["number"] for row in rows}
    chosen = [(i, plan[i]) for i in range(first, end) if i not in tried]

    def one(numbered: tuple[int, RpcFault | Fault]) -> dict[str, Any]:
        number, fault = numbered
        outcome = campaign.run(fault, overlap=True, dispatch_delay=10.0)
        row = {"number": number, "fault": str(fault), "met": fault.struck, **vars(outcome)}
        print(f"{number:4} {outcome.end:5} {outcome.usd:6.2f} USD {outcome.seconds:5.0f} s  {fault}", flush=True)
        if outcome.said:
            print(f"       {outcome.said[-600:]}", flush=True)
        append(arguments.keep, row)
        return row

    with ThreadPoolExecutor(arguments.jobs) as pool:
        rows += pool.map(one, chosen)
    return tally(head, rows)


def begin(
    keep: Path | None, calls: list[tuple[str, str]], faults: int, seed: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What the plan is drawn from, and the outcomes so far: those of the file, if it has any.

    Raises:
        SystemExit: the file is of another commit or another plan.
    """
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    head: dict[str, Any] = {"commit": described.stdout.strip(), "faults": faults, "seed": seed, "calls": calls}
    if keep is None or not keep.exists():
        append(keep, head)
        return head, []
    kept, *rows = [json.loads(line) for line in keep.read_text(encoding="utf-8").splitlines()]
    for what in ("commit", "faults", "seed"):
        if kept[what] != head[what]:
            raise SystemExit(f"{keep} is of {what} {kept[what]}, and this is {head[what]}: name another file")
    return kept, rows


def append(keep: Path | None, row: dict[str, Any]) -> None:
    if keep is not None:
        with keep.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def exported_clone(place: Path) -> Path:
    """A clone of the project with a few examples, exported."""
    clone = make_clone(place / "noesis")
    command = [sys.executable, "scripts/export_for_modal.py"]
    environment = os.environ | {"PYTHONPATH": str(clone / "src")}
    subprocess.run(command, cwd=clone, env=environment, check=True, capture_output=True)
    return clone


def container_fault(number: int) -> Fault:
    """A container that is preempted, or killed at once, in the middle of its work."""
    function = ("train", "train", "conduct", "judge", "merge")[number // 10 % 5]
    return Fault(function, ("preempt", "kill")[number // 10 % 2], after_commits=1 + number // 10 % 4)


def tally(head: dict[str, Any], rows: list[dict[str, Any]]) -> int:
    """Print the figures of benchmarks/README.md.

    Returns:
        the exit code: 1 where a run was lost.
    """
    ends = collections.Counter(row["end"] for row in rows)
    seconds = [row["seconds"] for row in rows] or [0.0]
    print(f"\ntried         {len(rows)} of {head['faults']} faults, {sum(row['met'] > 0 for row in rows)} of them met")
    print(f"commit        {head['commit']}")
    print(f"same end      {ends['same']}")
    print(f"clear end     {ends['clear']}")
    print(f"lost          {ends['lost']}")
    print(f"worst bill    {max((row['usd'] for row in rows), default=0.0):.2f} USD of {CAP_USD:.2f}")
    print(f"a fault took  {statistics.median(seconds):.0f} s, the slowest {max(seconds):.0f} s")
    return 1 if ends["lost"] else 0


if __name__ == "__main__":
    sys.exit(main())
