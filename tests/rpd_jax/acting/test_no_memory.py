"""Memory that runs out in an update ends in one sentence, with the state of before; in a process with a real limit."""

import subprocess
import sys
from pathlib import Path

import pytest
from glibc_memory import WITH_GLIBC

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = """
import contextlib, resource
import jax, numpy as np
from configs import default
from rpd_jax import settings
from rpd_jax.acting import collect
from rpd_jax.acting.stage import Stage, iteration_keys
from rpd_jax.errors import UserError
from rpd_jax.run.stages import StageClock

config = default.get_config()
config.algorithm, config.profile, config.student.observation = "ppo", "cpu_state", "state"
config.env.update(num_envs=1, workers=1, image_size=16, mesh_detail=0.07)
config.ppo.update(rollout_steps=4, num_minibatches=1, update_epochs=1)
config = settings.resolve(config)
key = jax.random.key(0)
with contextlib.ExitStack() as stack:
    stage = Stage.open(config, stack)
    state, keys = stage.fresh_state(key), iteration_keys(key, 0)
    position = collect.start(stage.envs, 0, False)
    rollout, *_ = stage.collect(state, position, 4, keys, True, StageClock())
    def long(leaf):  # 400,000 steps: some 5 GB of hidden layers
        return leaf if leaf.ndim < 2 else np.repeat(np.asarray(leaf), 100_000, axis=0)
    rollout = jax.tree.map(long, rollout)
    before = jax.device_get(state.learner.params)
    coefficients = stage.coefficients(0)
    status = open("/proc/self/status").read()
    size = int(status.split("VmSize:")[1].split()[0]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (size + 2**30, size + 2**30))
    try:
        stage.update(state, rollout, keys, coefficients, StageClock())
    except UserError as error:
        jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(state.learner.params))
        print("refused:", error)
"""


@pytest.mark.slow
def test_an_update_without_memory_is_one_sentence_and_the_state_is_that_of_before():
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, env=WITH_GLIBC, capture_output=True, text=True, timeout=500
    )
    assert run.returncode == 0, run.stderr
    last = run.stdout.strip().splitlines()[-1]
    assert last.startswith("refused: Memory ran out in the update (RESOURCE_EXHAUSTED"), run.stdout
    assert "lower env.num_envs, ppo.rollout_steps or student.image_size" in last
