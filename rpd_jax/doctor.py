"""Checks that this machine can train: python -m rpd_jax.doctor [--workdir=runs]

Python, JAX and its devices, PyTorch, rendering (one frame, in a process of its own), disk, shared memory, and the hub.
Each line says what to do where something is wrong; exit status 1 if training cannot work.
"""

from rpd_jax.command.start import start

if __name__ == "__main__":
    start()

import dataclasses
import importlib.metadata
import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from absl import flags

from rpd_jax.command.line import run_command
from rpd_jax.workers.memory import create_memory

_WORKDIR = flags.DEFINE_string("workdir", "runs", "Where runs will be written.")
_RENDER_SECONDS = flags.DEFINE_float("render_seconds", 300.0, "Limit for drawing one frame.", lower_bound=1.0)
_HUB_SECONDS = flags.DEFINE_float("hub_seconds", 5.0, "Limit for reaching the hub.", lower_bound=0.1)

GOOD, NOTE, BAD = "ok", "note", "wrong"
_GIB = 1024**3
# A checkpoint of the CPU profile holds a replay of 20,000 frames of 128 px, and two of them are kept.
_DISK_GIB = 4
_PUBLISHED = "https://huggingface.co/Juelg/octo-base-1.5-finetuned-maniskill/resolve/main/config.json"
_TESTED = ((3, 11), (3, 12))
_DRAW = """
from rpd_jax.envs.camera_task import frames, make_task_env
env = make_task_env("PushCube-v1", 128, mesh_detail=0.15, render_backend=BACKEND)
obs, _ = env.reset(seed=0)
frame = frames(obs)[0, ..., :3]
assert tuple(frame.shape) == (128, 128, 3) and int(frame.max()) > int(frame.min()), "the frame is blank"
env.close()
"""


@dataclasses.dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        check: its name.
        state: GOOD, NOTE (training works, something else does not) or BAD.
        found: in a few words.
        mend: what to do, if anything.
    """

    check: str
    state: str
    found: str
    mend: str = ""


def check_python() -> Finding:
    """Python of a tested version."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] not in _TESTED:
        return Finding("Python", NOTE, version, "The tests run with 3.11 and 3.12: make PYTHON=python3.12 setup")
    return Finding("Python", GOOD, version)


def check_jax() -> Finding:
    """JAX starts and finds devices; on a machine with an NVIDIA GPU, that one."""
    try:
        import jax

        devices = jax.devices()
    except Exception as error:
        platforms = os.environ.get("JAX_PLATFORMS")
        mend = f"Leave JAX_PLATFORMS={platforms} out" if platforms else "pip install --constraint constraints.txt -e ."
        return Finding("JAX", BAD, _short(error), mend)
    found = f"{jax.__version__}, {len(devices)} x {devices[0].device_kind}"
    if devices[0].platform == "cpu" and shutil.which("nvidia-smi"):
        return Finding(
            "JAX",
            NOTE,
            found,
            "It does not use the NVIDIA GPU there is: pip install --constraint constraints.txt --editable '.[cuda12]'",
        )
    return Finding("JAX", GOOD, found)


def check_torch() -> Finding:
    """PyTorch, which the simulator uses, can be imported and adds up."""
    try:
        import torch

        assert float(torch.ones(2).sum()) == 2.0
    except Exception as error:
        return Finding("PyTorch", BAD, _short(error), "pip install torch==2.13.0")
    found = f"{torch.__version__}, {'CUDA' if torch.cuda.is_available() else 'CPU'}"
    if shutil.which("nvidia-smi") and not torch.cuda.is_available():
        version = torch.__version__.partition("+")[0]
        mend = f"It does not use the NVIDIA GPU there is: setup/torch.sh {sys.executable} torch=={version}"
        return Finding("PyTorch", NOTE, found, mend)
    return Finding("PyTorch", GOOD, found)


def check_simulator() -> Finding:
    """The simulator's packages are there, in versions that are known to work."""
    try:
        versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("mani_skill", "sapien"))
    except importlib.metadata.PackageNotFoundError as error:
        return Finding("simulator", BAD, f"{error.name} is missing", "make setup")
    return Finding("simulator", GOOD, versions)


