"""Where student, teacher and environments meet: rollouts with their labels, whole episodes, videos, the time estimate.

May import learning, envs, student, run, workers, teachers and the ground (tasks, errors).
"""
