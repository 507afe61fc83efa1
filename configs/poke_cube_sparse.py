"""PokeCube-v1 with sparse rewards: its panel of the paper's Fig. 5 (sparse).

python train.py --config=configs/poke_cube_sparse.py

Expect after the paper's 30 million steps, with its Octo (12% by itself): RPD-MSE above --config.algorithm=ppo. Without
a GPU: see docs/environments.md for a teacher.
"""

from configs import default


def get_config():
    return default.get_config("PokeCube-v1", "sparse")
