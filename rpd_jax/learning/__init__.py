"""The method: a labelled rollout in, a better student out. Nothing here sees a simulator or a file.

May import student and the ground (errors).
"""
