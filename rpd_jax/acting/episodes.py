"""Whole episodes of a policy, student or teacher: success, return, length, and frames for a video."""

import dataclasses
import itertools
import math
from collections.abc import Callable

import jax
import numpy as np

from rpd_jax.acting.chunks import ExecutedChunks
from rpd_jax.envs.vector_env import EpisodeMetrics, Step, VectorEnv
from rpd_jax.errors import UserError
from rpd_jax.teachers import Teacher, look

# act(rgb uint8 [N, H, W, 3], state float32 [N, D], key) -> actions [N, A]
Act = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
# The same episode with the same actions ends as it did before, where its worker does not fail by chance.
_MOST_LOST = 5


@dataclasses.dataclass(frozen=True)
class Episodes:
    """Results of K finished episodes; arrays are float32 [K]."""

    success: np.ndarray
    episode_return: np.ndarray
    length: np.ndarray
    videos: list[np.ndarray]  # uint8 [T, H, W, 3] of the first episode of some environments

    def joined(self, others: "Episodes") -> "Episodes":
        """These, then the others."""
        pairs = ((getattr(self, name), getattr(others, name)) for name in ("success", "episode_return", "length"))
        return Episodes(*map(np.concatenate, pairs), videos=[*self.videos, *others.videos])

    def summary(self) -> dict[str, float]:
        """Means over the episodes, with the bounds of success's 95% interval."""
        low, high = wilson_interval(int(self.success.sum()), len(self.success))
        return {
            "success": float(self.success.mean()),
            "success_low": low,
            "success_high": high,
            "return": float(self.episode_return.mean()),
            "length": float(self.length.mean()),
            "episodes": float(len(self.success)),
        }


def teacher_act(teacher: Teacher, instruction: str) -> Act:
    """A teacher's own actions, sampled, the first of each chunk."""
    return lambda rgb, state, key: teacher.act(rgb, instruction, key, **look(teacher, state))[0]


def run_episodes(
    envs: VectorEnv,
    act: Act,
    num_episodes: int,
    seed: int,
    video_episodes: int = 0,
    check_stop: Callable[[], None] = lambda: None,
    on_step: Callable[[int], None] = lambda finished: None,
    sees_frames: bool = True,
    on_actions: Callable[[np.ndarray], None] = lambda actions: None,
) -> Episodes:
    """Runs at least `num_episodes` episodes from freshly seeded environments.

    Every environment runs the same number of episodes, so that short ones are not over-represented.

    Args:
        envs: N environments; they are reset first, and are in the middle of episodes afterwards.
        act: the policy.
        num_episodes: rounded up to a multiple of N.
        seed: of the environments' initial states and of the keys given to `act`.
        video_episodes: environments whose first episode's frames are kept.
        check_stop: called once per step; may raise to leave early.
        on_step: called after each step with the number of episodes that have ended.
        sees_frames: False where `act` looks at the state alone: frames are drawn for the videos only then.
        on_actions: called with the actions of each step, float32 [N, A] in [-1, 1].

    Raises:
        UserError: an action is not finite, or an environment's worker fails again and again within one episode.
    """
    quota = math.ceil(num_episodes / envs.num_envs)
    counts, lost = np.zeros(envs.num_envs, int), np.zeros(envs.num_envs, int)
    finished: list[tuple[float, float, float]] = []
    filmed = min(video_episodes, envs.num_envs)
    envs.set_drawing(sees_frames or filmed > 0)
    rgb = envs.reset(seed)
    films: list[list[np.ndarray]] = [[np.array(rgb[i])] for i in range(filmed)]
    key, count = jax.random.key(seed), jax.device_put(np.uint32(0))
    for t in itertools.count():
        check_stop()
        step_key, count = _next_key(key, count)
        step, action, done, valid, episode = _step(envs, act(rgb, envs.state, step_key), t)
        on_actions(action)
        if isinstance(act, ExecutedChunks):
            act.forget(done | ~valid)
        for i in range(filmed):
            if not valid[i] and counts[i] == 0:
                films[i] = [np.array(step.rgb[i])]
            elif counts[i] == 0:
                films[i].append(np.array(step.final_rgb[i] if done[i] else step.rgb[i]))
        for i in np.flatnonzero(done & (counts < quota)):
            finished.append(tuple(map(float, (episode.success[i], episode.episode_return[i], episode.length[i]))))
            counts[i] += 1
        lost = np.where(valid, lost * ~done, lost + 1)
        _check_lost(lost * (counts < quota))
        on_step(len(finished))
        rgb = step.rgb
        if envs.drawing and not sees_frames and (counts[:filmed] > 0).all():
            rgb = envs.set_drawing(False)
        if (counts == quota).all():
            break
    success, episode_return, length = np.array(finished, np.float32).T
    return Episodes(success, episode_return, length, [np.stack(film) for film in films])


def _step(
    envs: VectorEnv, action: jax.Array | np.ndarray, t: int
) -> tuple[Step, np.ndarray, np.ndarray, np.ndarray, EpisodeMetrics]:
    """Step `t` of the environments.

    Returns:
        The step; on the host the clipped actions, where episodes ended, which steps are valid, and the episodes'
        metrics: from a device in one transfer.
    """
    if isinstance(envs.state, np.ndarray):
        action = np.clip(np.asarray(action), -1.0, 1.0)
        _check_finite(action, t)  # before a simulator that NaNs may end meets them
    step = envs.step(action)
    told = action, step.terminated | step.truncated, step.valid, step.episode
    action, done, valid, episode = jax.device_get(told)
    _check_finite(action, t)
    return step, np.clip(action, -1.0, 1.0), done, valid, episode


@jax.jit
def _next_key(key: jax.Array, count: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The key of step `count`, uint32, and the count of the next one."""
    return jax.random.fold_in(key, count), count + 1


def wilson_interval(successes: int, episodes: int) -> tuple[float, float]:
    """Bounds of the 95% score interval of a success rate (Wilson 1927)."""
    # As scipy.stats does it, which takes a second to load.
    rate, z = successes / episodes, 1.959963984540054  # the normal distribution's 97.5% lie below z
    scale = 2 * (episodes + z**2)
    centre = (2 * episodes * rate + z**2) / scale
    reach = z / scale * math.sqrt(4 * episodes * rate * (1 - rate) + z**2)
    return 0.0 if successes == 0 else centre - reach, 1.0 if successes == episodes else centre + reach


def _check_lost(lost: np.ndarray) -> None:
    if lost.max() >= _MOST_LOST:
        raise UserError(
            f"Environment {lost.argmax()} lost the same episode {_MOST_LOST} times, since its worker failed each time: "
            "see what the warnings say of it, or set env.restart_workers=False, which ends with the first of them."
        )


def _check_finite(action: np.ndarray, step: int) -> None:
    bad = np.argwhere(~np.isfinite(action))
    if len(bad):
        environment, dimension = bad[0]
        raise UserError(
            f"The policy gave {action[environment, dimension]} as dimension {dimension} of its action in environment "
            f"{environment} at step {step} (counted from 0): its weights or statistics are damaged, or it saw what it "
            "does not know."
        )
