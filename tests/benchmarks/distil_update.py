"""Processor time of a minibatch of refine=state's last stage, with and without shifted frames, in turns, as a table.

NPROC=1 python tests/benchmarks/distil_update.py [--rounds=3]

A minibatch is 32 fresh frames and 96 replayed ones of 128 px; its time is that of an epoch over their number.
"""

import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from configs import default
from rpd_jax import settings
from rpd_jax.learning.learner import Learner
from rpd_jax.learning.rollout import Rollout
from rpd_jax.learning.schedules import coefficients
from rpd_jax.markdown import markdown_table
from rpd_jax.stages import plan
from rpd_jax.student.networks import ActorCritic

_ROUNDS = flags.DEFINE_integer("rounds", 3, "Turns of each; the median is shown.", lower_bound=1)
_STATE_DIM, _ACTION_DIM = 42, 7


def make_update(augment: int):
    """A function that makes one epoch's update and waits for it, and its number of minibatches."""
    config = default.get_config("PickCube-v1")
    config.refine, config.distill.augment, config.ppo.update_epochs = "state", augment, 1
    config = plan(settings.resolve(config), Path("unused"))[-1].config
    learner = Learner(ActorCritic.from_config(config.student), config)
    rng, shape = np.random.default_rng(0), (config.ppo.rollout_steps, config.env.num_envs)
    frames = rng.integers(0, 255, (*shape, config.student.image_size, config.student.image_size, 3), np.uint8)
    zeros = jnp.zeros(shape)
    rollout = Rollout(
        rgb=jnp.asarray(frames),
        state=jnp.asarray(rng.normal(size=(*shape, _STATE_DIM)), jnp.float32),
        actions=jnp.zeros((*shape, _ACTION_DIM)),
        logprobs=zeros,
        values=zeros,
        rewards=zeros,
        dones=zeros,
        next_done=zeros[0],
        next_value=zeros[0],
        final_values=zeros,
        teacher_actions=jnp.asarray(rng.uniform(-1, 1, (1, 1, *shape, _ACTION_DIM)), jnp.float32),
        valid=jnp.ones(shape, bool),
    )
    state = learner.init(jax.random.key(0), rollout.rgb[0], rollout.state[0])
    replay = learner.extend_replay(learner.create_replay(_ACTION_DIM, _STATE_DIM), rollout)

    def update():
        jax.block_until_ready(learner.update(state, rollout, jax.random.key(1), coefficients(config, 0), replay))

    return update, config.ppo.num_minibatches


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