def check_rendering(seconds: float, code: str | None = None) -> Finding:
    """Draws one frame of PushCube in a process of its own, which may crash or hang without harm to this one."""
    if code is None:
        code = _DRAW.replace("BACKEND", repr("gpu" if _has_cuda() else "cpu"))
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        mend = "On a busy machine try --render_seconds=600; else make setup, which installs Mesa's software Vulkan"
        return Finding("rendering", BAD, f"no frame within {seconds:.0f} s", mend)
    if process.returncode:
        lines = errors.strip().splitlines() or [f"the process ended with status {process.returncode}"]
        mend = "make setup: it installs Mesa's software Vulkan (24.3 or newer), which SAPIEN needs without a GPU"
        return Finding("rendering", BAD, lines[-1][:120], mend)
    return Finding("rendering", GOOD, "drew one frame of PushCube")


def _has_cuda() -> bool:
    try:
        from rpd_jax.settings import has_cuda  # here: with it comes JAX, which may be broken

        return has_cuda()
    except Exception:  # `check_jax` says why
        return False


def check_disk(workdir: str) -> Finding:
    """There is room for a run, and it may be written."""
    place = Path(workdir).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / _GIB
    found = f"{free:.0f} GiB free in {place}"
    if not os.access(place, os.W_OK):
        return Finding("disk", BAD, f"{place} cannot be written", "Choose another --workdir")
    if free < _DISK_GIB:
        return Finding("disk", BAD, found, f"Make room: a run keeps up to {_DISK_GIB} GiB, or choose another --workdir")
    return Finding("disk", GOOD, found)


def check_shared_memory(size: int = 64 * 1024**2) -> Finding:
    """Memory that the trainer shares with its workers can be had: 128 environments of 256 px need 60 MiB."""
    try:
        memory = create_memory()
        try:
            os.posix_fallocate(memory, 0, size)
        finally:
            os.close(memory)
    except OSError as error:
        mend = "Give the container more memory; without memfd also a larger temporary directory (TMPDIR)"
        return Finding("shared memory", BAD, f"{size / 1024**2:.0f} MiB refused: {_short(error)}", mend)
    return Finding("shared memory", GOOD, f"{size / 1024**2:.0f} MiB")


def check_hub(seconds: float, address: str = _PUBLISHED) -> Finding:
    """The hub answers; only published teachers need it."""
    mend = "Only needed for hf:// teachers: download them elsewhere and give --config.teacher.checkpoint=FOLDER"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return Finding("hub", NOTE, "switched off by HF_HUB_OFFLINE", mend)
    try:
        urllib.request.urlopen(address, timeout=seconds).close()
    except (OSError, urllib.error.URLError) as error:
        return Finding("hub", NOTE, f"no answer within {seconds:.0f} s: {_short(error)}", mend)
    return Finding("hub", GOOD, "reached")


def _short(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:120]


def main() -> None:
    from rich.table import Table
    from rich.text import Text

    from rpd_jax.run.console import plain_console

    checks: list[tuple[str, Callable[[], Finding]]] = [
        ("Python", check_python),
        ("JAX", check_jax),
        ("PyTorch", check_torch),
        ("simulator", check_simulator),
        ("rendering", lambda: check_rendering(_RENDER_SECONDS.value)),
        ("disk", lambda: check_disk(_WORKDIR.value)),
        ("shared memory", check_shared_memory),
        ("hub", lambda: check_hub(_HUB_SECONDS.value)),
    ]
    console = plain_console()
    table = Table("check", "", "found", "what to do")
    findings = []
    with console.status("") as status:
        for name, check in checks:
            status.update(f"checking {name}")
            finding = check()
            findings.append(finding)
            style = {GOOD: "green", NOTE: "yellow", BAD: "red"}[finding.state]
            table.add_row(finding.check, Text(finding.state, style), finding.found, finding.mend)
    console.print(table)
    wrong = [finding.check for finding in findings if finding.state == BAD]
    if wrong:
        console.print(f"Training cannot work here yet: mend {', '.join(wrong)}.")
        sys.exit(1)
    console.print("Training can start: make train")


if __name__ == "__main__":
    run_command(main)
