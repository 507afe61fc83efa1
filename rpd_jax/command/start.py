"""What a command does before its other imports, which take seconds; imports no JAX."""

import atexit
import gc
import os

from rpd_jax.run.compiled import keep_compiled
from rpd_jax.run.stop import listen

# JAX and the libraries beside it make hundreds of thousands of objects that stay, while they are imported and while
# programs are traced: with Python's 700 a tenth of a short run's time goes into looking through them.
OBJECTS_UNTIL_COLLECTION = (50_000, 20, 20)


def start() -> None:
    """Signals end this process as `run.stop` has it, garbage is looked for rarely, and what JAX compiles is kept."""
    listen()
    # A student's orthogonal initialisation is a QR decomposition by SciPy's OpenBLAS, whose threads wait for each other
    # at full speed: where others use the machine too, a second one makes a second of it ten, on both cores.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    gc.set_threshold(*OBJECTS_UNTIL_COLLECTION)
    atexit.register(gc.freeze)  # Python's last collection goes through everything, for half a second
    keep_compiled()
