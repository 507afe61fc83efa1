r"""Everything that only a GPU can show, in one go of ten minutes: `make gpu-check`.

    python -m rpd_jax.gpu_check [--out=gpu-check] [--tiny]

Runs the tests that need a GPU and the profilers, one process after the other, each with its limit; what one of them
finds, or that it fails, does not keep the others from running. Downloads nothing: models have random weights where no
checkpoint is embedded. Leaves each part's output in a file of its own, `gpu_check.json` with the device's name, and
prints a table. `--tiny` runs every part with small sizes, on a CPU too: then the command itself is checked.
"""

from rpd_jax.command.start import start

if __name__ == "__main__":
    start()

import dataclasses
import json
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

from absl import flags
from rich.table import Table

from rpd_jax.command.line import run_command
from rpd_jax.envs import gpu_physics
from rpd_jax.errors import UserError
from rpd_jax.run.console import plain_console

_OUT = flags.DEFINE_string("out", "gpu-check", "Folder for what the parts print.")
_TINY = flags.DEFINE_bool("tiny", False, "Small sizes, on whatever device there is.")

_CONFIG = "--config=configs/push_cube_sparse.py"
_PAPER = (_CONFIG, "--config.profile=paper", "--config.teacher.checkpoint=octo-nano")
# Environments in worker processes that draw by the GPU's or the CPU's Vulkan, teacher and student on the device.
_WORKERS = (_CONFIG, "--config.profile=cpu", "--config.env.backend=cpu", "--config.teacher.eval_episodes=0")
# Where the tests marked gpu are: collecting all others needs what a GPU machine may lack.
_TESTS = (
    "tests/rpd_jax/learning",
    "tests/rpd_jax/envs",
    "tests/rpd_jax/acting/test_collect_on_device.py",
    "tests/octo_teacher/model/test_fused_attention.py",
)
_DEVICE = """
import json, jax
from rpd_jax.arithmetic import matmul_rate
device = jax.devices()[0]
found = {"device": device.device_kind, "platform": device.platform, "devices": len(jax.devices())}
found["tflops"] = {name: matmul_rate(name) / 1e12 for name in ("float32", "bfloat16")}
print(json.dumps(found))
"""


