"""How many of the machine's cores this process may use, and how many threads XLA computes with on a CPU."""

import os


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def xla_threads() -> int:
    """Threads of XLA's pools on a CPU: NPROC, as XLA itself reads it, or one for each core."""
    given = os.environ.get("NPROC", "")
    return max(int(given), 1) if given.isdecimal() else usable_cores()
