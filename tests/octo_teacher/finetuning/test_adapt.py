"""A model made for other data keeps every weight whose shape stays, and says which do not."""

import jax
import numpy as np
import pytest
from flax import traverse_util

from octo_teacher.finetuning.adaptation import adapt_model, camera_sizes
from octo_teacher.model.octo_module import init_params
from octo_teacher.octo_model import OctoModel


@pytest.fixture(scope="module")
def model(micro_octo):
    return OctoModel.load_pretrained(micro_octo)


def test_the_same_data_changes_nothing(model):
    same = {"camera_sizes": {"primary": 32}, "window": 1, "action_horizon": 4, "action_dim": 7}
    assert camera_sizes(model) == same["camera_sizes"]
    adapted, notes = adapt_model(model, jax.random.key(0), **same, goals=True)
    assert notes == [] and adapted.params is model.params


def test_camera_window_horizon_and_dimension_change(model):
    adapted, notes = adapt_model(
        model,
        jax.random.key(0),
        camera_sizes={"primary": 32, "side": 32},
        window=12,
        action_horizon=2,
        action_dim=5,
    )
    assert notes[:4] == [
        "tokenizer side added",
        "action_horizon 4 -> 2",
        "action_dim 7 -> 5",
        "window 10 -> 12",
    ]
    assert "heads_action" in notes[4] and "octo_transformer/observation_tokenizers_side" in notes[4]
    before, after = (traverse_util.flatten_dict(dict(m.params), sep="/") for m in (model, adapted))
    changed = {name for name in after if name not in before or before[name].shape != after[name].shape}
    for name in set(after) - changed:
        np.testing.assert_array_equal(after[name], before[name])
    # The first and last layers of the head see the flattened chunk.
    head = "heads_action/diffusion_model"
    assert {name for name in changed if name.startswith(head) and name in before}
    embedding = "octo_transformer/obs_primary_pos_embedding"
    assert after[embedding].shape[1] == 12 and np.abs(after[embedding][:, 10:]).min() > 0
    np.testing.assert_array_equal(after[embedding][:, :10], before[embedding])
    # What is new is what it would be had all been drawn.
    whole = traverse_util.flatten_dict(init_params(adapted.module, adapted.example_batch, jax.random.key(0)), sep="/")
    for name in (name for name in changed if not name.endswith("pos_embedding")):
        np.testing.assert_allclose(after[name], whole[name], rtol=1e-5, atol=1e-7)
    # What was adapted works as a whole.
    observations = {
        **{f"image_{name}": np.zeros((1, 12, 32, 32, 3), np.uint8) for name in ("primary", "side")},
        "timestep_pad_mask": np.ones((1, 12), bool),
    }
    tasks = adapted.create_tasks(texts=["push the ball"])
    assert adapted.sample_actions(observations, tasks).shape == (1, 2, 5)


def test_a_camera_without_demos_is_dropped(model):
    adapted, notes = adapt_model(
        model, jax.random.key(0), camera_sizes={"wrist": 32}, window=1, action_horizon=4, action_dim=7
    )
    assert notes[:2] == ["tokenizer primary dropped: the demos have no input for it", "tokenizer wrist added"]
    assert list(adapted.module.octo_transformer.observation_tokenizers) == ["wrist"]
    assert camera_sizes(adapted) == {"wrist": 32}
