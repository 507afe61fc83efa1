"""The processes of one run: one by itself, or several, on one host or many, that `jax.distributed` connects."""

import contextlib
import itertools
import os
from collections.abc import Iterator

import jax

from rpd_jax.errors import UserError
from rpd_jax.run.peers import HEARTBEAT_TIMEOUT, Peers
from rpd_jax.run.stop import Interrupted

_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")

_peers: Peers | None = None
_exchanges = itertools.count()
_common: BaseException | None = None  # what `together` raised last, in all processes


def connect() -> None:
    """Connects the processes of a run; must come before JAX's first use, and does nothing in a run of one process.

    Several are found under Slurm (`srun` with more than one task), or by the environment variables
    JAX_COORDINATOR_ADDRESS (host:port of the first one), JAX_NUM_PROCESSES and JAX_PROCESS_ID.

    Raises:
        UserError: only some of the variables are set, or the others could not be reached.
    """
    global _peers
    given = [name for name in _VARIABLES if os.environ.get(name)]
    under_slurm = int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in os.environ
    if jax.distributed.is_initialized() or not (given or under_slurm):
        return
    if given and len(given) < len(_VARIABLES):
        raise UserError(f"{', '.join(given)} of {', '.join(_VARIABLES)} are set: set all of them, or none.")
    # Else JAX aborts all processes, with a stack trace of C++, when one of them is gone.
    jax.config.update("jax_enable_recoverability", True)
    timeouts = {"heartbeat_timeout_seconds": HEARTBEAT_TIMEOUT}
    try:
        if given:
            address, count, index = (os.environ[name] for name in _VARIABLES)
            jax.distributed.initialize(address, int(count), int(index), **timeouts)
        else:
            jax.distributed.initialize(**timeouts)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"The processes of this run did not find each other ({str(error).splitlines()[0]}).") from error
    _peers = Peers()


@contextlib.contextmanager
def connected() -> Iterator[None]:
    """Connects the processes of a run for the `with` block, and keeps them until all have ended it; see `connect`."""
    global _peers
    connect()
    try:
        with ending_together():
            yield
            wait_for_all()
    finally:
        if _peers is not None:
            _peers.leave()
            _peers = None


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """Whatever ends the `with` block of one process early ends the others too, wherever they wait for it.

    That process tells the others at once, so that this block belongs inside of those that clean up. In the others
    PeerFailed is raised where they look for it (`together` and all that waits here), or takes the place of the error of
    a collective. One that hangs in a collective is ended, with the same sentence.
    """
    try:
        yield
    except BaseException as error:
        if _peers is not None:
            _peers.raised(error)
        raise


def is_first() -> bool:
    """True in the process that evaluates, logs and talks."""
    return jax.process_index() == 0


def own_key(key: jax.Array) -> jax.Array:
    """The key of this process's own random numbers; in the first process `key` itself."""
    return key if is_first() else jax.random.fold_in(key, jax.process_index())


def exchange(text: str) -> list[str]:
    """The texts that all processes gave, in their order; returns when all have called it, however long that takes.

    Raises:
        PeerFailed: one of them failed or is gone.
    """
    if _peers is None:
        return [text]
    number, client = next(_exchanges), _peers.client
    key = "rpd_jax/exchange/{}/{}".format
    client.key_value_set(key(number, _peers.index), text)
    texts = []
    while len(texts) < _peers.count:
        try:
            texts.append(client.blocking_key_value_get(key(number, len(texts)), 1000))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
            _peers.check()
    if number:  # all have read the one before
        client.key_value_delete(key(number - 1, _peers.index))
    return texts


def wait_for_all() -> None:
    """Returns when all processes have called it; raises PeerFailed if one of them failed or is gone."""
    exchange("-")


@contextlib.contextmanager
def together() -> Iterator[None]:
    """What ends the `with` block of one process ends it in all.

    Interrupted and UserError are raised in all of them, so that they can save together; at any other exception, which
    is a mistake of ours, PeerFailed is raised in the others. All must enter; the block must hold no work of all devices
    together.
    """
    global _common
    reason = None
    try:
        yield
    except (Interrupted, UserError) as error:
        reason = error
    codes = exchange("went on" if reason is None else "interrupted" if isinstance(reason, Interrupted) else "failed")
    if reason is None and "failed" in codes:
        reason = UserError(f"Process {codes.index('failed')} of this run failed: see what it printed.")
    elif reason is None and "interrupted" in codes:
        reason = Interrupted("stop of another process")
    if reason is not None:
        _common = reason
        raise reason


def is_common(error: BaseException) -> bool:
    """True if all processes were ended by it at the same point, so that they can still save together."""
    return _peers is None or error is _common


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
    return float(exchange(repr(float(value)))[0])
