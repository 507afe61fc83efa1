"""Processor time of a minibatch of refine=state's last stage, with and without shifted frames, in turns, as a table.

NPROC=1 python tests/benchmarks/distil_update.py [--rounds=3]

A minibatch is 32 fresh frames and 96 replayed ones of 128 px; its time is that of an epoch over their number.
"""

import time
from pathlib import Path

import jax
import numpy as np
from absl import app, flags

from configs import default
from rpd_jax import settings
from rpd_jax.markdown import markdown_table
from rpd_jax.plan import student_programs
from rpd_jax.stages import plan

_ROUNDS = flags.DEFINE_integer("rounds", 3, "Turns of each; the median is shown.", lower_bound=1)


def make_update(augment: int):
    """A function that makes one epoch's update and waits for it, and its number of minibatches."""
    config = default.get_config("PickCube-v1")
    config.refine, config.distill.augment, config.ppo.update_epochs = "state", augment, 1
    config = plan(settings.resolve(config), Path("unused"))[-1].config
    update, arguments = student_programs(config)[-1].compiled()
    return lambda: jax.block_until_ready(update(*arguments)), config.ppo.num_minibatches


def main(_):
    updates = {augment: make_update(augment) for augment in (0, 6)}
    for update, _ in updates.values():
        update()  # compiles
    times = {augment: [] for augment in updates}
    for _ in range(_ROUNDS.value):
        for augment, (update, minibatches) in updates.items():
            start = time.process_time()
            update()
            times[augment].append(1000 * (time.process_time() - start) / minibatches)
    rows = [[f"distill.augment={augment}", f"{np.median(of_one):.1f}"] for augment, of_one in times.items()]
    print(markdown_table(["frames", "processor ms / minibatch"], rows))


if __name__ == "__main__":
    app.run(main)
