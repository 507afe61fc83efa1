"""How good the model is: on held-out demos, and in the simulator."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from octo_teacher.data.chunks import ChunkSource, ordered_batches
from octo_teacher.finetuning.batches import model_batch
from octo_teacher.finetuning.settings import eval_tasks
from octo_teacher.finetuning.train_step import Devices
from octo_teacher.octo_model import OctoModel
from octo_teacher.teacher import OctoTeacher
from rpd_jax.tasks import find_task

_VALIDATION_BATCHES = 8


def make_validation(
    model: OctoModel, source: ChunkSource, config: ConfigDict, devices: Devices
) -> Callable[[Any], dict[str, float]]:
    """Returns params -> {"val_loss", "val_action_mse"}: diffusion loss, and error of sampled first actions.

    The error is that of the executed, un-normalised action, mean square over its dimensions.
    """
    statistics = model.dataset_statistics[config.dataset_name]["action"]
    std = jnp.asarray(statistics["std"], jnp.float32)
    mask = jnp.asarray(statistics["mask"])

    @jax.jit
    def evaluate(params, batch, key):
        loss_key, sample_key = jax.random.split(key)
        loss, _ = model.loss(params, batch, loss_key, train=False)
        sampled = model.module.apply(
            {"params": params},
            batch["observation"],
            batch["task"],
            batch["observation"]["timestep_pad_mask"],
            rng=sample_key,
            method="sample_actions",
        )
        error = (sampled[:, 0] - batch["action"][:, -1, 0]) * jnp.where(mask, std, 1.0)
        return loss, jnp.mean(jnp.square(error))

    def validate(params):
        if not len(source):
            return {}
        key = jax.random.key(config.seed)
        results = []
        for index, batch in enumerate(ordered_batches(source, config.batch_size)):
            if index == _VALIDATION_BATCHES:
                break
            batch = devices.put_batch(model_batch(model, batch))
            results.append(evaluate(params, batch, jax.random.fold_in(key, index)))
        losses, errors = zip(*results, strict=True)
        return {"val_loss": float(np.mean(losses)), "val_action_mse": float(np.mean(errors))}

    return validate


def measure_success(
    model: OctoModel, config: ConfigDict, check_stop: Callable[[], None], say: Callable[[str], None]
) -> dict[str, float]:
    """Success and mean reward of the model in the simulator, by task.

    Args:
        model: with its parameters.
        config: reads `eval`.
        check_stop: called at each step; what it raises ends the measurement.
        say: told each task's success.
    """
    # Imported late: without evaluation no simulator is needed.
    from rpd_jax.acting.episodes import teacher_act
    from rpd_jax.acting.measure import measure_policy

    # To one device: the teacher does not split its batches.
    model = model.replace(params=jax.device_put(model.params, jax.local_devices()[0]))
    teacher, numbers = OctoTeacher(model), {}
    env_config = {
        "num_envs": config.eval.num_envs,
        "image_size": model.example_batch["observation"]["image_primary"].shape[2],
        "mesh_detail": config.eval.mesh_detail,
    }
    for name in eval_tasks(config):
        task = find_task(name)
        row = measure_policy(
            teacher_act(teacher, task.instruction),
            task,
            config.eval.episodes,
            config.eval.seed,
            ConfigDict(env_config),
            on_step=lambda finished: check_stop(),
        )
        numbers |= {f"success/{name}": row["success"], f"reward/{name}": row["reward"]}
        say(f"{name}: {row['success']:.1%} of {row['episodes']:.0f} episodes")
    return numbers
