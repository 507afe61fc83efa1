"""Programs that XLA has compiled are kept for the next run: a third of a short one is spent on compiling. No JAX here.

JAX's own persistent compilation cache, in this project's cache folder. Its keys hold the program, the compiler and its
options, and the processor or GPU with what it can do, so that machines may share a home. Its own locks keep processes
apart; an entry is one file that is written first and another one that tells when it was used.
"""

import contextlib
import os
from pathlib import Path

from rpd_jax.run.cache import cache_folder

FOLDER = "JAX_COMPILATION_CACHE_DIR"
# Bytes: the entries that were used least recently go. A run without a GPU keeps 6 MB.
_MOST = 2 << 30
# Seconds of compiling. JAX would only keep what takes a second; of a run's 126 programs 94 take less than a tenth, and
# together 2.5 s where loading them takes 0.5.
_WORTH_KEEPING = 0.0


def keep_compiled() -> None:
    """Has JAX keep what it compiles, unless JAX_COMPILATION_CACHE_DIR names a folder already (empty: none is kept).

    To be called before JAX is imported; child processes inherit it. Where the folder cannot be written to nothing is
    kept.
    """
    if FOLDER in os.environ:
        return
    folder = cache_folder("compiled")
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        _remove_incomplete(folder)
        if os.access(folder, os.W_OK | os.X_OK):
            os.environ[FOLDER] = str(folder)
            os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(_MOST))
            os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", str(_WORTH_KEEPING))


def _remove_incomplete(folder: Path) -> None:
    """Removes what a process left that was killed while it wrote: an entry whose second file is not there."""
    for entry in folder.glob("*-cache"):
        if not entry.with_name(entry.name.removesuffix("-cache") + "-atime").exists():
            entry.unlink(missing_ok=True)
