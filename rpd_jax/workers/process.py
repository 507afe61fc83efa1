"""How a child process ended, in words. Imports no JAX."""

import signal
import subprocess


def describe_end(process: subprocess.Popen, if_killed: str) -> str:
    """What became of a child that no longer answers, as the end of a sentence about it; waits at most 5 s for it.

    Args:
        process: the child.
        if_killed: the mend to name where SIGKILL ended it, as the kernel does when memory runs out.
    """
    try:
        code = process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        return "closed its connection"
    if code < 0:
        mend = f" (if memory ran out, {if_killed})" if code == -signal.SIGKILL else ""
        return f"was killed by {signal.Signals(-code).name}{mend}"
    return f"exited with status {code}"
