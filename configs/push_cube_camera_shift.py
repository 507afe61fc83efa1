"""PushCube-v1, sparse rewards, seen from elsewhere than the teacher knows: the paper's Fig. 7, with a view like Fig. 6.

python train.py --config=configs/push_cube_camera_shift.py
python -m rpd_jax.envs.views --config=configs/push_cube_camera_shift.py --seed=3 -o docs/push_cube_camera_shift.png

The second command draws the task's own view beside this one. Expect after the paper's 30 million steps that its Octo
falls from 67% to 0%, and that RPD-MSE is still above --config.algorithm=ppo. The camera's numbers are ours.
"""

from configs import push_cube_sparse


def get_config():
    config = push_cube_sparse.get_config()
    config.env.camera.eye_offset = (0.15, -0.55, 0.1)
    config.env.camera.target_offset = (0.0, 0.0, -0.1)
    return config
