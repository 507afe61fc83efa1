"""PickCube-v1 with normalised dense rewards: the paper's Fig. 3, and its panel of Fig. 4 (dense).

python train.py --config=configs/pick_cube_dense.py

Expect after the paper's 30 million steps, with its Octo (9% by itself): RPD-MSE fastest and --config.algorithm=rpd_l1
close behind; ppo arrives later and less steadily; rpd_bc stays just above the teacher, ppd below it. Without a GPU: see
docs/environments.md for a teacher.
"""

from configs import default


def get_config():
    return default.get_config("PickCube-v1", "normalized_dense")
