"""PullCubeTool-v1 with normalised dense rewards: its panel of the paper's Fig. 5 (dense).

python train.py --config=configs/pull_cube_tool_dense.py

Expect after the paper's 30 million steps, with its Octo (10% by itself): RPD-MSE fails: the task asks for tool use,
which its teacher was never shown. Without a GPU: see docs/environments.md for a teacher.
"""

from configs import default


def get_config():
    return default.get_config("PullCubeTool-v1", "normalized_dense")
