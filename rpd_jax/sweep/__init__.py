"""Many runs from one file: grids of tasks, rewards, algorithms and seeds, on this machine or through Slurm."""
