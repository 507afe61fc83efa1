"""The one error type for what a user can cause and mend, and what its sentences need to know."""

import difflib
import errno
import os
from collections.abc import Iterable

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SAID_BY_LIBRARIES = {"errno = 28": errno.ENOSPC, "ENOSPC": errno.ENOSPC} | {os.strerror(n): n for n in _NO_ROOM}


class UserError(Exception):
    """A mistake or missing thing on the user's side.

    The message is one sentence that names the cause and the mend. Entry points print it without
    a stack trace and exit with `status`.

    Args:
        message: the sentence.
        details: what somebody else's program said at length; the run directory keeps it.
    """

    status = 2

    def __init__(self, message: str, details: str = ""):
        super().__init__(message)
        self.details = details


def nearest(word: str, words: Iterable[str]) -> str:
    """The one of `words` that a mistyped one was probably meant to be."""
    return difflib.get_close_matches(word, list(words), n=1, cutoff=0.0)[0]


def out_of_memory(error: BaseException) -> bool:
    """True if JAX, or Python, could not get memory, on a device or on the host."""
    # JAX's error has no type of its own for it, and sometimes calls it internal.
    words = ("RESOURCE_EXHAUSTED", "Out of memory")
    return isinstance(error, MemoryError) or any(text in str(error) for text in words)


def no_room(error: BaseException | None) -> str | None:
    """The system's words if a full disk, a quota or a file size limit is behind `error`, else None.

    Libraries that are not written in Python (HDF5, TensorStore) have no errno left by then: only their text tells.
    """
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            return os.strerror(error.errno)
        for words, number in _SAID_BY_LIBRARIES.items():
            if words in str(error):
                return os.strerror(number)
        error = error.__cause__ or error.__context__
    return None
