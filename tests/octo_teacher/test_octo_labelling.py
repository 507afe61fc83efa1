"""OctoTeacher: the fast path gives what the plain model gives, whatever the chunks."""

import copy
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from octo_teacher import teacher as teacher_module
from octo_teacher.octo_model import OctoModel
from octo_teacher.profile import straightforward
from octo_teacher.teacher import OctoTeacher, frame_noise
from rpd_jax.errors import UserError

DATA = Path(__file__).parents[1] / "data" / "octo"
KEY = jax.random.key(3)


class LengthTokenizer:
    """Ids that depend on the text, for a checkpoint whose tokenizer is not at hand."""

    def encode(self, texts):
        ids = np.zeros((len(texts), 16), np.int64)
        for row, text in enumerate(texts):
            ids[row, : min(len(text), 16)] = np.frombuffer(text.encode(), np.uint8)[:16]
        return {"input_ids": ids, "attention_mask": (ids > 0).astype(np.int64)}


@cache
def load_model() -> OctoModel:
    return OctoModel.load_pretrained(DATA / "tiny").replace(text_processor=LengthTokenizer())


def make_frames(count: int, size: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def plain_actions(model: OctoModel, frames: np.ndarray, instruction: str, num_samples: int) -> np.ndarray:
    """The same labels by the straightforward path: T5 per row, zero goal images, the full sequence, all rows."""
    model, count = straightforward(model), len(frames)
    actions = model.sample_actions(
        {"image_primary": frames[:, None], "timestep_pad_mask": np.ones((count, 1), bool)},
        model.create_tasks(texts=[instruction] * count),
        unnormalization_statistics=model.dataset_statistics["toy_a"]["action"],
        sample_shape=(num_samples,),
        noise=frame_noise(KEY, jnp.arange(count), num_samples, model.module.heads["action"]),
    )
    return np.clip(actions[:, :, 0], -1, 1)


def test_fast_path_equals_plain_path():
    model, frames = load_model(), make_frames(6)
    actions = OctoTeacher(model, dataset="toy_a", chunk_size=4).act(jnp.asarray(frames), "push the cube", KEY, 3)
    expected = plain_actions(model, frames, "push the cube", 3)
    assert np.mean(np.abs(expected) < 1) > 0.5  # the comparison is not blinded by the clip
    assert actions.shape == (3, 6, 7) and actions.dtype == jnp.float32
    np.testing.assert_allclose(actions, expected, atol=1e-5)


def test_labels_do_not_depend_on_chunks_or_other_frames():
    model, frames = load_model(), make_frames(5)
    one_by_one = OctoTeacher(model, dataset="toy_a", chunk_size=1).act(frames, "push", KEY, 2)
    together = OctoTeacher(model, dataset="toy_a", chunk_size=8)
    np.testing.assert_allclose(together.act(jnp.asarray(frames), "push", KEY, 2), one_by_one, atol=1e-5)
    np.testing.assert_allclose(together.act(frames[:3], "push", KEY, 2), one_by_one[:, :3], atol=1e-5)


@pytest.mark.parametrize(
    ("head", "drawn"), [("DiscreteActionHead", True), ("TokenPerDimActionHead", True), ("MSEActionHead", False)]
)
def test_labels_of_heads_that_do_not_denoise_do_not_depend_on_chunks_either(micro_octo, head, drawn):
    micro = OctoModel.load_pretrained(micro_octo)
    config = copy.deepcopy(micro.config)
    kwargs = {"readout_key": "readout_action", "action_horizon": 2}
    if drawn:
        kwargs |= {"low": -0.9, "high": 0.9, "vocab_size": 16}
        config["model"]["readouts"]["action"] = 14  # a token for each of 2 x 7 numbers
    config["model"]["heads"]["action"] |= {"name": head, "kwargs": kwargs}
    model = OctoModel.from_config(
        config,
        micro.example_batch,
        rng=KEY,
        text_processor=micro.text_processor,
        dataset_statistics=micro.dataset_statistics,
        folder=micro_octo,
    )
    frames = make_frames(5, size=32)
    together = OctoTeacher(model, chunk_size=8).act(frames, "push", KEY, 3)
    one_by_one = OctoTeacher(model, chunk_size=2).act(frames, "push", KEY, 3)
    np.testing.assert_allclose(together, one_by_one, atol=1e-5)
    later = OctoTeacher(model, chunk_size=2).act(frames[3:], "push", KEY, 3, first_frame=3)
    np.testing.assert_allclose(later, together[:, 3:], atol=1e-5)
    assert (len(np.unique(np.asarray(together)[:, 0], axis=0)) > 1) == drawn  # samples differ, if they are any


def test_key_and_instruction_decide():
    teacher, frames = OctoTeacher(load_model(), dataset="toy_a", chunk_size=2), make_frames(2)
    first = teacher.act(frames, "push", KEY)
    np.testing.assert_array_equal(first, teacher.act(frames, "push", KEY))
    assert not np.allclose(first, teacher.act(frames, "push", jax.random.key(4)), atol=1e-3)
    assert not np.allclose(first, teacher.act(frames, "lift it", KEY), atol=1e-4)
    assert not np.allclose(first[:, 0], first[:, 1], atol=1e-3)


def test_nothing_recompiles_for_new_batch_sizes():
    teacher = OctoTeacher(load_model(), dataset="toy_a", chunk_size=4)
    for count in (1, 2, 3, 4):
        teacher.act(make_frames(count), "push", KEY)
    compiled = teacher_module._label._cache_size()
    for count in (5, 6, 7, 9, 3):
        teacher.act(make_frames(count), "push it away", KEY)
    assert teacher_module._label._cache_size() == compiled


def test_frames_of_another_size_are_resized():
    teacher = OctoTeacher(load_model(), dataset="toy_a", chunk_size=2)
    frames = make_frames(2, size=128)
    halved = frames.reshape(2, 64, 2, 64, 2, 3).mean(axis=(2, 4)).round().astype(np.uint8)
    # Antialiased halving is a triangle filter, not a box: near, yet not the same.
    smooth = np.full((1, 128, 128, 3), 77, np.uint8)
    np.testing.assert_allclose(
        teacher.act(smooth, "push", KEY), teacher.act(smooth[:, :64, :64], "push", KEY), atol=1e-6
    )
    assert np.abs(teacher.act(frames, "push", KEY) - teacher.act(halved, "push", KEY)).mean() < 0.2


def test_bfloat16_is_near_float32():
    model, frames = load_model(), make_frames(4)
    exact = OctoTeacher(model, dataset="toy_a").act(frames, "push", KEY)
    coarse = OctoTeacher(model, dataset="toy_a", precision="bfloat16").act(frames, "push", KEY)
    deviation = np.abs(exact - coarse).mean()
    assert 0 < deviation < 0.05


def test_errors_name_cause_and_mend():
    model = load_model()
    with pytest.raises(UserError, match="toy_a, toy_b; dataset=None"):
        OctoTeacher(model)
    with pytest.raises(UserError, match="no camera 'image_front'"):
        OctoTeacher(model, dataset="toy_a", camera="image_front")
    with pytest.raises(UserError, match="known are float32, bfloat16"):
        OctoTeacher(model, dataset="toy_a", precision="float8")
    teacher = OctoTeacher(model, dataset="toy_a")
    with pytest.raises(UserError, match=r"must be uint8 \[B, H, W, 3\]"):
        teacher.act(np.zeros((1, 64, 64, 4), np.uint8), "push", KEY)
    teacher.close()
    with pytest.raises(UserError, match="was closed"):
        teacher.act(make_frames(1), "push", KEY)
