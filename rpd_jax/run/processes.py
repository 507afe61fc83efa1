"""The processes of one run: one by itself, or several, on one host or many, that `jax.distributed` connects."""

import contextlib
import itertools
import os
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from rpd_jax.errors import UserError
from rpd_jax.run.stop import Interrupted

# What one process does alone while the others wait is an evaluation at most.
_LONGEST_WAIT = 6 * 3600  # seconds
_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")

_barriers = itertools.count()


def connect() -> None:
    """Connects the processes of a run; must come before JAX's first use, and does nothing in a run of one process.

    Several are found under Slurm (`srun` with more than one task), or by the environment variables
    JAX_COORDINATOR_ADDRESS (host:port of the first one), JAX_NUM_PROCESSES and JAX_PROCESS_ID.

    Raises:
        UserError: only some of the variables are set, or the others could not be reached.
    """
    given = [name for name in _VARIABLES if os.environ.get(name)]
    under_slurm = int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in os.environ
    if jax.distributed.is_initialized() or not (given or under_slurm):
        return
    if given and len(given) < len(_VARIABLES):
        raise UserError(f"{', '.join(given)} of {', '.join(_VARIABLES)} are set: set all of them, or none.")
    try:
        if given:
            address, count, index = (os.environ[name] for name in _VARIABLES)
            jax.distributed.initialize(address, int(count), int(index))
        else:
            jax.distributed.initialize()
    except (RuntimeError, ValueError) as error:
        raise UserError(f"The processes of this run did not find each other ({str(error).splitlines()[0]}).") from error


def is_first() -> bool:
    """True in the process that evaluates, logs and talks."""
    return jax.process_index() == 0


def own_key(key: jax.Array) -> jax.Array:
    """The key of this process's own random numbers; in the first process `key` itself."""
    return key if is_first() else jax.random.fold_in(key, jax.process_index())


def wait_for_all() -> None:
    """Returns when all processes have called it."""
    if jax.process_count() > 1:
        wait = multihost.get_barrier_sync_fn(processes=set(range(jax.process_count())))
        wait(key=f"rpd_jax/{next(_barriers)}", timeout_ms=1000 * _LONGEST_WAIT)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """What ends the `with` block of one process ends it in all: Interrupted and UserError are raised in all of them.

    So no process waits for one that has left. All must enter; the block must hold no work of all devices together.
    """
    reason = None
    try:
        yield
    except (Interrupted, UserError) as error:
        reason = error
    if jax.process_count() > 1:
        wait_for_all()
        code = 0 if reason is None else 1 if isinstance(reason, Interrupted) else 2
        codes = multihost_utils.process_allgather(np.int32(code))
        if reason is None and codes.max() == 1:
            reason = Interrupted("stop of another process")
        elif reason is None and codes.max() == 2:
            reason = UserError(f"Process {int(codes.argmax())} of this run failed: see what it printed.")
    if reason is not None:
        raise reason


@contextlib.contextmanager
def first_before_others() -> Iterator[None]:
    """The first process runs the `with` block, whatever comes of it; then the others do."""
    if not is_first():
        wait_for_all()
    try:
        yield
    finally:
        if is_first():
            wait_for_all()


def share(value: float) -> float:
    """The first process's `value`, in all of them."""
    return float(multihost_utils.broadcast_one_to_all(np.float32(value))) if jax.process_count() > 1 else value
