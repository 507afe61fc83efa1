"""The comparison of the paper's Fig. 3 on the simulator's state: five algorithms refine an expert, sparse rewards.

python -m rpd_jax.sweep configs/paper/fig3_state.py --scale=cpu

PickCube and LiftPegUpright, a million steps of refinement at most, in which nothing is drawn. The experts are compared
(RUN/refine; the report's table of what each stage left): the student of pixels is cut to one iteration. In the paper's
pixels RPD-MSE is fastest and RPD-L1 close behind; ppo arrives later, rpd_bc stays just above the teacher, ppd below it.
Both scales are of profile refine, which is sized for two cores: --scale=cpu has three seeds, the other five.
"""

from rpd_jax.sweep.grid import Job, training

ALGORITHMS = ("rpd_mse", "rpd_l1", "rpd_bc", "ppd", "ppo")


def get_sweep(scale: str) -> list[Job]:
    settings = {"refine": "state", "stages.refine.total_steps": 1_000_000, "total_steps": 1024}
    tasks = ["pick_cube_sparse", "lift_peg_upright_sparse"]
    return training(tasks, ALGORITHMS, seeds=3 if scale == "cpu" else 5, settings=settings)
