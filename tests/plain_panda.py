"""ManiSkill's own Panda in an environment that was given the quicker one."""

import gymnasium as gym
from mani_skill.agents.controllers import PDEEPoseController


def give_back(env: gym.Env) -> None:
    """Undoes `rpd_jax.envs.quick_panda.make_quick`."""
    agent = env.unwrapped.agent
    agent.controller.controllers["arm"].__class__ = PDEEPoseController
    del agent.is_grasping
