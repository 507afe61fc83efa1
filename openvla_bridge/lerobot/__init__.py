"""LeRobot's policies in a worker: reading a checkpoint, and labels of frames. torch and lerobot only, never JAX.

May import `request`, `checkpoint_files` and `errors` of this package. Loads no pickle and runs no code of a checkpoint.
"""
