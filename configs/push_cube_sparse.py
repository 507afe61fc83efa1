"""PushCube-v1 with sparse rewards: the PushCube panel of the paper's Fig. 4 (sparse).

python train.py --config=configs/push_cube_sparse.py
"""

from configs import default


def get_config():
    return default.get_config("PushCube-v1", "sparse")
