"""PushCube-v1 with normalised dense rewards: the PushCube panel of the paper's Fig. 4 (dense).

python train.py --config=configs/push_cube_dense.py
"""

from configs import default


def get_config():
    return default.get_config("PushCube-v1", "normalized_dense")
