import json

import imageio.v2 as imageio
import numpy as np
import pytest

from rpd_jax import curves
from rpd_jax.errors import UserError
from rpd_jax.metrics import MetricsLog


def make_run(workdir, algorithm, success):
    workdir.mkdir()
    (workdir / "config.json").write_text(json.dumps({"algorithm": algorithm}))
    log = MetricsLog(workdir, 0)
    for iteration, value in enumerate(success):
        log.write(iteration, 100 * (iteration + 1), {"eval/success": value, "rollout/success": value})
    log.close()
    return workdir


def colours_in(path):
    pixels = imageio.imread(path)[..., :3].reshape(-1, 3)
    return {tuple(int(value) for value in pixel) for pixel in np.unique(pixels, axis=0)}


def test_one_colour_per_algorithm_and_a_grey_teacher(tmp_path):
    runs = [make_run(tmp_path / "a", "ppo", [0.0, 0.0]), make_run(tmp_path / "b", "rpd_mse", [0.1, 0.9])]
    curves.plot_runs(runs, tmp_path / "without.png")
    (tmp_path / "b" / "teacher.json").write_text('{"success": 0.5}')
    curves.plot_runs(runs, tmp_path / "plots" / "with.png")
    blue, orange, grey = (31, 119, 180), (255, 127, 14), (102, 102, 102)  # matplotlib's C0, C1 and 0.4
    assert {blue, orange} <= colours_in(tmp_path / "without.png")
    assert {blue, orange, grey} <= colours_in(tmp_path / "plots" / "with.png")


def test_a_run_without_evaluations_yet_can_be_plotted(tmp_path):
    curves.plot_runs([make_run(tmp_path / "a", "ppo", [])], tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 0


def test_running_mean_looks_back():
    np.testing.assert_allclose(curves._running_mean(np.array([0.0, 1.0, 2.0]), window=2), [0.0, 0.5, 1.5])


def test_a_directory_without_a_run_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        curves.plot_runs([tmp_path], tmp_path / "curve.png")
