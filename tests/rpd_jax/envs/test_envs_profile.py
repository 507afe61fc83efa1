"""`python -m rpd_jax.envs.profile`: what a step costs by part, and workers with and without drawing."""

import json

from absl import flags

from rpd_jax.command.flag_kinds import with_underscores
from rpd_jax.envs import profile

WORDS = ["--image-size=16", "--mesh-detail=0.07", "--num-envs=2", "--workers=1", "--seconds=0.01"]


def measure(*words):
    values = flags.FlagValues()
    profile.define_flags(values)
    values(with_underscores(["profile", *WORDS, *words], values))
    profile.run(values)


def test_all_that_is_promised_is_measured(capsys):
    measure("--json")
    measured = json.loads(capsys.readouterr().out)
    (step,), (row,) = measured["steps"], measured["throughput"]
    assert all(step[f"{part}_ms"] > 0 for part in ("physics", "draw", "transfer", "step"))
    assert row["frames_per_s"] > 0 and row["undrawn_steps_per_s"] > 0 and row["speedup"] == 1.0
    assert 0 < row["cpu_ms_per_frame"] < 1e4 and row["mib_per_worker"] > 0


def test_frames_that_nobody_looks_at_are_not_drawn_in_their_turns(monkeypatch):
    """As many turns of each kind, and drawing is on again at the end of each."""
    turns, measured = [], profile._seconds_per_step

    def seen(env, rng):
        turns.append(env.drawing)
        return measured(env, rng)

    monkeypatch.setattr(profile, "_seconds_per_step", seen)
    task = profile._task_args("PushCube-v1", 16, 0.07)
    profile.throughput(task, 1, limit=50, worker_counts=[1], seconds=0.01, step_ms=1.0)
    assert turns == [True, False] * (len(turns) // 2) and len(turns) >= 4
