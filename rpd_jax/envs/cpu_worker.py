"""A worker process of CpuVectorEnv: owns some environments, steps them when told, writes into shared arrays.

Started as `python -m rpd_jax.envs.cpu_worker COMMANDS LIFELINE MEMORY` with three inherited file descriptors. Imports
no JAX. Commands and answers are JSON: {"do": "make" | "attach" | "reset" | "set_drawing" | "step", ...} and
{"ok": ...} or {"error": traceback, "env": index}. SIGUSR1 makes it write to stderr where it is.
"""

import contextlib
import ctypes
import faulthandler
import fcntl
import gc
import json
import os
import signal
import sys
import threading
import traceback
from multiprocessing.connection import Connection

import numpy as np

from rpd_jax.run.stop import ignore_signals


class _Environment:
    """One environment with same-step auto-reset, writing its row of the shared arrays."""

    def __init__(self, index: int, task_args: dict, ignore_terminations: bool):
        from rpd_jax.envs.camera_task import CameraChange, make_task_env

        camera = CameraChange(**task_args.pop("camera"))
        self.index = index
        self.env = make_task_env(camera=camera, **task_args)
        self.ignore_terminations = ignore_terminations
        self.has_moved = False

    def reset(self, arrays, seed: int | None) -> None:
        # PhysX remembers contacts and how long a body has been at rest beyond a reset, so that one episode in a hundred
        # differs by what came before it. A sequence of episodes that must follow from its seed begins in a new scene.
        rebuild = seed is not None and self.has_moved
        obs, _ = self.env.reset(seed=seed, options={"reconfigure": rebuild})
        self.has_moved &= not rebuild
        self._write(obs, arrays.rgb, arrays.state)
        self.episode_return = np.float32(0.0)
        self.success = False
        self.length = 0

    def step(self, arrays) -> None:
        row = self.index
        self.has_moved = True
        obs, reward, terminated, truncated, info = self.env.step(np.clip(arrays.action[row], -1.0, 1.0))
        success = bool(info["success"])
        self.length += 1
        self.episode_return += np.float32(float(reward))
        self.success |= success
        arrays.reward[row] = float(reward)
        arrays.terminated[row] = bool(terminated) and not self.ignore_terminations
        arrays.truncated[row] = bool(truncated)
        arrays.success[row] = self.success
        arrays.success_at_end[row] = success
        arrays.episode_return[row] = self.episode_return
        arrays.length[row] = self.length
        if arrays.terminated[row] or arrays.truncated[row]:
            self._write(obs, arrays.final_rgb, arrays.final_state)
            self.reset(arrays, seed=None)
        else:
            self._write(obs, arrays.rgb, arrays.state)

    def _write(self, obs, rgb: np.ndarray, state: np.ndarray) -> None:
        from rpd_jax.envs.camera_task import frames, states

        rgba = frames(obs)
        if rgba is not None:
            rgb[self.index] = rgba[0, ..., :3].numpy()
        state[self.index] = states(obs)[0].numpy()

    def set_drawing(self, arrays, on: bool) -> None:
        from rpd_jax.envs.camera_task import set_drawing

        self._write(set_drawing(self.env, on), arrays.rgb, arrays.state)


class _Worker:
    def __init__(self, memory: int):
        self.memory = memory
        self.environments: list[_Environment] = []
        self.without_gradients = contextlib.ExitStack()
        self.current: int | None = None

    def make(self, indices: list[int], task: dict, ignore_terminations: bool) -> dict:
        import torch

        torch.set_num_threads(1)
        # Nothing is differentiated here, and to keep the books for it is a sixth of a step's time.
        self.without_gradients.enter_context(torch.inference_mode())
        from rpd_jax.envs.camera_task import states

        # ManiSkill collects garbage whenever it rebuilds a scene. The libraries' own objects, which stay, are most of
        # what that goes through, and of the time of a rebuild.
        gc.freeze()
        for index in indices:
            self.current = index
            self.environments.append(_Environment(index, json.loads(json.dumps(task)), ignore_terminations))
        self.current = indices[0]
        obs, _ = self.environments[0].env.reset()
        _return_freed_memory()
        return {"state_dim": states(obs).shape[1]}

    def attach(self, num_envs: int, image_size: int, state_dim: int) -> None:
        from rpd_jax.workers.memory import SharedArrays

        self.arrays = SharedArrays(self.memory, num_envs, image_size, state_dim)

    def reset(self, seeds: list[int], episodes: list[int]) -> None:
        """Begins the episode after the first `episodes` of the sequence that `seeds` give; both are of all N."""
        for environment in self.environments:
            self.current = environment.index
            environment.reset(self.arrays, seeds[environment.index])
            for _ in range(episodes[environment.index]):
                environment.reset(self.arrays, seed=None)

    def set_drawing(self, on: bool) -> None:
        for environment in self.environments:
            self.current = environment.index
            environment.set_drawing(self.arrays, on)

    def step(self) -> None:
        for environment in self.environments:
            self.current = environment.index
            environment.step(self.arrays)


def _return_freed_memory() -> None:
    """Gives back what reading and simplifying meshes needed: 40 MB in most tasks, 260 MB in StackCube."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def die_with_parent(lifeline: int) -> None:
    """Ends this process when the other end of the pipe `lifeline` is closed, however its owner went."""
    # SIGIO's default action ends the process, even one that hangs in a call that never gives the GIL back.
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    # For a parent that went before that.
    threading.Thread(target=_exit_at_end_of, args=(lifeline,), daemon=True).start()


def _exit_at_end_of(pipe: int) -> None:
    os.read(pipe, 1)
    os._exit(0)


def main(commands: int, lifeline: int, memory: int) -> None:
    # Ctrl-C and a scheduler's SIGTERM reach the whole process group; the trainer decides when its workers end.
    ignore_signals()
    die_with_parent(lifeline)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=False)
    connection = Connection(commands)
    worker = _Worker(memory)
    while True:
        try:
            command = json.loads(connection.recv_bytes())
        except EOFError:
            return
        action = command.pop("do")
        try:
            answer = {"ok": getattr(worker, action)(**command)}
        except Exception as error:
            kind = type(error).__name__
            answer = {"error": traceback.format_exc(), "kind": kind, "message": str(error), "env": worker.current}
        connection.send_bytes(json.dumps(answer).encode())


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
    # Skips the slow and sometimes crashing teardown of the renderer.
    sys.stdout.flush()
    os._exit(0)
