"""The paper's Fig. 7: PushCube with sparse rewards, seen from a camera that the teacher does not know, 5 seeds.

python -m rpd_jax.sweep configs/paper/fig7.py [--launcher=slurm --slurm=partition=gpu,gpus_per_node=1]
python -m rpd_jax.sweep configs/paper/fig7.py --scale=cpu

Expect: Octo falls from 67% to 0%, OpenVLA from 27% to 4.5%, and rpd_mse is above ppo with both. The miniature has the
embedded Octo, 3 seeds.
"""

from rpd_jax.sweep.grid import Job, training


def get_sweep(scale: str) -> list[Job]:
    if scale == "cpu":
        return training(["push_cube_camera_shift"], ["rpd_mse", "ppo"], seeds=3, settings={"profile": "cpu"})
    settings = {"profile": "paper"}
    return [
        *training(["push_cube_camera_shift"], ["rpd_mse", "ppo"], seeds=5, settings=settings),
        *training(["push_cube_camera_shift_openvla"], ["rpd_mse"], seeds=5, settings=settings),
    ]
