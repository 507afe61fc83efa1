import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from robot_triangles import PANDA, count_triangles, robot_triangles

from rpd_jax.envs.camera_task import frames, make_task_env
from rpd_jax.envs.mesh_detail import _without_normals, distinct_rows


def _pictures(env) -> np.ndarray:
    rng = np.random.default_rng(0)
    pictures = []
    for seed in range(2):
        obs, _ = env.reset(seed=seed)
        for _ in range(3):
            obs, *_ = env.step(rng.uniform(-1, 1, 7).astype(np.float32))
        pictures.append(frames(obs)[0, ..., :3].numpy().astype(int))
    return np.stack(pictures)


@pytest.fixture(scope="module")
def exact():
    env = make_task_env("PushCube-v1", 128)
    yield env
    env.close()


# Measured at 128 px over these pictures: 0.32 and 0.0056 at 0.15; 0.69 and 0.0133 at 0.07 (of 255; of all pixels).
@pytest.mark.parametrize(("fraction", "mean", "visible"), [(0.15, 0.5, 0.01), (0.07, 1.0, 0.02)])
def test_fewer_triangles_give_nearly_the_same_picture(exact, fraction, mean, visible):
    env = make_task_env("PushCube-v1", 128, mesh_detail=fraction)
    assert robot_triangles(env) == pytest.approx(fraction * PANDA, rel=0.1)  # parts of under 300 triangles stay whole
    difference = np.abs(_pictures(env) - _pictures(exact))
    assert difference.mean() < mean
    assert (difference.max(axis=-1) > 8).mean() < visible
    env.close()


def test_a_ground_of_two_triangles_shows_the_same_grid(exact):
    """With practically all of the robot's triangles, what is left of the difference is the ground's."""
    env = make_task_env("PushCube-v1", 128, mesh_detail=0.999999)
    assert count_triangles(env.unwrapped.scene.actors["ground"]._objs) == 2
    assert np.abs(_pictures(env) - _pictures(exact)).mean() < 0.01
    env.close()


@given(arrays(np.int64, st.tuples(st.integers(1, 30), st.just(3)), elements=st.sampled_from([-(2**62), -1, 0, 1, 7])))
def test_vertices_are_welded_as_numpy_would(rows):
    _, first, which = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    for found, expected in zip(distinct_rows(rows), (first, which.reshape(-1)), strict=True):
        np.testing.assert_array_equal(found, expected)


def _shaded(triangles: np.ndarray) -> int:
    """Vertices that a renderer shades which remembers one for each last byte of a number."""
    remembered, count = {}, 0
    for number in triangles.ravel().tolist():
        count += remembered.get(number % 256) != number
        remembered[number % 256] = number
    return count


def test_triangles_that_share_vertices_come_one_after_the_other():
    """Of a grid in any order: the same triangles, and few vertices are shaded twice."""
    side, rng = 40, np.random.default_rng(0)
    corner = np.arange(side * side).reshape(side, side)[:-1, :-1].reshape(-1, 1, 1)
    faces = rng.permutation((corner + np.array([[0, 1, side], [1, side + 1, side]])).reshape(-1, 3))
    points = np.stack([*np.divmod(np.arange(side * side), side), np.zeros(side * side)], axis=1).astype(np.float32)
    names = rng.permutation(side * side)
    scattered = np.argsort(names)[faces]
    points = points[names]
    vertices, triangles, *_ = _without_normals(points, scattered)
    found, given = (each.reshape(-1, 9) for each in (vertices[triangles], points[scattered]))
    np.testing.assert_array_equal(found[np.lexsort(found.T)], given[np.lexsort(given.T)])
    assert _shaded(scattered) > 2.5 * len(faces)
    assert _shaded(triangles) < 0.75 * len(faces)


def test_environments_of_one_process_look_alike():
    """The second one is built from the first one's simplified meshes, the third after the first is gone."""
    pictures = []
    for _ in range(3):
        env = make_task_env("PushCube-v1", 64, mesh_detail=0.07)
        pictures.append(_pictures(env))
        env.close()
    np.testing.assert_array_equal(pictures[0], pictures[1])
    np.testing.assert_array_equal(pictures[0], pictures[2])


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("--image_size=big", "--image_size=big: it is no list of whole numbers of at least 1, separated by commas"),
        ("--mesh_detail=0.3,half", "--mesh_detail=0.3,half: it is no list of numbers of at least 0.001, separated by"),
        ("--mesh_detail=0.3,2", "env.mesh_detail=2.0 is not in (0, 1]"),
    ],
)
def test_numbers_that_cannot_be_compared_end_in_a_sentence(argument, sentence, tmp_path):
    command = [sys.executable, "-m", "rpd_jax.envs.compare_mesh_detail", "-o", str(tmp_path / "out.png"), argument]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    (line,) = (line for line in run.stderr.splitlines() if line.startswith("error: "))
    assert run.returncode == 2 and sentence in line and "Traceback" not in run.stderr
