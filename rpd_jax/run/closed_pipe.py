"""An output that nobody reads any more."""

import contextlib
import errno
import io
import os
from typing import IO, TextIO


def forget_output(stream: IO) -> None:
    """What a stream did not take is dropped, or Python would try once more at its end, and complain."""
    with contextlib.suppress(OSError, ValueError):  # a test's own output has no descriptor
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class _Terminal(io.FileIO):
    def write(self, data) -> int | None:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
        forget_output(self)
        return len(data)


def outliving_terminal(stream: TextIO) -> TextIO:
    """The same output, or, of a terminal, one that drops what is written after it has been closed.

    SIGHUP says that it was; an error at what is being printed would be in the way of saving.
    """
    if not stream.isatty():
        return stream
    raw = _Terminal(stream.fileno(), "wb", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(raw), stream.encoding, stream.errors, line_buffering=True)
