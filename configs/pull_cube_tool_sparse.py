"""PullCubeTool-v1 with sparse rewards: its panel of the paper's Fig. 5 (sparse).

python train.py --config=configs/pull_cube_tool_sparse.py

Expect after the paper's 30 million steps, with its Octo (10% by itself): RPD-MSE above --config.algorithm=ppo. Without
a GPU: see docs/environments.md for a teacher.
"""

from configs import default


def get_config():
    return default.get_config("PullCubeTool-v1", "sparse")
