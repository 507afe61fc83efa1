"""PushCube-v1 with normalised dense rewards: its panel of the paper's Fig. 4 (dense).

python train.py --config=configs/push_cube_dense.py

Expect after the paper's 30 million steps, with its Octo (67% by itself): RPD-MSE at or above --config.algorithm=ppo.
Without a GPU the embedded teacher is used, as in README.md.
"""

from configs import default


def get_config():
    return default.get_config("PushCube-v1", "normalized_dense")
