"""The teacher acts in its share of the episodes, from their beginning to their end, and looks at each frame once."""

import contextlib

import jax
import numpy as np
import pytest

from configs import default
from rpd_jax import settings
from rpd_jax.acting import collect
from rpd_jax.acting.guide import Guide
from rpd_jax.acting.stage import Stage, iteration_keys
from rpd_jax.run.stages import StageClock

KEY = jax.random.key(3)
STEPS, ENVS = 60, 4  # longer than an episode


class Recorded:
    """Stands in for the labeller: actions that tell what they are."""

    def act(self, rgb, state):
        return np.full((len(state), 7), 1.0), np.full((len(state), 7), 2.0)


def test_who_acts_is_drawn_where_an_episode_begins():
    num = 4000
    guide = Guide(Recorded(), 0.5, KEY, 2)
    first = guide.actors(0, None, np.zeros(num, bool))
    shares = np.bincount(first, minlength=3) / num
    np.testing.assert_allclose(shares, [0.5, 0.25, 0.25], atol=0.03)
    begun = np.arange(num) % 2 == 0
    second = guide.actors(1, first, begun)
    np.testing.assert_array_equal(second[~begun], first[~begun])
    assert 0.4 < (second[begun] != first[begun]).mean() < 0.8
    assert not Guide(Recorded(), 0.0, KEY, 1).actors(0, None, np.zeros(num, bool)).any()
    assert Guide(Recorded(), 1.0, KEY, 1).actors(0, None, np.zeros(num, bool)).all()
    actions = guide.actions(np.zeros((num, 7)), first, None, np.zeros((num, 1)))
    np.testing.assert_array_equal(actions, np.repeat(first[:, None], 7, axis=1))


@pytest.fixture(scope="module")
def stage():
    config = default.get_config()
    config.algorithm, config.profile, config.student.observation = "dagger", "cpu_state", "state"
    config.env.update(num_envs=ENVS, workers=1, image_size=32, mesh_detail=0.07)
    config.ppo.update(rollout_steps=STEPS, num_minibatches=2)
    config.distill.update(averaged=2, guide=0.6, guide_final=0.2)
    with contextlib.ExitStack() as stack:
        yield Stage.open(settings.resolve(config), stack)


@pytest.mark.slow
def test_the_teacher_s_episodes_are_its_own_actions_and_all_frames_have_their_labels(stage, monkeypatch):
    state, keys = stage.fresh_state(KEY), iteration_keys(KEY, 0)
    looked_at = []
    begin = stage.labeller.teacher.begin
    monkeypatch.setattr(
        stage.labeller.teacher, "begin", lambda rgb, *a: (looked_at.append(len(rgb)), begin(rgb, *a))[1]
    )
    position = collect.start(stage.envs, 7, True)
    rollout, after, episodes = stage.collect(state, position, STEPS, keys, True, StageClock(), guidance=0.6)
    assert sum(looked_at) == STEPS * ENVS
    labels = rollout.teacher_actions[0, 0]
    # The same labels as without a guide, in whatever batches.
    flat = rollout.rgb.reshape(-1, *rollout.rgb.shape[2:])
    samples = stage.labeller.teacher.act(flat, stage.labeller.instruction, keys.teacher, 2)
    samples = np.asarray(samples).reshape(2, STEPS, ENVS, 7)
    np.testing.assert_allclose(labels, samples.mean(axis=0), atol=2e-5)

    by_label = np.isclose(rollout.actions, labels, atol=1e-6).all(axis=-1)
    by_sample = np.isclose(rollout.actions, samples[0], atol=2e-5).all(axis=-1)
    dones = np.asarray(rollout.dones, bool)
    for who in (by_label, by_sample):
        # Nobody takes over in the middle of an episode.
        np.testing.assert_array_equal(who[1:][~dones[1:]], who[:-1][~dones[1:]])
    assert 0 < (by_label | by_sample).mean() < 1 or ENVS * STEPS < 2
    assert set(episodes) == {who + n for who in ("", "sample_", "label_") for n in ("success", "return", "length")}
    assert (
        sum(len(values) for name, values in episodes.items() if name.endswith("length"))
        == dones[1:].sum() + after.done.sum()
    )


def test_the_share_falls_linearly(stage):
    total = stage.config.total_steps
    assert [stage.guidance(step) for step in (0, total // 2, total)] == pytest.approx([0.6, 0.4, 0.2])
