"""LiftPegUpright-v1 with normalised dense rewards: its panel of the paper's Fig. 4 (dense).

python train.py --config=configs/lift_peg_upright_dense.py

Expect after the paper's 30 million steps, with its Octo (0% by itself): RPD-MSE at or above --config.algorithm=ppo.
Without a GPU: see docs/environments.md for a teacher.
"""

from configs import default


def get_config():
    return default.get_config("LiftPegUpright-v1", "normalized_dense")
