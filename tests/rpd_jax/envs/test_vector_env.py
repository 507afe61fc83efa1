"""What both backends promise, checked on both: CPU workers, and ManiSkill's batched wrapper with one environment."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from octo_teacher.demos.experts import EXPERTS
from rpd_jax.envs.camera_task import frames, make_task_env, states
from rpd_jax.envs.cpu_env import CpuVectorEnv
from rpd_jax.envs.maniskill_env import ManiSkillEnv
from rpd_jax.envs.vector_env import episode_seed
from rpd_jax.learning.rollout import check_arrays

SIZE = 16
LIMITS = {"PushCube-v1": 50, "PullCubeTool-v1": 100, "RollBall-v1": 80}


def _task(env_id="PushCube-v1", reward_mode="normalized_dense", **kwargs):
    return {
        "env_id": env_id,
        "image_size": SIZE,
        "reward_mode": reward_mode,
        "mesh_detail": 0.07,
        "camera": {},
        **kwargs,
    }


def _make(backend, num_envs=1, limit=50, ignore_terminations=False, workers=1, **task):
    common = {"max_episode_steps": limit, "ignore_terminations": ignore_terminations}
    if backend == "maniskill":
        return ManiSkillEnv(_task(**task), num_envs, sim_backend="physx_cpu", render_backend="cpu", **common)
    return CpuVectorEnv(_task(**task), num_envs, workers=workers, **common)


def _state(obs) -> np.ndarray:
    return states(obs)[0].numpy()


def _expert(env_id: str, states) -> np.ndarray:
    """The scripted expert's actions [N, 7] in PushCube or PullCube; states [N, 35] as ManiSkill orders them."""
    poses = [{"tcp": row[18:25], "obj": row[28:35], "fingers": row[7:9]} for row in np.asarray(states)]
    return np.stack([EXPERTS[env_id].act(pose) for pose in poses])


@pytest.fixture(
    scope="module", params=[("cpu", "PushCube-v1"), ("maniskill", "PushCube-v1"), ("maniskill", "PullCube-v1")]
)
def sparse_env(request):
    backend, env_id = request.param
    env = _make(backend, reward_mode="sparse", env_id=env_id)
    env.backend, env.env_id = request.param
    yield env
    env.close()
    env.close()  # closing twice is allowed


def test_worker_count_and_backend_change_nothing():
    """Environment 0 of 3, in one or two workers or alone in ManiSkill's wrapper: identical frames, states, rewards."""
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (110, 3, 7)).astype(np.float32)
    runs = []
    for backend, num_envs, workers in (("cpu", 3, 1), ("cpu", 3, 2), ("maniskill", 1, None)):
        with _make(backend, num_envs, workers=workers) as env:
            trace = [(env.reset(7), env.state)]
            steps = [env.step(action[:num_envs]) for action in actions]
        check_arrays(steps[0])
        check_arrays(steps[0].episode)
        trace += [jax.tree.leaves(step) for step in steps]
        ended = [i for i, step in enumerate(steps) if step.truncated[0] or step.terminated[0]]
        assert len(ended) >= 2
        runs.append((trace, ended))
    (one, ended), (two, _), (alone, ended_alone) = runs
    for step_one, step_two in zip(one, two, strict=True):
        for a, b in zip(step_one, step_two, strict=True):
            np.testing.assert_array_equal(a, b)
    assert ended == ended_alone
    for index, (step_one, step_alone) in enumerate(zip(one, alone, strict=True)):
        final = len(step_one) > 2 and index - 1 not in ended
        for name, (a, b) in enumerate(zip(step_one, step_alone, strict=True)):
            if not (final and name in (4, 6)):  # final_rgb, final_state: unspecified where nothing ended
                np.testing.assert_array_equal(a[0], b[0])


@pytest.mark.parametrize("env_id", LIMITS)
@pytest.mark.parametrize("backend", ["cpu", "maniskill"])
def test_truncation_resets_within_the_step(backend, env_id):
    limit = LIMITS[env_id]
    env = _make(backend, limit=limit, env_id=env_id)
    reference = make_task_env(env_id, SIZE, "normalized_dense", mesh_detail=0.07)
    obs, _ = reference.reset(seed=episode_seed(5, 0))
    rgb = env.reset(5)
    assert rgb.shape == (1, SIZE, SIZE, 3) and rgb.dtype == np.uint8
    actions = np.random.default_rng(1).uniform(-0.3, 0.3, (limit, 1, 7)).astype(np.float32)
    total = 0.0
    for count, action in enumerate(actions, 1):
        np.testing.assert_array_equal(rgb, frames(obs)[..., :3])
        np.testing.assert_array_equal(env.state, states(obs))
        step = env.step(jnp.asarray(action))
        obs, reward, *_ = reference.step(action[0])
        np.testing.assert_array_equal(step.reward, np.float32(reward))
        assert step.reward.dtype == np.float32
        total += float(reward)
        rgb = step.rgb
        assert bool(step.truncated[0]) == (count == limit)
    assert not step.terminated[0]
    np.testing.assert_array_equal(step.final_rgb, frames(obs)[..., :3])
    np.testing.assert_array_equal(step.final_state, states(obs))
    assert (int(step.episode.length[0]), float(step.episode.success[0])) == (limit, 0.0)
    assert float(step.episode.episode_return[0]) == pytest.approx(total, rel=1e-5)
    obs, _ = reference.reset()
    np.testing.assert_array_equal(step.rgb, frames(obs)[..., :3])
    np.testing.assert_array_equal(step.state, states(obs))
    assert not env.step(action).truncated[0]
    env.close()
    reference.close()


