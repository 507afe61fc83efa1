"""What refinement adds to imitation: rpd_mse with refine=state beside dagger, in the same frames, on eight tasks.

python -m rpd_jax.sweep configs/paper/refinement.py --scale=cpu

Expect: students of rpd_mse above their teacher and above dagger's where the teacher is mediocre. The published figures
have no such runs; at the paper's scale it is the same grid with its teachers and five seeds.
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


def get_sweep(scale: str) -> list[Job]:
    seeds = 3 if scale == "cpu" else 5
    return training([f"{task}_sparse" for task in TASKS], ALGORITHMS, seeds, settings={"refine": "state"})
