"""What one process of the tests has compiled the others load, train.py and pytest-xdist's too, and the next tests.

The key of an entry holds the program, the compiler with its options, and what the processor can do.
"""

import contextlib
import os
import shutil
import zlib
from pathlib import Path

from rpd_jax.run.compiled import FOLDER

_KEPT = Path(__file__).parents[1] / ".pytest_cache" / "compiled"
_CHECKED = _KEPT / "checked"  # entries that were written before it are whole
_MOST = 1 << 30  # bytes


def keep_programs() -> None:
    """Has JAX keep what it compiles, unless JAX_COMPILATION_CACHE_DIR names a folder already."""
    if FOLDER in os.environ:
        return
    if sum(file.stat().st_size for file in _KEPT.glob("*")) > _MOST:
        shutil.rmtree(_KEPT, ignore_errors=True)
    if _KEPT.is_dir():
        checked = _CHECKED.stat().st_mtime if _CHECKED.exists() else 0.0
        _CHECKED.touch()
        for entry in _KEPT.glob("*-cache"):
            with contextlib.suppress(OSError):
                if entry.stat().st_mtime >= checked:
                    _remove_if_cut_short(entry)
    os.environ[FOLDER] = str(_KEPT)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


def _remove_if_cut_short(entry: Path) -> None:
    try:
        zlib.decompress(entry.read_bytes())
    except zlib.error:  # a process was killed while it wrote it
        entry.unlink()
