r"""How fast encoders learn to imitate: the error on frames of later episodes after a number of updates, as a table.

python tests/benchmarks/encoders.py --run=RUN [--encoders=small,small_scaled] [--state_coefs=0.4] [--updates=500]

RUN is a finished run of refine=state. Its replay holds the frames that the VLA and then the student met, and the
expert's labels; the last tenth is left out and measured on. Updates are as in the last stage: 128 frames, shifted, Adam
with the run's learning rate, which falls in the last third. An error is the share of the labels' variance that is left.
"""

import itertools
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags, logging

from rpd_jax.acting.kept_replay import read_labelled
from rpd_jax.learning.augmentation import random_shift
from rpd_jax.run.checkpoints import newest_checkpoint
from rpd_jax.student.networks import ActorCritic
from rpd_jax.student.state_features import with_statistics
from rpd_jax.training_run.fields import read_run_config

_RUN = flags.DEFINE_string("run", None, "A finished run of refine=state.", required=True)
_ENCODERS = flags.DEFINE_list("encoders", ["small", "small_scaled"], "Encoders, separated by commas.")
_STATE_COEFS = flags.DEFINE_list("state_coefs", ["0.4"], "Weights of the guess of the state.")
_UPDATES = flags.DEFINE_integer("updates", 500, "Updates of each.", lower_bound=25)
_BATCH, _MEASUREMENTS, _CHUNK = 128, 5, 16


def main(_):
    logging.set_verbosity(logging.WARNING)
    config = read_run_config(_RUN.value)
    rows = read_labelled(newest_checkpoint(Path(_RUN.value) / "checkpoints"), "frames", "states", "labels")
    data = {name: np.asarray(array) for name, array in rows.items()}
    data["labels"] = data["labels"].mean(axis=1)
    every = _UPDATES.value // _MEASUREMENTS
    print("| encoder | state_coef | " + " | ".join(f"{every * (n + 1)} updates" for n in range(_MEASUREMENTS)) + " |")
    print("|---" * (2 + _MEASUREMENTS) + "|")
    for encoder, coef in itertools.product(_ENCODERS.value, map(float, _STATE_COEFS.value)):
        student = config.student.copy_and_resolve_references()
        student.update(encoder=encoder, state_coef=coef)
        errors = learn(ActorCritic.from_config(student), config, data, every)
        print(f"| {encoder} | {coef:g} | " + " | ".join(f"{error:.3f}" for error in errors) + " |", flush=True)


def learn(network, config, data, every):
    """The errors after each `every` updates."""
    known = 9 * len(data["labels"]) // 10
    held_out = {name: array[known::3] for name, array in data.items()}
    variance = float(held_out["labels"].var(axis=0).mean())
    params = network.init(jax.random.key(0), data["frames"][:2], data["states"][:2], method=ActorCritic.look)
    params = with_statistics(params, jnp.asarray(data["states"][:known]), None)
    total, rate = every * _MEASUREMENTS, config.ppo.learning_rate
    schedule = optax.linear_schedule(rate, config.ppo.learning_rate_final, total // 3, 2 * total // 3)
    optimizer = optax.chain(
        optax.clip_by_global_norm(config.ppo.max_grad_norm), optax.adam(schedule, eps=config.ppo.adam_eps)
    )
    weight = config.distill.coef * (1.0 + config.distill.replay_coef)

    def loss(params, rows):
        mean, _, _, state_error = network.apply(params, rows["frames"], rows["states"], method=ActorCritic.look)
        guess = 0.0 if state_error is None else network.state_coef * state_error.mean()
        return weight * jnp.square(mean - rows["labels"]).mean() + guess

    @jax.jit
    def updates(params, moments, rows, keys):
        def update(carry, inputs):
            (params, moments), (rows, key) = carry, inputs
            rows["frames"] = random_shift(key, rows["frames"], config.distill.augment)
            steps, moments = optimizer.update(jax.grad(loss)(params, rows), moments, params)
            return (optax.apply_updates(params, steps), moments), None

        return jax.lax.scan(update, (params, moments), (rows, keys))[0]

    mean_action = jax.jit(partial(network.apply, method=ActorCritic.mean_action))
    moments, rng, errors = optimizer.init(params), np.random.default_rng(0), []
    for number in range(_MEASUREMENTS):
        for begin in range(0, every, _CHUNK):
            chosen = rng.integers(0, known, (min(_CHUNK, every - begin), _BATCH))
            keys = jax.random.split(jax.random.fold_in(jax.random.key(number), begin), len(chosen))
            rows = {name: array[chosen] for name, array in data.items()}
            params, moments = updates(params, moments, rows, keys)
        wrong = [
            np.square(mean_action(params, held_out["frames"][at : at + 256]) - held_out["labels"][at : at + 256])
            for at in range(0, len(held_out["labels"]), 256)
        ]
        errors.append(float(np.concatenate(wrong).mean()) / variance)
    return errors


if __name__ == "__main__":
    app.run(main)
