"""What is trained in which mode, and that devices and parts of a batch do not change what is learned."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from flax import traverse_util

from configs.finetune_octo import get_config
from octo_teacher.finetuning.train_step import Devices, TrainState, augment_batch, frozen_parameters, make_train_step
from octo_teacher.octo_model import OctoModel
from rpd_jax.errors import UserError

PROJECT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def model(micro_octo):
    return OctoModel.load_pretrained(micro_octo)


def trained(params, mode, freeze_t5=True, more=""):
    frozen = traverse_util.flatten_dict(frozen_parameters(params, mode, freeze_t5, more), sep=".")
    return {name for name, stays in frozen.items() if not stays}


def test_modes_freeze_by_name():
    names = (
        "octo_transformer.task_tokenizers_language.hf_model.shared.embedding",
        "octo_transformer.BlockTransformer_0.Transformer_0.encoder_norm.scale",
        "heads_action.map_head.probe",
        "heads_action.map_head.MultiHeadDotProductAttention_0.query.kernel",
        "heads_action.mean_proj.kernel",
    )
    params = traverse_util.unflatten_dict({tuple(name.split(".")): np.zeros(1) for name in names})
    t5, transformer, probe, attention, projection = names
    assert trained(params, "full") == {transformer, probe, attention, projection}
    assert trained(params, "full", freeze_t5=False) == set(names)
    assert trained(params, "head_only") == {probe, attention, projection}
    assert trained(params, "head_mlp_only") == {projection}
    assert trained(params, "full", more="heads_*, *.encoder_norm.*", freeze_t5=False) == {t5}
    for mode, more, message in (
        ("tail_only", "", "config.mode='tail_only'"),
        ("full", "heads_gripper*", "'heads_gripper\\*' matches no parameter"),
        ("head_only", "heads_*", "leaves no parameter to train"),
    ):
        with pytest.raises(UserError, match=message):
            frozen_parameters(params, mode, True, more)


def make_batch(model, rows):
    rng = np.random.default_rng(0)
    example = model.example_batch
    return {
        "observation": {
            "image_primary": rng.integers(0, 255, (rows, 1, 32, 32, 3)).astype(np.uint8),
            "timestep_pad_mask": np.ones((rows, 1), bool),
        },
        "task": model.create_tasks(texts=["push the ball"] * rows),
        "action": rng.normal(size=(rows, *example["action"].shape[1:])).astype(np.float32),
        "action_pad_mask": np.ones((rows, *example["action"].shape[1:]), bool),
    }


@pytest.mark.slow
def test_parts_of_a_batch_are_every_kth_row_and_count_alike(model):
    config = get_config()
    config.augment.enabled = False
    config.accumulate = 2
    config.ema = 0.75
    batch = make_batch(model, 4)
    frozen = frozen_parameters(model.params, "full", True)
    start = jax.tree.map(np.array, model.params)
    state = TrainState(np.zeros((), np.int32), model.params, optax.sgd(0.1).init(model.params), model.params)
    state = jax.tree.map(jax.numpy.array, state)  # the step takes its buffers
    step = make_train_step(model, optax.sgd(0.1), config, frozen, Devices(1))
    state, metrics = step(state, batch)
    losses, loss = [], jax.jit(model.loss)
    for index in range(2):
        part = jax.tree.map(lambda x, i=index: x[i::2], batch)
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), 0), index)
        losses.append(float(loss(start, part, jax.random.split(key)[1])[0]))
    np.testing.assert_allclose(float(metrics["loss"]), np.mean(losses), rtol=1e-4)
    # one step of a running mean with decay 0.75: a quarter of the way
    moved = 0.0
    for before, after, mean in zip(*map(jax.tree.leaves, (start, state.params, state.result)), strict=True):
        np.testing.assert_allclose(mean, 0.75 * before + 0.25 * np.asarray(after), atol=1e-6)
        moved += np.abs(np.asarray(after) - before).sum()
    assert moved > 0


def test_goals_are_augmented_like_the_frames_and_missing_ones_stay_black(model):
    batch = make_batch(model, 2)
    batch["observation"]["image_wrist"] = batch["observation"]["image_primary"]
    goal = batch["observation"]["image_primary"][:, 0]
    shown = np.array([True, False])
    batch["task"] |= {"image_primary": goal * shown[:, None, None, None].astype(np.uint8)}
    batch["task"]["pad_mask_dict"] |= {"image_primary": shown}
    config = get_config().augment
    augmented = jax.jit(lambda batch, key: augment_batch(batch, key, config))(batch, jax.random.key(3))
    frames, goals = augmented["observation"]["image_primary"], augmented["task"]["image_primary"]
    np.testing.assert_array_equal(frames[0, 0], goals[0])
    assert not np.asarray(goals[1]).any() and not np.array_equal(frames[0, 0], goal[0])


_TWO_RUNS = """
import json, sys
from configs.finetune_octo import get_config
from octo_teacher.finetune import finetune

init, demos, cache, out = sys.argv[1:]
for devices in (1, 4):
    config = get_config()
    config.update(dict(init=init, demos=demos, cache=cache, devices=devices, batch_size=8, accumulate=2, steps=2))
    config.update(dict(log_every=1, validate_every=2, save_every=2, held_out=0.25))
    config.optimizer.warmup_steps = 1
    finetune(config, f"{out}/{devices}")
"""


@pytest.mark.slow
def test_four_devices_learn_what_one_learns(micro_octo, bright_demos, tmp_path):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(PROJECT)}
    environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    arguments = map(str, (micro_octo, bright_demos, tmp_path / "cache", tmp_path))
    run = subprocess.run(
        [sys.executable, "-c", _TWO_RUNS, *arguments], env=environment, capture_output=True, text=True, timeout=500
    )
    assert run.returncode == 0, run.stderr
    assert "4 device(s)" in run.stdout
    logs = [
        [json.loads(line) for line in (tmp_path / str(devices) / "metrics.jsonl").read_text().splitlines()]
        for devices in (1, 4)
    ]
    numbers = [
        [line[name] for line in log for name in ("loss", "grad_norm", "val_loss", "val_action_mse") if name in line]
        for log in logs
    ]
    assert len(numbers[0]) == 6
    np.testing.assert_allclose(numbers[1], numbers[0], rtol=1e-3)