@dataclasses.dataclass(frozen=True)
class Part:
    """One process of the check.

    Attributes:
        name: of its file, too.
        module: run by `python -m`, or a script's path, or code.
        arguments: its command line.
        tiny: the command line of `--tiny`.
        seconds: until it is ended.
        needs: a reason not to run it here, or "".
        makes: a folder of its own, which is removed before: an earlier check's run would only tell its results.
    """

    name: str
    module: str
    arguments: tuple[str, ...]
    tiny: tuple[str, ...]
    seconds: float = 120.0
    needs: str = ""
    makes: Path | None = None

    def command(self, tiny: bool) -> list[str]:
        """The process to start."""
        start = ["-c"] if "\n" in self.module else [] if self.module.endswith(".py") else ["-m"]
        return [sys.executable, *start, self.module, *(self.tiny if tiny else self.arguments)]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a part: "ok", "failed", "too long" or "not here", and the last line that it printed."""

    name: str
    state: str
    seconds: float
    last: str


def parts(workdir: Path) -> list[Part]:
    """The parts, in the order of what a reader wants to know first."""
    sizes = ("--batch=32,128,256", "--precision=float32,bfloat16", "--repeats=5", "--kernels=12")
    tiny_octo = ("--architecture=octo-small-1.5", "--batch=1", "--repeats=1", "--kernels=2")
    few = ("--config.env.num_envs=2", "--config.ppo.rollout_steps=4", "--config.ppo.num_minibatches=2")
    small = (*few, "--config.env.workers=1", "--config.env.image_size=40", "--config.student.image_size=40")
    small_plan = ("--config.env.backend=cpu", "--chunk=1", "--teacher=octo-small-1.5", "--measure")
    many = ("--config.env.num_envs=64", "--config.ppo.rollout_steps=16")
    short = ("--config.eval.episodes=2", "--config.eval.final_episodes=2", "--config.eval.video_episodes=0")
    run = workdir / "gpu_check_run"  # no name that somebody gave a run
    train = (f"--workdir={run}", *short)
    physx = "" if gpu_physics.is_there() else f"SAPIEN's {gpu_physics.LIBRARY} is not on this machine"
    return [
        Part("device", _DEVICE, (), ()),
        Part("doctor", "rpd_jax.doctor", ("--hub_seconds=1",), ("--hub_seconds=0.1",)),
        Part("tests", "pytest", ("-q", "-m", "gpu", *_TESTS), ("-q", "-m", "gpu", *_TESTS[:1]), 300.0),
        Part(
            "learner",
            "rpd_jax.profile",
            (*_PAPER, "--plan=h100", "--measure"),
            (*_PAPER, *small, *small_plan, "--plan=h100"),
            300.0,
        ),
        *(
            Part(
                f"workers, overlap {overlap}",
                "rpd_jax.profile",
                (*_WORKERS, *many, f"--config.teacher.overlap={overlap}"),
                (*_WORKERS, *small, f"--config.teacher.overlap={overlap}"),
            )
            for overlap in ("on", "off")
        ),
        Part(
            "train",
            "train.py",
            (*_WORKERS, "--config.total_steps=4096", *train),
            (*_WORKERS, *small, "--config.total_steps=8", *train),
            makes=run,
        ),
        Part("octo-base", "octo_teacher.profile", ("--architecture=octo-base-1.5", *sizes), tiny_octo, 300.0),
        Part("octo-small", "octo_teacher.profile", ("--architecture=octo-small-1.5", *sizes), tiny_octo, 240.0),
        Part(
            "openvla-7b",
            "openvla_bridge.profile",
            ("--architecture=openvla-7b", "--batch=8,32", "--precision=bfloat16", "--no_pil"),
            ("--architecture=tiny", "--batch=2", "--repeats=1", "--no_pil"),
            240.0,
        ),
        Part("paper profile", "rpd_jax.profile", _PAPER, _PAPER, 300.0, physx),
    ]


def run_part(part: Part, out: Path, tiny: bool) -> Outcome:
    """Runs a part, its output into a file of `out`."""
    if part.needs:
        return Outcome(part.name, "not here", 0.0, part.needs)
    if part.makes is not None:
        shutil.rmtree(part.makes, ignore_errors=True)
    path = out / f"{part.name.replace(', ', '-').replace(' ', '-')}.log"
    start, state = time.monotonic(), "ok"
    with path.open("w") as file:
        try:
            command = part.command(tiny)
            done = subprocess.run(
                command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, timeout=part.seconds
            )
            # pytest's 5: no test was asked for.
            state = "ok" if done.returncode in ((0, 5) if part.module == "pytest" else (0,)) else "failed"
        except subprocess.TimeoutExpired:
            state = "too long"
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip(" ┃│└┘━─┴")]
    return Outcome(part.name, state, time.monotonic() - start, lines[-1] if lines else "")


def main() -> None:
    if not Path("train.py").is_file():
        raise UserError("gpu-check runs train.py and the tests: start it in the project's folder.")
    out = Path(_OUT.value)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out={str(out)!r} cannot be a folder: {error}.") from error
    console, outcomes = plain_console(soft_wrap=True), []
    versions = {name: version(name) for name in ("jax", "flax", "torch", "mani_skill", "sapien")}
    for part in parts(out):
        console.print(f"{part.name} (at most {part.seconds:.0f} s) …")
        outcomes.append(run_part(part, out, _TINY.value))
        console.print(f"  {outcomes[-1].state}, {outcomes[-1].seconds:.0f} s: {outcomes[-1].last}")
        found = {"device": _device(out), "tiny": _TINY.value, "versions": versions}
        found["parts"] = [dataclasses.asdict(outcome) for outcome in outcomes]
        (out / "gpu_check.json").write_text(json.dumps(found, indent=1))
    title = f"gpu-check on {found['device'].get('device', 'no device')}"
    table = Table("part", "", "s", "last line", title=title, title_justify="left")
    for outcome in outcomes:
        table.add_row(outcome.name, outcome.state, f"{outcome.seconds:.0f}", outcome.last)
    console.print(table)
    failed = [outcome.name for outcome in outcomes if outcome.state in ("failed", "too long")]
    if failed:
        raise UserError(
            f"{len(failed)} of {len(outcomes)} parts did not work ({', '.join(failed)}): see their files in {out}."
        )
    console.print(f"All of it: {out}/")


def _device(out: Path) -> dict:
    try:
        return json.loads((out / "device.log").read_text().splitlines()[-1])
    except (OSError, ValueError, IndexError):
        return {}


if __name__ == "__main__":
    run_command(main)
