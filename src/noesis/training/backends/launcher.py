"""torchrun, quiet about a stop that was asked for, and gone with the command that started it.

python -m noesis.training.backends.launcher PID-OF-THE-COMMAND TORCHRUN'S ARGUMENTS...
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

from noesis.core.console import guard_terminal
from noesis.core.i18n import _

LOOKS_S = 0.5  # between two looks at whether the command is still there


def main(command: int, arguments: list[str]) -> None:
    """Run torchrun to its end; exit with 1 and one line if a process failed, 128 and the signal if one came."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback either until torchrun handles it
    threading.Thread(target=_leave_with, args=(command,), daemon=True).start()
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        run.run(run.parse_args(arguments))
    except SignalException as stopped:
        sys.exit(128 + stopped.sigval)
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        if failure.exitcode < 0:
            sys.exit(_("process {rank} of training ended by {name}", rank=rank, name=failure.signal_name()))
        sys.exit(_("process {rank} of training ended with code {code}", rank=rank, code=failure.exitcode))


def _leave_with(command: int) -> None:
    """Stop the processes when the command is gone, which had no time to: they would hold the GPUs for ever."""
    while os.getppid() == command:
        time.sleep(LOOKS_S)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    guard_terminal()
    main(int(sys.argv[1]), sys.argv[2:])
