"""Files that are whole or not there: a kill or a full disk leaves what was there before."""

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields another name beside `path`, with its ending, to write to; it becomes `path` if the `with` block ends well.

    What was written is on the disk by then. The folder is made if missing. An OSError names `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.stem}.new{path.suffix}")
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
