"""Which of torchrun's processes, and of its machines, this one is.

Page: https://docs.pytorch.org/docs/stable/elastic/run.html
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass

NODES = "NOESIS_NODES"  # environment variable
RENDEZVOUS_PORT, JOBS_PORT = 29500, 29501


def is_worker() -> bool:
    """Whether this process was started by torchrun."""
    return "LOCAL_RANK" in os.environ


def local_rank() -> int:
    """This process's GPU on this host; 0 without torchrun."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_main_process() -> bool:
    """Whether this is the process that writes files; true without torchrun."""
    return os.environ.get("RANK", "0") == "0"


@dataclass(frozen=True)
class Nodes:
    """This machine's place: its number from 0, how many there are, and the address of number 0."""

    rank: int = 0
    count: int = 1
    address: str = "127.0.0.1"
    ports: tuple[int, int] = (RENDEZVOUS_PORT, JOBS_PORT)

    @classmethod
    def here(cls) -> Nodes:
        """As NOESIS_NODES says; alone without it."""
        found = json.loads(os.environ.get(NODES, "{}"))
        return cls(**found | {"ports": tuple(found["ports"])}) if found else cls()

    def enter(self) -> None:
        """Let this process and those that it starts know their place."""
        os.environ[NODES] = json.dumps(asdict(self))

    def arguments(self, gpus: int) -> list[str]:
        """Torchrun's, for `gpus` processes on all machines together."""
        if self.count == 1:
            return ["--standalone", "--nproc-per-node", str(gpus)]
        place = ["--nnodes", str(self.count), "--node-rank", str(self.rank)]
        meet = ["--master-addr", self.address, "--master-port", str(self.ports[0])]
        return [*place, *meet, "--nproc-per-node", str(gpus // self.count)]
