"""What processes cost: memory and CPU time, as Linux's /proc tells."""

import os

NAN = float("nan")


def proportional_mib(pid: int) -> float:
    """Returns the MiB of a process, pages shared with others divided among them; NaN where /proc does not tell."""
    return _smaps_mib(pid, "Pss:")


def anonymous_mib(pid: int) -> float:
    """Returns the MiB that a process has allocated, which other processes do not change; NaN as above."""
    return _smaps_mib(pid, "Anonymous:")


def peak_mib(pid: int) -> float:
    """Returns the most MiB that a process had in memory at a time; NaN where /proc does not tell."""
    try:
        with open(f"/proc/{pid}/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmHWM:")) / 1024
    except (OSError, StopIteration):
        return NAN


def _smaps_mib(pid: int, field: str) -> float:
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            return next(int(line.split()[1]) for line in file if line.startswith(field)) / 1024
    except (OSError, StopIteration):
        return NAN


def cpu_seconds(pid: int) -> float:
    """Returns the seconds that all threads of a process have computed; NaN where /proc does not tell."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            # The second field, the program's name in brackets, may hold spaces.
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return NAN
    user, system = map(int, fields[11:13])
    return (user + system) / os.sysconf("SC_CLK_TCK")
