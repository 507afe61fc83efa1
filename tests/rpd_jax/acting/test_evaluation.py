"""An evaluation that would end the training is asked again, in other episodes."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from reaching_env import SIZE, ReachingEnv, any_parameters

from configs import default
from rpd_jax import settings
from rpd_jax.acting.episodes import Episodes
from rpd_jax.acting.evaluation import evaluate_student
from rpd_jax.acting.stage import Stage
from rpd_jax.acting.training_state import TrainingState
from rpd_jax.learning.learner import Learner
from rpd_jax.student.networks import ActorCritic

EVALUATED, CONFIRMED = 4, 24


def make_stage(seed):
    config = default.get_config()
    config.algorithm, config.profile, config.student.observation = "ppo", "cpu_state", "state"
    config.seed = seed
    config.env.update(num_envs=4, image_size=SIZE)
    config.eval.update(episodes=EVALUATED, final_episodes=CONFIRMED, video_episodes=0)
    config = settings.resolve(config)
    learner = Learner(ActorCritic.from_config(config.student), config)
    stage = Stage(config, learner, None, ReachingEnv(4, on_host=True))
    return stage, TrainingState(learner.init_from(any_parameters(learner.network, stage.envs)), None)


def evaluated(stage, state, until, last=False):
    config = stage.config.copy_and_resolve_references()
    config.eval.until = until
    return evaluate_student(dataclasses.replace(stage, config=config), state, last, None, lambda: None)


def test_what_few_episodes_reached_by_luck_ends_nothing():
    lucky = 0
    for seed in range(12):
        stage, state = make_stage(seed)
        few = evaluated(stage, state, until=0.0)
        assert few["episodes"] == EVALUATED
        until = few["success"]
        if until == 0:
            continue
        asked_again = evaluated(stage, state, until)
        assert asked_again["episodes"] == EVALUATED + CONFIRMED
        # Those of before are among them, and the others are not those of the final evaluation.
        others = round(asked_again["success"] * (EVALUATED + CONFIRMED) - until * EVALUATED)
        assert 0 <= others <= CONFIRMED
        final = evaluated(stage, state, until, last=True)
        returns = asked_again["return"] * (EVALUATED + CONFIRMED) - few["return"] * EVALUATED
        assert abs(returns / CONFIRMED - final["return"]) > 1e-3
        lucky += asked_again["success"] < until
        assert evaluated(stage, state, math.nextafter(until, 2.0)) == few, "it did not reach that"
        assert final["episodes"] == CONFIRMED
    assert lucky > 0


def test_episodes_are_joined_in_their_order():
    def some(success, videos):
        return Episodes(np.float32(success), np.float32(success) * 2, np.float32(success) + 5, videos)

    both = some([1, 0], [np.zeros(1)]).joined(some([1], [np.ones(2)]))
    assert [list(array) for array in (both.success, both.episode_return, both.length)] == [
        [1, 0, 1],
        [2, 0, 2],
        [6, 5, 6],
    ]
    assert [len(video) for video in both.videos] == [1, 2]
    assert both.summary()["success"] == float(jnp.float32(2 / 3))
