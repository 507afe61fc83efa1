"""LeRobot's environment, and three policies that its own code made there."""

import contextlib
import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from openvla_bridge.uniforms import frame_uniforms

ROOT = Path(__file__).resolve().parents[2]
PEER = Path(__file__).parent / "lerobot_peer.py"
SIZE = 64


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """One process of the tests at a time."""
    with (ROOT / "Makefile").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def lerobot_python() -> str:
    """The interpreter that has LeRobot; makes its environment where there is none (2 minutes, 1.8 GB)."""
    command = ["make", "lerobot-env", f"PYTHON={sys.executable}"]
    with _alone():
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE)
    return str(ROOT / ".venv-lerobot" / "bin" / "python")


@dataclass
class LeRobot:
    """What LeRobot made: `folder` with act/, diffusion/ and smolvla/, and their chunks [B, 4, 7] of `frames`, `states`.

    `hub` has the configuration and tokenizer of SmolVLA's backbone, as the hub's client caches them.
    """

    python: str
    folder: Path
    hub: Path
    frames: np.ndarray
    states: np.ndarray
    key: jax.Array
    chunks: dict[str, np.ndarray]


def make_policies(folder: Path) -> LeRobot:
    """What there is in `folder`, which processes share; the first of them makes it."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (5, SIZE, SIZE, 3), dtype=np.uint8)
    states, key = rng.normal(size=(5, 31)).astype(np.float32), jax.random.key(3)
    # The seed of a frame: 23 bits of each of its first two random numbers.
    first, second = (np.asarray(frame_uniforms(key, 0, 5, 1, 7))[0, :, i].astype(np.float64) for i in (0, 1))
    seeds = (first * 2**23).astype(np.int64) * 2**23 + (second * 2**23).astype(np.int64)
    python, hub = lerobot_python(), folder / "hub"
    with _alone():
        if not folder.exists():
            made = Path(tempfile.mkdtemp(dir=folder.parent))
            np.savez(made / "given.npz", frames=frames, states=states[:, :9], seeds=seeds)
            environment = {**os.environ, "PYTHONPATH": "", "HF_HOME": str(made / "hub"), "HF_HUB_OFFLINE": "1"}
            environment["OMP_WAIT_POLICY"] = "PASSIVE"  # as many threads as the workers have, for the same rounding
            subprocess.run([python, PEER, made / "given.npz", made], check=True, env=environment, timeout=500)
            for weights in (made / "hub").rglob("model.safetensors"):
                weights.unlink()  # a checkpoint has all weights
            made.rename(folder)
    chunks = {kind: np.load(folder / f"{kind}.npy") for kind in ("act", "diffusion", "smolvla")}
    return LeRobot(python, folder, hub, frames, states, key, chunks)
