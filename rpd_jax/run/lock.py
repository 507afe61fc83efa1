"""One process at a time works on a run directory."""

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rpd_jax.errors import UserError

LOCK_FILE = ".lock"


@contextlib.contextmanager
def hold(workdir: str | Path, say: Callable[[str], None] = print) -> Iterator[None]:
    """Keeps other processes from the run directory `workdir`, made if missing, inside the `with` block.

    The lock is the system's (POSIX, `fcntl`): it goes with its process, however that ends, its child processes do not
    inherit it, and it works on network file systems that know locks. The file itself stays and tells who wrote it last.

    Args:
        workdir: the run's directory.
        say: called with a sentence if the file system knows no locks.

    Raises:
        UserError: another process holds it, or the directory cannot be written.
    """
    workdir = Path(workdir).absolute()
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(workdir / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"Cannot write to {workdir} ({error.strerror}): choose another --workdir.") from error
    try:
        _take(descriptor, workdir, say)
        yield
    finally:
        os.close(descriptor)  # gives the lock back


def is_held(workdir: Path) -> bool:
    """True if another process holds `workdir`, as far as its file system tells; the holder itself must not ask."""
    try:
        descriptor = os.open(workdir / LOCK_FILE, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EACCES, errno.EAGAIN)
    finally:
        os.close(descriptor)
    return False


def _take(descriptor: int, workdir: Path, say: Callable[[str], None]) -> None:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise UserError(
                f"{workdir} is in use by {_holder(descriptor)}: wait until that has ended, stop it, or choose another "
                "--workdir."
            ) from None
        say(f"The file system of {workdir} knows no locks ({error.strerror}): start no second process on it.")
        return
    since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    with contextlib.suppress(OSError):  # who holds it is not worth a run: a full disk shows elsewhere
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()} since {since}\n".encode(), 0)


def _holder(descriptor: int) -> str:
    with contextlib.suppress(OSError):
        text = os.pread(descriptor, 300, 0).decode(errors="replace").strip()
        if text:
            return text
    return "another process"
