"""Processor time of a step in which nothing is drawn, with ManiSkill's Panda and with ours, and that both do the same.

    python -m tests.benchmarks.quick_panda

The two are stepped in turns, with the same random actions.
"""

import time

import numpy as np
import torch
from absl import app, flags

from rpd_jax.envs.camera_task import make_task_env, set_drawing, states
from rpd_jax.markdown import markdown_table
from rpd_jax.tasks import TASKS
from tests.plain_panda import give_back

_STEPS = flags.DEFINE_integer("steps", 400, "Steps of each.")
_TASKS = flags.DEFINE_list("tasks", sorted(TASKS), "Tasks.")


def main(_):
    torch.set_num_threads(1)
    rows = []
    with torch.inference_mode():  # as in a worker
        for env_id in _TASKS.value:
            theirs, ours = (make_task_env(env_id, 16, mesh_detail=0.07) for _ in range(2))
            give_back(theirs)
            seconds, same = [0.0, 0.0], True
            for env in (theirs, ours):
                env.reset(seed=0)
                set_drawing(env, False)
            for t, action in enumerate(np.random.default_rng(0).uniform(-1, 1, (_STEPS.value, 7)).astype(np.float32)):
                seen = []
                for index, env in enumerate((theirs, ours)):
                    if t % 50 == 49:
                        env.reset(seed=t)
                    start = time.process_time()
                    obs, *_ = env.step(action)
                    seconds[index] += time.process_time() - start
                    seen.append(states(obs).numpy().copy())
                same &= bool(np.array_equal(*seen))
            before, after = (1000 * total / _STEPS.value for total in seconds)
            rows.append([env_id, f"{before:.2f}", f"{after:.2f}", f"{before / after:.2f}", "yes" if same else "NO"])
    print(markdown_table(["task", "ManiSkill's, ms", "ours, ms", "ratio", "same states"], rows))


if __name__ == "__main__":
    app.run(main)
