"""Numbered pieces of work in the simulator, by worker processes; results in the order of their numbers."""

import logging
import multiprocessing
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from rpd_jax.cores import usable_cores
from rpd_jax.errors import UserError

# How long a worker waits before it looks whether its parent still lives, seconds.
_PATIENCE = 5.0
_FEEDER = "QueueFeederThread"  # multiprocessing's name of it


def in_order(
    prepare: Callable[[], Callable[[int], Any]],
    first: int,
    last: int | None = None,
    workers: int | None = None,
    check: Callable[[], None] = lambda: None,
) -> Iterator[Any]:
    """Yields f(first), f(first + 1), ... computed by worker processes, whatever order they finish in.

    Args:
        prepare: makes f; called once in each worker; must be picklable.
        first, last: the numbers; without end if `last` is None.
        workers: processes; None for one per core that this process may use.
        check: called each second at least; what it raises ends the work.

    Raises:
        UserError: raised by `prepare` or f, or a worker died.
    """
    # The simulator is imported once for all of them, in a process that they are forked from.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rpd_jax.envs.simulator_imports"])
    count = workers or usable_cores()
    numbers, results = context.Queue(), context.Queue()
    # At the end nobody reads what is left in it; and an interrupt within `put` can leave its thread waiting for ever,
    # which the interpreter would wait for.
    numbers.cancel_join_thread()
    processes = [context.Process(target=_work, args=(prepare, numbers, results), daemon=True) for _ in range(count)]
    # Ctrl-C, or a terminal that is closed, reaches the whole group of processes; it is the parent's to act on, and its
    # workers inherit what it blocks.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        for process in processes:
            process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        sent, wanted, early = first, first, {}
        while last is None or wanted <= last:
            while sent < wanted + 2 * count + len(early) and (last is None or sent <= last):
                numbers.put(sent)
                sent += 1
            while wanted not in early:
                number, result = _wait_for(results, processes, check)
                early[number] = result
            yield early.pop(wanted)
            wanted += 1
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()
        _end_feeding(numbers)


def _end_feeding(numbers) -> None:
    """Waits for the thread that feeds a queue, though not for ever.

    It holds the last references to two semaphores: ended with the interpreter, it would leave them to a helper of
    Python's that complains of a leak.
    """
    numbers.close()
    for thread in threading.enumerate():
        if thread.name == _FEEDER:
            thread.join(timeout=1.0)


def _wait_for(results, processes, check) -> tuple[int, Any]:
    while True:
        check()
        try:
            number, result = results.get(timeout=1.0)
        except queue.Empty:
            for process in processes:
                if process.exitcode not in (None, 0):
                    raise UserError(
                        f"A worker process died with exit code {process.exitcode} (its own message is above): "
                        "run the same command again to continue."
                    ) from None
            continue
        if isinstance(result, UserError):
            raise result
        return number, result


def _work(prepare, numbers, results) -> None:
    import torch

    torch.set_num_threads(1)
    try:
        function = prepare()
    except UserError as error:
        results.put((-1, error))
        return
    # ManiSkill, whose logger has this name, warns of the same unset pose at every rebuilt scene.
    logging.getLogger("mani_skill ").setLevel(logging.ERROR)
    while True:
        try:
            number = numbers.get(timeout=_PATIENCE)
        except queue.Empty:
            parent = multiprocessing.parent_process()
            if parent is not None and not parent.is_alive():
                results.cancel_join_thread()  # nobody will read what is still in it
                return
            continue
        try:
            results.put((number, function(number)))
        except UserError as error:
            results.put((number, error))
