"""How good a policy is: `python -m rpd_jax.evaluate` measures teachers, students of runs and exported ones on any task.

May import acting and everything below it, and settings.
"""
