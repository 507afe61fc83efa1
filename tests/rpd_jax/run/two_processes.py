"""A program of test_processes.py: one of two processes ends early, the other waits for it.

python two_processes.py ADDRESS PROCESS_ID WHO_ENDS HOW_IT_ENDS WHERE_THE_OTHER_WAITS, under the guards of train.py
"""

import os
import signal
import sys
import time

address, index, who, how, where = sys.argv[1:]
cluster = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": index}
os.environ |= cluster

import jax  # noqa: E402
import numpy as np  # noqa: E402
from jax.experimental import multihost_utils  # noqa: E402

from rpd_jax.command.line import run_command  # noqa: E402
from rpd_jax.errors import UserError  # noqa: E402
from rpd_jax.run import processes  # noqa: E402


def end() -> None:
    time.sleep(1.0)
    if how == "raises":
        raise RuntimeError("a mistake of ours")
    if how == "gives up":
        raise UserError("a mistake of the user")
    if how == "is killed":
        os.kill(os.getpid(), signal.SIGKILL)


def wait() -> None:
    if where == "together":
        with processes.together():
            pass
    elif where == "collective":
        multihost_utils.process_allgather(np.int32(1))
    elif where == "for good":  # as in a collective that never gives up
        time.sleep(1000)


def main() -> None:
    with processes.connected(), processes.ending_together():
        multihost_utils.process_allgather(np.int32(1))
        assert jax.process_count() == 2 and processes.exchange(index) == ["0", "1"]
        if how == "raises inside together":
            with processes.together():
                if index == who:
                    raise RuntimeError("a mistake of ours")
        elif how != "ends well":
            end() if index == who else wait()


if __name__ == "__main__":
    run_command(main, sys.argv[:1])
