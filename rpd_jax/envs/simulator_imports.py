"""Imports the simulator, for processes that workers are forked from; importing this module does it.

Importing PyTorch and ManiSkill is most of what a worker computes until it can draw a frame. What was imported, workers
also share in memory. Nothing here imports JAX, starts a thread or draws, so that the process can be forked.
"""

import gc
import importlib
import sys
import types


class _WhenUsed(types.ModuleType):
    """Stands for a module until somebody asks for something in it."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


gc.disable()  # what is imported stays: to look through it, again and again, is a third of the time
# ManiSkill's kinematics import it, for pictures that nobody asks for: a tenth of the time.
sys.modules.setdefault("matplotlib.pyplot", _WhenUsed("matplotlib.pyplot"))
import rpd_jax.envs.camera_task  # noqa: E402, F401

gc.freeze()
gc.enable()
