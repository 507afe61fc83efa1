"""Files that are whole or not there: a kill or a full disk leaves what was there before."""

import contextlib
import errno
import json
import os
import re
import secrets
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from rpd_jax.errors import UserError, no_room

# Nobody writes at a file for so long.
_LEFT_SECONDS = 3600.0


def check_can_write(folder: Path, option: str = "--output") -> None:
    """Raises UserError, which names the option, if no file can be written to a folder, which need not be there yet.

    A command asks before its work. What it finds is room for a file: how full the disk is shows when it is written.
    """
    place = folder.absolute()
    while not os.path.lexists(place):
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        if no_room(error) is None:
            raise UserError(f"Cannot write to {folder} ({error.strerror}): choose another {option}.") from error


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields another name beside `path`, with its ending, to write to; it becomes `path` if the `with` block ends well.

    What was written is on the disk by then. The folder is made if missing. An OSError names `path`. Several
    processes may do so at once: the last one's file stays. What a killed one left is removed after an hour.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_left_behind(path, _LEFT_SECONDS)
    scratch = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.new{path.suffix}")
    try:
        yield scratch
        sync(scratch)
        os.replace(scratch, path)
    except OSError as error:
        if error.filename in (None, str(scratch)):  # what is written to an open file fails without a name
            error.filename = str(path)
        raise
    finally:
        scratch.unlink(missing_ok=True)


def left_behind(path: Path) -> list[Path]:
    """What processes that were killed while they wrote `path` left beside it, and what others are writing at."""
    ours = re.compile(rf"\.{re.escape(path.stem)}(\.[0-9a-f]{{8}})?\.new{re.escape(path.suffix)}")
    return [found for found in path.parent.glob(".*") if ours.fullmatch(found.name)]


def remove_left_behind(path: Path, seconds: float = 0.0) -> None:
    """Removes what was `left_behind` so many seconds ago; without them nobody else may be writing `path`."""
    for found in left_behind(path):
        with contextlib.suppress(OSError):  # another process removed it
            if time.time() - found.stat().st_mtime >= seconds:
                found.unlink()


def sync(path: Path) -> None:
    """Waits until a file is on the disk; raises OSError if there was no room after all."""
    with path.open("rb") as file:
        try:
            os.fsync(file.fileno())
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # a file system that cannot wait
                raise


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Writes a text or bytes."""
    with replacing(path) as scratch:
        scratch.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: str | Path, values: dict) -> None:
    """Writes `values` as JSON."""
    write_whole(path, json.dumps(values, indent=2) + "\n")
