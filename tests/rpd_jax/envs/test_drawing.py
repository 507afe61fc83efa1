"""Nothing is drawn that nobody looks at, and what happens is the same with and without drawing."""

import numpy as np
import pytest
import sapien

from rpd_jax.envs.cpu_env import CpuVectorEnv
from rpd_jax.envs.maniskill_env import ManiSkillEnv

SIZE, ENVS, LIMIT = 16, 2, 5
FRAMES = ("rgb", "final_rgb")


TASK = {"image_size": SIZE, "reward_mode": "normalized_dense", "mesh_detail": 0.07, "camera": {}}
TASK |= {"max_episode_steps": LIMIT}


def make(backend, env_id="PushCube-v1", **options):
    task = {**TASK, "env_id": env_id}
    if backend == "cpu":
        return CpuVectorEnv(task, ENVS, max_episode_steps=LIMIT, **{"workers": 1, **options})
    return ManiSkillEnv(task, 1, max_episode_steps=LIMIT, sim_backend="physx_cpu", render_backend="cpu")


def actions(env, steps):
    return np.random.default_rng(0).uniform(-1, 1, (steps, env.num_envs, 7)).astype(np.float32)


def assert_same(step, other, names):
    for name in names:
        if name == "episode":
            assert_same(step.episode, other.episode, step.episode._fields)
        else:
            np.testing.assert_array_equal(getattr(step, name), getattr(other, name), err_msg=name)


@pytest.mark.parametrize(("backend", "env_id"), [("cpu", "PickCube-v1"), ("maniskill", "PickCube-v1")])
def test_what_happens_is_the_same_bit_for_bit(backend, env_id):
    """PickCube, whose goal is hidden and shown again for each picture; over ends of episodes (5 steps each)."""
    with make(backend, env_id) as drawn, make(backend, env_id) as blind:
        assert blind.set_drawing(False) is None
        assert drawn.reset(3) is not None and blind.reset(3) is None
        np.testing.assert_array_equal(drawn.state, blind.state)
        for action in actions(drawn, 12):
            step, other = drawn.step(action), blind.step(action)
            assert_same(step, other, [name for name in step._fields if name not in FRAMES])
            assert step.rgb is not None and other.rgb is other.final_rgb is None
        # In the middle of an episode: the frames of this moment, and from then on those of every step.
        for _ in range(2):  # the second time nothing is drawn
            np.testing.assert_array_equal(blind.set_drawing(True), step.rgb)
        for action in actions(drawn, 4):
            step, other = drawn.step(action), blind.step(action)
            names = [name for name in step._fields if name != "final_rgb" or (step.truncated | step.terminated).all()]
            assert_same(step, other, names)


def test_captures_are_counted(monkeypatch):
    """One for each step, and one more where an episode ended; none while drawing is off."""
    with make("maniskill") as env:
        count = 0
        capture = sapien.render.RenderCameraComponent.take_picture

        def counted(camera):
            nonlocal count
            count += 1
            capture(camera)

        monkeypatch.setattr(sapien.render.RenderCameraComponent, "take_picture", counted)

        def captures(work):
            nonlocal count
            count = 0
            work()
            return count

        env.reset(0)
        steps = actions(env, 2 * LIMIT)
        env.step(steps[0])  # the table alone has been drawn now, where a reset puts it and where a step does
        env.reset(0)
        assert captures(lambda: [env.step(action) for action in steps]) == 2 * LIMIT + 2
        assert captures(lambda: env.set_drawing(False)) == 0
        assert captures(lambda: (env.reset(1), [env.step(action) for action in steps])) == 0
        assert captures(lambda: env.set_drawing(True)) == 1
        assert captures(lambda: env.set_drawing(True)) == 0  # they are there


@pytest.mark.parametrize("on", [False, True])
def test_a_worker_that_fails_when_drawing_changes_is_replaced(on):
    """Its environment begins its episode again, and once more with the next step, which is lost: others go on."""
    with make("cpu", workers=2, restart_workers=True) as env:
        env.set_drawing(not on)
        env.reset(0)
        begin = env.state
        steps = [env.step(action) for action in actions(env, 2)]
        env._workers[1].process.kill()
        frames = env.set_drawing(on)
        assert (frames is not None) == on == env.drawing
        np.testing.assert_array_equal(env.state, [steps[1].state[0], begin[1]])
        step = env.step(np.ones((ENVS, 7), np.float32))
        assert step.valid.tolist() == [True, False] and (step.rgb is not None) == on
        np.testing.assert_array_equal(step.state[1], begin[1])
        assert not (step.reward[1] or step.terminated.any() or step.truncated.any())
        if on:
            np.testing.assert_array_equal(step.rgb[1], frames[1])
        lengths = [env.step(action) for action in actions(env, 2)][-1].episode.length
        assert env.step(np.zeros((ENVS, 7), np.float32)).valid.all() and lengths.tolist() == [5, 2]


def test_a_worker_that_fails_before_the_first_reset_is_replaced():
    with make("cpu", workers=2, restart_workers=True) as env, make("cpu") as other:
        env._workers[1].process.kill()
        env.set_drawing(False)
        env.reset(0), other.reset(0)
        np.testing.assert_array_equal(env.state, other.state)
        assert env.step(np.zeros((ENVS, 7), np.float32)).valid.all()


def test_a_worker_that_replaces_another_draws_nothing_either():
    with make("cpu", workers=2, restart_workers=True) as env:
        env.set_drawing(False)
        env.reset(0)
        env._workers[1].process.kill()
        step = env.step(np.zeros((ENVS, 7), np.float32))
        assert step.valid.tolist() == [True, False] and step.rgb is None
        assert not env._arrays.rgb.any()  # nobody has drawn into the shared frames
