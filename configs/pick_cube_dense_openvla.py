"""PickCube-v1 with normalised dense rewards and OpenVLA as the teacher: as the paper's Fig. 3, with its second teacher.

python train.py --config=configs/pick_cube_dense_openvla.py

Needs a GPU with 24 GB or more beside the simulation's; `make openvla-env` builds an environment for the teacher, then
add --config.teacher.python=.venv-openvla/bin/python. The paper's OpenVLA reaches 6% by itself.
"""

from configs import pick_cube_dense


def get_config():
    config = pick_cube_dense.get_config()
    config.teacher.name = "openvla"
    config.teacher.precision = "bfloat16"
    return config
