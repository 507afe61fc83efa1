"""What a frame and a step with it cost here and in another checkout, in turns, and how far the pictures differ.

git worktree add ../before 39d4c69
python tests/benchmarks/frames.py --other=../before [--sizes=64,128,256] [--details=0.15,1.0] [--picture=frames.png]

Prints a table of processor milliseconds. The picture shows frames of the other checkout, of this one, and their
difference eight times as strong.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from absl import app, flags
from PIL import Image
from rich import box
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
_OTHER = flags.DEFINE_string("other", None, "Folder of the other checkout.", required=True)
_SIZES = flags.DEFINE_list("sizes", ["64", "128", "256"], "Heights and widths, pixels.")
_DETAILS = flags.DEFINE_list("details", ["0.15", "1.0"], "Fractions of the robot's triangles.")
_TASKS = flags.DEFINE_list("tasks", ["PushCube-v1", "RollBall-v1"], "The first is timed, all are in the picture.")
_REPEATS = flags.DEFINE_integer("repeats", 3, "Rounds.", lower_bound=1)
_PICTURE = flags.DEFINE_string("picture", None, "PNG to write.")

# Runs in either checkout: processor seconds of a step and of its frame, and frames of the first steps.
_SCRIPT = """
import json, sys, time
import numpy as np
from rpd_jax.envs.camera_task import frames, make_task_env
task, size, detail, steps, output = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
env = make_task_env(task, size, mesh_detail=detail)
rng = np.random.default_rng(0)
pictures = [frames(env.reset(seed=0)[0])[0, ..., :3].cpu().numpy().copy()]
for _ in range(3):
    pictures.append(frames(env.step(rng.uniform(-1, 1, 7).astype(np.float32))[0])[0, ..., :3].cpu().numpy().copy())
begin = time.process_time()
for _ in range(steps):
    env.step(rng.uniform(-1, 1, 7).astype(np.float32))
drawn = time.process_time() - begin
env.unwrapped.drawing = False
begin = time.process_time()
for _ in range(steps):
    env.step(rng.uniform(-1, 1, 7).astype(np.float32))
bare = time.process_time() - begin
np.save(output, np.stack(pictures))
print(json.dumps({"step": 1e3 * drawn / steps, "frame": 1e3 * (drawn - bare) / steps}))
"""


def measured(tree: Path, task: str, size: str, detail: str, steps: int) -> tuple[dict[str, float], np.ndarray]:
    with tempfile.NamedTemporaryFile(suffix=".npy") as file:
        command = [sys.executable, "-c", _SCRIPT, task, size, detail, str(steps), file.name]
        run = subprocess.run(command, cwd=tree, env=_environment(tree), capture_output=True, text=True, check=True)
        return json.loads(run.stdout.splitlines()[-1]), np.load(file.name)


def _environment(tree: Path) -> dict[str, str]:
    """As of a worker of the environments: one thread for everything."""
    return {**os.environ, "PYTHONPATH": str(tree), "LP_NUM_THREADS": "0", "OMP_NUM_THREADS": "1"}


def main(_) -> None:
    trees = {"other": Path(_OTHER.value).resolve(), "this": ROOT}
    columns = ("px", "detail", "frame, other", "this", "step, other", "this", "ratio of the steps", "grey levels apart")
    table = Table(*columns, box=box.SIMPLE)
    for size in _SIZES.value:
        for detail in _DETAILS.value:
            rounds = [
                {name: measured(tree, _TASKS.value[0], size, detail, 40) for name, tree in trees.items()}
                for _ in range(_REPEATS.value)
            ]
            cost = {
                (part, name): statistics.median(each[name][0][part] for each in rounds)
                for part in ("frame", "step")
                for name in trees
            }
            ratio = statistics.median(each["this"][0]["step"] / each["other"][0]["step"] for each in rounds)
            apart = np.abs(rounds[0]["this"][1].astype(int) - rounds[0]["other"][1]).mean()
            table.add_row(size, detail, *(f"{value:.1f}" for value in cost.values()), f"{ratio:.2f}", f"{apart:.4f}")
    Console(width=120).print(table)
    if _PICTURE.value:
        rows = []
        for task in _TASKS.value:
            other, this = (measured(tree, task, "128", "0.15", 1)[1][-1].astype(int) for tree in trees.values())
            rows.append(np.concatenate([other, this, np.minimum(8 * np.abs(this - other), 255)], axis=1))
        Image.fromarray(np.repeat(np.repeat(np.concatenate(rows), 2, 0), 2, 1).astype(np.uint8)).save(_PICTURE.value)


if __name__ == "__main__":
    app.run(main)
