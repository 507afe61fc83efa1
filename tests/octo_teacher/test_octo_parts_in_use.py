"""A checkpoint with a conditioned residual encoder and the U-Net head loads, labels and is fine-tuned."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from configs.finetune_octo import get_config
from octo_teacher.finetuning.adaptation import adapt_model
from octo_teacher.finetuning.train_step import Devices, TrainState, frozen_parameters, make_train_step
from octo_teacher.model.octo_module import create_module, param_shapes
from octo_teacher.model.unet_head import UNetDDPMActionHead
from octo_teacher.octo_model import OctoModel
from octo_teacher.profile import straightforward
from octo_teacher.teacher import OctoTeacher, frame_noise
from rpd_jax.errors import UserError
from tests.original_octo import part_cases

KEY = jax.random.key(5)
FRAMES = np.random.default_rng(1).integers(0, 256, (4, 32, 32, 3), np.uint8)
TASK = "push the ball"


@pytest.fixture(scope="module", autouse=True)
def small_network():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UNetDDPMActionHead, "down_features", (16,))
        patch.setattr(UNetDDPMActionHead, "time_features", 8)
        jax.config.update("jax_disable_most_optimizations", True)  # quicker to compile
        yield
        jax.config.update("jax_disable_most_optimizations", False)


def rare_octo(micro_octo, film_keys: list[str], **head) -> OctoModel:
    micro = OctoModel.load_pretrained(micro_octo)
    config = jax.tree.map(lambda x: x, micro.config)
    tokenizer = config["model"]["observation_tokenizers"]["primary"]["kwargs"]
    tokenizer["task_film_keys"] = film_keys
    tokenizer["encoder"] |= {"name": "ViTResnet", "kwargs": {"width": 0.5, "use_film": bool(film_keys)}}
    kwargs = {"readout_key": "readout_action", "action_dim": 7, "action_horizon": 4, "use_map": False, "timesteps": 5}
    config["model"]["heads"]["action"] |= {"name": "UNetDDPMActionHead", "kwargs": kwargs | head}
    batch = dict(micro.example_batch)
    batch["task"] = batch["task"] | {"proprio": np.zeros((1, 3), np.float32)}
    shapes = traverse_util.flatten_dict(param_shapes(create_module(config, micro_octo), batch), sep="/")
    params = {name: part_cases.weight(name, leaf.shape) for name, leaf in shapes.items()}
    known = traverse_util.flatten_dict(micro.params, sep="/")
    params |= {name: known[name] for name in params if name in known and known[name].shape == shapes[name].shape}
    return micro.replace(
        module=create_module(config, micro_octo),
        config=config,
        params=traverse_util.unflatten_dict(params, sep="/"),
        example_batch=batch,
    )


def test_labels_are_those_of_the_saved_model_sampled_plainly(micro_octo, tmp_path):
    rare_octo(micro_octo, ["proprio"], clip_sample=1.0).save_pretrained(0, tmp_path)
    model = OctoModel.load_pretrained(tmp_path)
    observations = {"image_primary": FRAMES[:, None], "timestep_pad_mask": np.ones((4, 1), bool)}
    tasks = model.create_tasks(texts=[TASK] * 4)
    noise = frame_noise(KEY, jnp.arange(4), 2, model.module.heads["action"])
    statistics = model.dataset_statistics["micro"]["action"]
    plain = straightforward(model).sample_actions(observations, tasks, statistics, sample_shape=(2,), noise=noise)
    fast = OctoTeacher(model, chunk_size=2).act(FRAMES, TASK, KEY, num_samples=2)
    assert fast.shape == (2, 4, 7) and np.std(fast[..., :6]) > 0.1
    np.testing.assert_allclose(fast, np.clip(plain[:, :, 0], -1, 1), atol=1e-5)
    moved = tasks | {"proprio": np.ones((4, 3), np.float32)}
    others = straightforward(model).sample_actions(observations, moved, statistics, sample_shape=(2,), noise=noise)
    assert not np.allclose(plain, others, atol=1e-2)


def test_fine_tuning_moves_encoder_and_head(micro_octo):
    model = rare_octo(micro_octo, [])
    data = {"camera_sizes": {"primary": 32}, "window": 1, "action_horizon": 8, "action_dim": 7}
    model, notes = adapt_model(model, KEY, **data)
    assert notes == ["action_horizon 4 -> 8"]  # convolutions over the steps fit every length
    config = get_config()
    config.augment.enabled = False
    batch = {
        "observation": {"image_primary": FRAMES[:, None], "timestep_pad_mask": np.ones((4, 1), bool)},
        "task": model.create_tasks(texts=[TASK] * 4),
        "action": np.random.default_rng(2).normal(size=(4, 1, 8, 7)).astype(np.float32),
        "action_pad_mask": np.ones((4, 1, 8, 7), bool),
    }
    frozen = frozen_parameters(model.params, "full", True)
    before = jax.tree.map(np.array, model.params)
    step = make_train_step(model, optax.sgd(0.1), config, frozen, Devices(1))
    state = TrainState(np.zeros((), np.int32), model.params, optax.sgd(0.1).init(model.params))
    state, metrics = step(state, batch)
    assert np.isfinite(metrics["loss"])
    before, after = (traverse_util.flatten_dict(dict(tree), sep="/") for tree in (before, state.params))
    still = {name for name in after if np.array_equal(before[name], after[name])}
    assert all("hf_model" in name for name in still), still


def test_demos_without_the_condition_are_refused(micro_octo):
    data = {"camera_sizes": {"primary": 32}, "window": 1, "action_horizon": 4, "action_dim": 7}
    with pytest.raises(UserError, match=r"conditioned on the task's 'proprio' .*, which the inputs lack"):
        adapt_model(rare_octo(micro_octo, ["proprio"]), KEY, **data)
