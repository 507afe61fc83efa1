"""The paper's Fig. 5: tasks that the teacher was not trained on, dense and sparse rewards, 5 seeds.

python -m rpd_jax.sweep configs/paper/fig5.py [--launcher=slurm --slurm=partition=gpu,gpus_per_node=1]
python -m rpd_jax.sweep configs/paper/fig5.py --scale=cpu

Expect: with dense rewards rpd_mse fails, since the teacher pushes with its gripper where a tool is required; with
sparse rewards it is above ppo. The miniature has PokeCube with sparse rewards, 3 seeds, and the embedded teacher.
"""

from rpd_jax.sweep.grid import Job, training

ALGORITHMS = ("rpd_mse", "ppo")


def get_sweep(scale: str) -> list[Job]:
    if scale == "cpu":
        return training(["poke_cube_sparse"], ALGORITHMS, seeds=3, settings={"profile": "cpu"})
    configs = [f"{name}_{rewards}" for name in ("pull_cube_tool", "poke_cube") for rewards in ("dense", "sparse")]
    return training(configs, ALGORITHMS, seeds=5, settings={"profile": "paper"})
