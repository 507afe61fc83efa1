"""What refinement adds to imitation: rpd_mse with refine=state beside dagger, in the same frames.

python -m rpd_jax.sweep configs/paper/refinement.py --scale=cpu

Eight tasks with sparse rewards, and PushCube seen by a camera that the teacher does not know: an expert begins with
what the teacher says through its own, the control with what it says through the student's. rpd_mse also with dense
rewards on four of the tasks (imitation sees no rewards). Expect students of rpd_mse above their teacher and above
dagger's where the teacher is mediocre. The published figures have no such runs: both scales are of profile refine,
which is sized for two cores (an embedded teacher, 16 environments, 128 px), with three seeds at --scale=cpu and five
at the other; --set=teacher.checkpoint=... and the like make it larger.
"""

from rpd_jax.sweep.grid import Job, training

ALGORITHMS = ("rpd_mse", "dagger")
TASKS = (
    "push_cube",
    "pull_cube",
    "pick_cube",
    "lift_peg_upright",
    "stack_cube",
    "roll_ball",
    "pull_cube_tool",
    "poke_cube",
)
# The paper holds the last two out.
DENSE = ("push_cube", "pick_cube", "pull_cube_tool", "poke_cube")


def get_sweep(scale: str) -> list[Job]:
    seeds, settings = 3 if scale == "cpu" else 5, {"refine": "state"}
    jobs = training([f"{task}_sparse" for task in TASKS], ALGORITHMS, seeds, settings)
    for algorithm, view in (("rpd_mse", "own"), ("dagger", "student")):
        jobs += training(["push_cube_camera_shift"], [algorithm], seeds, settings | {"teacher.view": view})
    jobs += training([f"{task}_dense" for task in DENSE], ["rpd_mse"], seeds, settings)
    return sorted(jobs, key=lambda job: job.settings["seed"])