def _run_until_success(env, env_id):
    env.reset(0)
    for length in range(1, 51):
        step = env.step(_expert(env_id, env.state))
        if step.terminated[0]:
            return step, length
        assert float(step.reward[0]) == 0.0
    raise AssertionError("the expert failed")


def test_success_ends_an_episode_and_pays_once(sparse_env):
    step, length = _run_until_success(sparse_env, sparse_env.env_id)
    assert not step.truncated[0]
    assert step.reward.dtype == np.float32 and float(step.reward[0]) == 1.0
    assert [float(value[0]) for value in step.episode] == [1.0, 1.0, 1.0, length]


def test_success_on_the_last_step_terminates_and_truncates(sparse_env):
    env_id = sparse_env.env_id
    _, needed = _run_until_success(sparse_env, env_id)
    task = {"reward_mode": "sparse", "env_id": env_id, "max_episode_steps": needed}
    with _make(sparse_env.backend, limit=needed, **task) as env:
        step, _ = _run_until_success(env, env_id)
    assert step.terminated[0] and step.truncated[0]
    assert int(step.episode.length[0]) == needed and float(step.episode.success[0]) == 1.0


def test_arrays_of_a_step_outlive_later_steps(sparse_env):
    sparse_env.reset(0)
    kept = sparse_env.step(np.full((1, 7), 0.5, np.float32))
    before = [np.array(leaf) for leaf in jax.tree.leaves(kept)]
    for _ in range(3):
        sparse_env.step(np.full((1, 7), -0.5, np.float32))
    for leaf, expected in zip(jax.tree.leaves(kept), before, strict=True):
        np.testing.assert_array_equal(leaf, expected)


def test_actions_are_clipped(sparse_env):
    sparse_env.reset(0)
    beyond = sparse_env.step(np.full((1, 7), 3.0, np.float32)).state
    sparse_env.reset(0)
    np.testing.assert_array_equal(beyond, sparse_env.step(np.ones((1, 7), np.float32)).state)


@pytest.mark.parametrize("backend", ["cpu", "maniskill"])
def test_ignored_terminations_let_episodes_run_and_count_any_success(backend):
    with _make(backend, reward_mode="sparse", ignore_terminations=True) as env:
        env.reset(0)
        paid = 0.0
        for count in range(1, 51):
            away = np.array([[-1.0, 0.0, 1.0, 0, 0, 0, -1.0]], np.float32)
            step = env.step(_expert("PushCube-v1", env.state) if paid == 0 else away)
            paid += float(step.reward[0])
            assert not step.terminated[0]
            assert bool(step.truncated[0]) == (count == 50)
        assert float(step.episode.success[0]) == 1.0
        assert float(step.episode.success_at_end[0]) == float(step.reward[0])
        assert float(step.episode.episode_return[0]) == paid > 1.0


def test_environments_differ_from_each_other_and_in_every_episode():
    with _make("cpu", num_envs=3) as env:
        env.reset(0)
        cubes = [env.state[:, 28:30]]
        for _ in range(3):
            for _ in range(50):
                step = env.step(np.zeros((3, 7), np.float32))
            assert step.truncated.all()
            cubes.append(step.state[:, 28:30])
        env.reset(1)
        cubes.append(env.state[:, 28:30])
    assert len(np.unique(np.concatenate(cubes).round(4), axis=0)) == 15


def test_what_came_before_a_reset_leaves_no_trace():
    """After a reset without a new scene, environment 3's peg moves differently: PhysX remembers its contacts."""
    rng = np.random.default_rng(8)
    actions = rng.uniform(-1, 1, (16, 4, 7)).astype(np.float32)
    with _make("cpu", 4, env_id="LiftPegUpright-v1", reward_mode="sparse") as env:

        def states_after_reset():
            env.reset(8)
            return np.stack([env.step(action).state for action in actions])

        np.testing.assert_array_equal(states_after_reset(), states_after_reset())


def test_only_ended_episodes_restart():
    """Each of three environments goes through its episodes as it does alone."""
    with _make("cpu", 3, reward_mode="sparse") as env:
        env.reset(4)
        steps, trace = [], [env.state]
        for _ in range(40):
            steps.append(env.step(_expert("PushCube-v1", env.state)))
            trace.append(env.state)
    ends = np.array([step.terminated for step in steps])
    assert (ends.sum(axis=0) >= 2).all() and (ends.any(axis=1) & ~ends.all(axis=1)).any()
    length = np.zeros(3, int)
    for step, before, after in zip(steps, trace[:-1], trace[1:], strict=True):
        length += 1
        np.testing.assert_array_equal(step.episode.length, length)
        joints = np.abs(after - before)[:, :7].max(axis=1)
        assert (joints[~step.terminated] < 0.3).all(), "an environment that had not ended jumped"
        assert (np.abs(after[:, 9:16])[step.terminated] == 0).all(), "a new episode begins at rest"
        length[step.terminated] = 0
    alone = make_task_env("PushCube-v1", SIZE, mesh_detail=0.07)
    obs, _ = alone.reset(seed=episode_seed(4, 2))
    for step, before in zip(steps, trace[:-1], strict=True):
        np.testing.assert_array_equal(before[2], _state(obs))
        obs, *_ = alone.step(_expert("PushCube-v1", before)[2])
        if step.terminated[2]:
            np.testing.assert_array_equal(step.final_state[2], _state(obs))
            obs, _ = alone.reset()
    alone.close()
