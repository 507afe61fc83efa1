"""What demos need of a disk: room, asked for before HDF5 could meet a full one."""

import errno
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from rpd_jax.errors import UserError


@contextmanager
def room_needed(path: Path, kept: str) -> Iterator[None]:
    """Turns an OSError of the block, which writes `path`, into a UserError; `kept` says what is whole all the same."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        mend = "make room" if full else "make it writable"
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}); {kept}: {mend}, and the same command goes on."
        ) from None


@contextmanager
def h5_in_memory() -> Iterator[tuple[h5py.File, io.BytesIO]]:
    """An h5 file to write to in memory, and the memory, whole after the block.

    HDF5 must never meet a full disk: where it cannot flush, closing the file ends the process.
    """
    memory = io.BytesIO()
    with h5py.File(memory, "w") as file:
        yield file, memory


def reserve(path: Path, size: int) -> None:
    """Makes sure that an h5 file can grow to `size` bytes; HDF5 cuts it to what it uses when it closes it.

    Raises:
        OSError: there is no room.
    """
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # a file system without reservations
                raise
