"""Environments: ManiSkill tasks seen through their human camera, stepped in batches (see vector_env.py)."""
