"""What a command does before its other imports, which take seconds; imports no JAX."""

import atexit
import gc
import os
import sys

from rpd_jax.run.closed_pipe import outliving_terminal
from rpd_jax.run.compiled import keep_compiled
from rpd_jax.run.stop import listen

# JAX and the libraries beside it make hundreds of thousands of objects that stay, while they are imported and while
# programs are traced: with Python's 700 a tenth of a short run's time goes into looking through them.
OBJECTS_UNTIL_COLLECTION = (50_000, 20, 20)


def start() -> None:
    """What a command does first.

    Signals end this process as `run.stop` has it, garbage is looked for rarely, what JAX compiles is kept, and a letter
    that the output's encoding lacks, such as one of a path or an instruction, ends nothing, nor does a terminal that is
    closed, other than by its signal.
    """
    listen()
    # A stream that the command was started without: its number is taken, or the next file would be written to as it.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (for as long as the process lives)
    sys.stdout, sys.stderr = map(outliving_terminal, (sys.stdout, sys.stderr))
    sys.stdout.reconfigure(errors="replace")
    # A student's orthogonal initialisation is a QR decomposition by SciPy's OpenBLAS, whose threads wait for each other
    # at full speed: where others use the machine too, a second one makes a second of it ten, on both cores.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    gc.set_threshold(*OBJECTS_UNTIL_COLLECTION)
    atexit.register(gc.freeze)  # Python's last collection goes through everything, for half a second
    keep_compiled()
