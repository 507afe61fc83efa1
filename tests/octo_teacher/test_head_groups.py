"""A head may read any group of tokens that the transformer gives."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from octo_teacher.model.token_groups import TokenGroup
from octo_teacher.octo_model import OctoModel
from octo_teacher.profile import straightforward
from octo_teacher.teacher import OctoTeacher, frame_noise
from rpd_jax.errors import UserError

KEY = jax.random.key(5)
FRAMES = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), np.uint8)
TASK = "push the ball"


def reading(micro_octo, folder, **head):
    shutil.copytree(micro_octo, folder)
    config = json.loads((folder / "config.json").read_text())
    config["model"]["heads"]["action"]["kwargs"] |= head
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("group", ["obs", "obs_primary", "obs_task_language", "task", "task_language"])
def test_actions_follow_from_the_tokens_of_the_group(micro_octo, tmp_path, group):
    original = OctoModel.load_pretrained(micro_octo)
    model = OctoModel.load_pretrained(reading(micro_octo, tmp_path / "octo", readout_key=group))
    mask = np.ones((3, 1), bool)
    observations = {"image_primary": FRAMES[:, None], "timestep_pad_mask": mask}
    tasks = original.create_tasks(texts=[TASK] * 3)
    noise = frame_noise(KEY, jnp.arange(3), 1, model.module.heads["action"])
    tokens = original.run_transformer(observations, tasks, mask)[group].tokens
    tokens = tokens if tokens.ndim == 4 else tokens[:, None]
    expected = original.module.apply(
        {"params": original.params},
        {"readout_action": TokenGroup(tokens, jnp.ones(tokens.shape[:-1], bool))},
        sample_shape=(1,),
        noise=noise,
        method=lambda m, *args, **kwargs: m.heads["action"].predict_action(*args, **kwargs),
    )
    statistics = original.dataset_statistics["micro"]["action"]
    plain = straightforward(model).sample_actions(observations, tasks, statistics, sample_shape=(1,), noise=noise)
    np.testing.assert_allclose(plain, expected, atol=1e-4)
    fast = OctoTeacher(model, chunk_size=2).act(FRAMES, TASK, KEY)
    np.testing.assert_allclose(fast, np.clip(plain[:, :, 0], -1, 1), atol=1e-5)


def test_a_head_that_reads_what_a_teacher_cannot_give(micro_octo, tmp_path):
    folder = reading(micro_octo, tmp_path / "octo", readout_key="obs_proprio")
    config = json.loads((folder / "config.json").read_text())
    config["model"]["observation_tokenizers"]["proprio"] = {
        "module": "octo.model.components.tokenizers",
        "name": "LowdimObsTokenizer",
        "args": [],
        "kwargs": {"obs_keys": ["proprio"]},
    }
    batch = OctoModel.load_pretrained(micro_octo).example_batch
    batch["observation"]["proprio"] = np.zeros((1, 1, 3), np.float32)
    statistics = json.loads((folder / "dataset_statistics.json").read_text())
    model = OctoModel.from_config(config, batch, rng=KEY, dataset_statistics=statistics, folder=folder)
    with pytest.raises(UserError, match="head reads the tokens 'obs_proprio' alone"):
        OctoTeacher(model)
    frames = {"image_primary": FRAMES[:, None], "timestep_pad_mask": np.ones((3, 1), bool)}
    with pytest.raises(UserError, match="'obs_proprio', and the inputs have nothing"):
        model.sample_actions(frames, model.create_tasks(texts=[TASK] * 3))
