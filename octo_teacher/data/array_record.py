"""ArrayRecord files, read in a process of its own: their library kills the process where a file is damaged."""

import struct
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from rpd_jax.errors import UserError


def read_array_records(path: Path) -> Iterator[bytes]:
    """Yields the records of an ArrayRecord file; raises UserError if it is damaged."""
    with _start(str(path)) as process:
        try:
            count = _number(process, path)
            for _ in range(count):
                size = _number(process, path)
                record = process.stdout.read(size)
                if len(record) < size:
                    raise _damaged(process, path)
                yield record
        finally:
            process.kill()


def count_array_records(path: Path) -> int:
    """The number of records in an ArrayRecord file; raises UserError if it is damaged."""
    with _start(str(path), "count") as process:
        return _number(process, path)


def _start(*arguments: str) -> subprocess.Popen:
    with warnings.catch_warnings():
        # JAX warns of every fork; this one only starts another program.
        warnings.filterwarnings("ignore", message=r"os\.fork\(\) was called", category=RuntimeWarning)
        command = [sys.executable, "-m", "octo_teacher.data.array_record", *arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def _number(process: subprocess.Popen, path: Path) -> int:
    data = process.stdout.read(8)
    if len(data) < 8:
        raise _damaged(process, path)
    return struct.unpack("<Q", data)[0]


def _damaged(process: subprocess.Popen, path: Path) -> UserError:
    process.kill()
    words = process.stderr.read().decode(errors="replace").split()
    told = f" ({' '.join(words[-12:])})" if words else ""
    return UserError(f"{path} is not a readable ArrayRecord file{told}: copy it again.")


def _write_records(path: str, only_count: bool) -> None:
    """The other process: the number of records to stdout, then each with its size before it."""
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        reader = ArrayRecordReader(path)
        count = reader.num_records()
        out = sys.stdout.buffer
        out.write(struct.pack("<Q", count))
        for number in range(0 if only_count else count):
            (record,) = reader.read([number])
            out.write(struct.pack("<Q", len(record)) + record)
        out.flush()
    except Exception as error:
        sys.exit(str(error))


if __name__ == "__main__":
    _write_records(sys.argv[1], len(sys.argv) > 2)
