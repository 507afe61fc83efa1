"""PushCube-v1, sparse rewards, from a moved camera, taught by OpenVLA: the second teacher of the paper's Fig. 7.

python train.py --config=configs/push_cube_camera_shift_openvla.py

Needs what configs/pick_cube_dense_openvla.py needs. The paper's OpenVLA falls from 27% to 4.5% when the camera moves,
and RPD-MSE is still above --config.algorithm=ppo.
"""

from configs import push_cube_camera_shift


def get_config():
    config = push_cube_camera_shift.get_config()
    config.teacher.name = "openvla"
    config.teacher.precision = "bfloat16"
    return config
