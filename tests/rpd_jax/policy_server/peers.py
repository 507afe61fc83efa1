"""Policy servers as processes of their own, on a free port of this machine."""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from rpd_jax.policy_server.served import Servers

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
ENVIRONMENT = ROOT / ".venv-openpi"


def openpi_python() -> str:
    """The interpreter that has openpi's own server and client; makes its environment where there is none (15 s)."""
    with (ROOT / "Makefile").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in several processes
        subprocess.run(["make", "openpi-env", f"PYTHON={sys.executable}"], cwd=ROOT, check=True, stdout=subprocess.PIPE)
    return str(ENVIRONMENT / "bin" / "python")


def openpi_site_packages() -> Path:
    """Where that environment has its packages."""
    openpi_python()
    (folder,) = (ENVIRONMENT / "lib").glob("python*/site-packages")
    return folder


def servers_of(addresses, options, said) -> Servers:
    """Servers with short waits; takes what is theirs out of the options. `said` is given what the user is told."""
    names = ("connections", "api_key", "start_timeout", "request_timeout")
    own = {"start_timeout": 20.0, "request_timeout": 20.0} | {n: options.pop(n) for n in names if n in options}
    return Servers(addresses, say=said.append, **own)


class Peer:
    """A server that is running; `address` is where."""

    def __init__(self, script: str, *arguments: object, python: str = sys.executable, scheme: str = "ws"):
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]) if python == sys.executable else ""
        self.process = subprocess.Popen(
            [python, str(HERE / script), *map(str, arguments)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        line = self.process.stdout.readline()
        assert line.startswith("listening "), line
        self.port = int(line.split()[1])
        self.address = f"{scheme}://127.0.0.1:{self.port}"

    def kill(self) -> None:
        """Ends it as a crash would."""
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        """It no longer computes, but its connections stay."""
        self.process.send_signal(signal.SIGSTOP)

    def lines(self) -> list[str]:
        """Ends it, and returns what it had printed."""
        self.process.kill()
        return self.process.stdout.read().splitlines()


@contextlib.contextmanager
def peer(script: str, *arguments: object, **options: str):
    """A `Peer` that is ended with the `with` block."""
    running = Peer(script, *arguments, **options)
    try:
        yield running
    finally:
        running.kill()
        running.process.stdout.close()


def random_frames(count: int, height: int = 32, width: int = 32) -> jax.Array:
    """Frames of noise, the same each time."""
    return jnp.asarray(np.random.default_rng(1).integers(0, 256, (count, height, width, 3), np.uint8))
