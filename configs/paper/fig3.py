"""The paper's Fig. 3: five algorithms on PickCube with dense rewards, 5 seeds.

python -m rpd_jax.sweep configs/paper/fig3.py [--launcher=slurm --slurm=partition=gpu,gpus_per_node=1]
python -m rpd_jax.sweep configs/paper/fig3.py --scale=cpu

Expect: rpd_mse fastest, rpd_l1 close behind; ppo arrives there later and less steadily; rpd_bc stays just above the
teacher, ppd below it. The miniature has the same five algorithms on PushCube with sparse rewards, 3 seeds,
24,576 steps; its runs of rpd_mse and ppo are also fig4's: with the same --output they are run once.
"""

from rpd_jax.sweep.grid import Job, training

ALGORITHMS = ("rpd_mse", "rpd_l1", "rpd_bc", "ppd", "ppo")


def get_sweep(scale: str) -> list[Job]:
    if scale == "cpu":
        return training(["push_cube_sparse"], ALGORITHMS, seeds=3, settings={"profile": "cpu", "total_steps": 24_576})
    return training(["pick_cube_dense"], ALGORITHMS, seeds=5, settings={"profile": "paper"})
