"""PushCube-v1 with sparse rewards: its panel of the paper's Fig. 4 (sparse).

python train.py --config=configs/push_cube_sparse.py

Expect after the paper's 30 million steps, with its Octo (67% by itself): RPD-MSE succeeds where --config.algorithm=ppo
mostly fails. Without a GPU: the table in README.md.
"""

from configs import default


def get_config():
    return default.get_config("PushCube-v1", "sparse")
