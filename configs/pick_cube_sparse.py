"""PickCube-v1 with sparse rewards: its panel of the paper's Fig. 4 (sparse).

python train.py --config=configs/pick_cube_sparse.py

Expect after the paper's 30 million steps, with its Octo (9% by itself): RPD-MSE succeeds where --config.algorithm=ppo
mostly fails. Without a GPU: see docs/environments.md for a teacher.
"""

from configs import default


def get_config():
    return default.get_config("PickCube-v1", "sparse")
