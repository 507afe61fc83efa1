"""The paper's Fig. 4: RPD-MSE and PPO on the six tasks of the teacher's training, dense and sparse rewards, 5 seeds.

python -m rpd_jax.sweep configs/paper/fig4.py [--launcher=slurm --slurm=partition=gpu,gpus_per_node=1]
python -m rpd_jax.sweep configs/paper/fig4.py --scale=cpu

Expect: rpd_mse at or above ppo everywhere; on sparse rewards ppo mostly fails and rpd_mse succeeds. The miniature has
the panels of PushCube and PullCube with sparse rewards, 3 seeds, 24,576 steps, and the embedded teachers.
"""

from rpd_jax.sweep.grid import Job, training

ALGORITHMS = ("rpd_mse", "ppo")
TASKS = ("lift_peg_upright", "pick_cube", "pull_cube", "push_cube", "roll_ball", "stack_cube")


def get_sweep(scale: str) -> list[Job]:
    if scale == "cpu":
        settings = {"profile": "cpu", "total_steps": 24_576}
        return training(["push_cube_sparse", "pull_cube_sparse"], ALGORITHMS, seeds=3, settings=settings)
    configs = [f"{name}_{rewards}" for name in TASKS for rewards in ("dense", "sparse")]
    return training(configs, ALGORITHMS, seeds=5, settings={"profile": "paper"})
