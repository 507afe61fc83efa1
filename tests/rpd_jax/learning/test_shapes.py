"""An array that would be broadcast the wrong way is refused: by the losses themselves, and where a rollout comes in."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_learner import STATES, coefficients, make_rollout, make_state_learner

from rpd_jax.learning.advantages import gae
from rpd_jax.learning.replay import Replay
from rpd_jax.learning.rollout import check_arrays

ROOT = Path(__file__).resolve().parents[3]

# A call with a wrong broadcast, for each function; b [B], c [B, 1], m [B, A], s [S, B, A], l [A].
WRONG = [
    "losses.normalize_advantages(c)",
    "losses.clipped_surrogate(b, c, 0.2)",
    "losses.clipped_surrogate(b, b[:1], 0.2)",
    "losses.value_loss(c, b)",
    "losses.value_loss(c, b[None])",
    "losses.clipped_value_loss(b, c, b, 0.2)",
    "losses.approx_kl(c)",
    "losses.clip_fraction(c, 0.2)",
    "losses.rpd_mse(m, m[:1])",
    "losses.rpd_l1(m, s)",
    "losses.rpd_bc(m, l, m[:, :1])",
    "losses.rpd_bc(m, l[:1], m)",
    "losses.gaussian_kl(m, l, m[:1], m)",
    "losses.ppd(m, l, c, s, 0.2)",
    "losses.ppd(m, l, b, m, 0.2)",
    "losses.ppd(m, l, b[:1], s, 0.2)",
    "gaussian_log_prob(m, m[:1], l)",
    "gae(m, m, m, b, l, m, 0.9, 0.9, True)",
    "gae(m, m[:, :1], m, l, l, m, 0.9, 0.9, True)",
]
PLAIN = """
import sys, jax.numpy as jnp
from rpd_jax.learning import losses
from rpd_jax.learning.advantages import gae
from rpd_jax.student.gaussian import gaussian_log_prob
assert "beartype" not in sys.modules
b, m = jnp.ones(5), jnp.ones((5, 7))
c, s, l = b[:, None], jnp.ones((3, 5, 7)), jnp.ones(7)
for call in sys.argv[1:]:
    try:
        eval(call)
    except (AssertionError, ValueError):
        continue
    print(call)
"""


def test_wrong_broadcasts_are_refused_where_no_annotation_is_checked():
    """As in a run: a process without the tests' checks."""
    environment = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "PATH": ""}
    run = subprocess.run(
        [sys.executable, "-c", PLAIN, *WRONG], capture_output=True, text=True, env=environment, timeout=300
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == "", "let through"


def test_annotations_are_checked_in_the_tests():
    vector = jnp.ones(3)
    with pytest.raises(Exception, match=r"Type-check error whilst checking the parameters of .*gae"):
        gae(vector, vector, vector, vector, vector, vector, 0.9, 0.9, True)


@pytest.mark.parametrize(
    ("field", "change", "sentence"),
    [
        ("values", lambda x: x[..., None], r"Rollout.values is float32\[10, 6, 1\]"),
        ("rewards", lambda x: x[:, :1], r"Rollout.rewards is float32\[10, 1\]"),
        ("next_value", lambda x: x[None], r"Rollout.next_value is float32\[1, 6\]"),
        ("teacher_actions", lambda x: x[0], r"Rollout.teacher_actions is float32\[1, 10, 6, 7\]"),
        ("actions", lambda x: x.astype(jnp.int32), r"Rollout.actions is int32\[10, 6, 7\]"),
    ],
)
def test_a_rollout_of_other_shapes_is_refused(field, change, sentence):
    learner, rollout = make_state_learner(), make_rollout(state=STATES)
    check_arrays(rollout)
    state = learner.init(jax.random.key(0), None, STATES[0])
    with pytest.raises(TypeError, match=sentence):
        wrong = rollout.replace(**{field: change(getattr(rollout, field))})
        learner.update(state, wrong, jax.random.key(0), coefficients(learner))


def test_a_replay_of_other_shapes_is_refused():
    replay = Replay.create(10, num_samples=1, action_dim=7, state_dim=2)
    check_arrays(replay)
    with pytest.raises(TypeError, match=r"Replay.labels is float32\[9, 1, 7\]"):
        check_arrays(replay.replace(labels=replay.labels[:9]))
    with pytest.raises(TypeError, match=r"Replay.count is float32"):
        check_arrays(replay.replace(count=np.float32(1)))
