import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from robot_triangles import PANDA, robot_triangles

from rpd_jax.envs import camera_task
from rpd_jax.envs.camera_task import CameraChange, frames, make_task_env
from rpd_jax.envs.visible_triangles import may_cover

WIDTH, HEIGHT = 8, 6
MIDDLES = np.stack(np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT)), axis=-1).reshape(-1, 2) + 0.5


def covers(triangle: np.ndarray) -> bool:
    """Whether a triangle, float64 [3, 2], has the middle of a pixel inside or on an edge."""
    edges = np.roll(triangle, -1, axis=0) - triangle
    to_middle = MIDDLES[:, None] - triangle
    sides = edges[:, 0] * to_middle[..., 1] - edges[:, 1] * to_middle[..., 0]
    has_area = edges[0, 0] * edges[1, 1] != edges[0, 1] * edges[1, 0]  # a line covers nothing
    return has_area and bool(((sides >= 0).all(axis=1) | (sides <= 0).all(axis=1)).any())


# Places in 1/256 of a pixel, as the renderer rounds them, in and around the picture: small triangles and large ones.
corners = arrays(np.int64, (3, 2), elements=st.integers(-3 * 256, 11 * 256))
small = st.builds(
    lambda place, shape: place + shape,
    arrays(np.int64, (1, 2), elements=st.integers(-256, 9 * 256)),
    arrays(np.int64, (3, 2), elements=st.integers(-128, 128)),
)


@given(st.lists(corners | small, min_size=1, max_size=20))
@example([np.array([[0, 0], [0, 0], [0, 0]])])
@example([np.array([[128, 128], [129, 128], [128, 129]])])  # a corner in a middle
@example([np.array([[-9999, -9999], [9999, -9999], [0, 9999]])])  # around the picture
def test_whatever_covers_the_middle_of_a_pixel_is_drawn(triangles):
    places = np.stack(triangles) / 256
    pixels = places.reshape(-1, 2).T.astype(np.float32)
    which = tuple(np.arange(3 * len(places)).reshape(-1, 3).T)
    drawn = may_cover(pixels, np.zeros(pixels.shape[1], bool), which, WIDTH, HEIGHT)
    assert list(drawn) == sorted(drawn)
    assert set(drawn) >= {index for index, triangle in enumerate(places) if covers(triangle)}


def test_what_covers_no_middle_is_left_out():
    triangles = np.array(
        [
            [[1.1, 1.1], [1.4, 1.1], [1.1, 1.4]],  # between middles
            [[1.6, 0.0], [2.4, 0.0], [2.0, 6.0]],  # between columns of middles
            [[-3.0, 1.0], [-0.1, 2.0], [-2.0, 3.0]],  # left of the picture
            [[1.0, 6.1], [3.0, 6.1], [2.0, 9.0]],  # below it
            [[2.0, 2.0], [2.99, 2.0], [2.0, 2.99]],  # its edge passes the middle by 0.007 pixels: drawn
            [[2.0, 2.0], [2.7, 2.0], [2.0, 2.7]],  # its rectangle covers a middle, itself does not
        ],
        np.float32,
    )
    which = tuple(np.arange(18).reshape(-1, 3).T)
    drawn = may_cover(triangles.reshape(-1, 2).T, np.zeros(18, bool), which, WIDTH, HEIGHT)
    assert list(drawn) == [4]


def test_a_triangle_that_comes_too_near_is_drawn():
    pixels = np.full((2, 6), 1.2, np.float32)
    which = (np.array([0, 3]), np.array([1, 4]), np.array([2, 5]))
    assert list(may_cover(pixels, np.array([False] * 5 + [True]), which, WIDTH, HEIGHT)) == [1]


# Seen from afar, from the side, from so near that links pass behind the camera, and with the robot out of the picture.
VIEWS = {
    "own": CameraChange(),
    "aside": CameraChange(eye_offset=(-0.3, -1.2, -0.2)),
    "among the links": CameraChange(eye_offset=(-0.75, -0.7, -0.1), target_offset=(0.4, 0.0, 0.1)),
    "past it": CameraChange(target_offset=(0.0, -1.5, 0.3)),
}


@pytest.mark.parametrize("view", VIEWS)
def test_frames_are_those_of_all_triangles(view, monkeypatch):
    """In two episodes: the scene is built anew for the second."""
    selecting = make_task_env("PickCube-v1", 48, camera=VIEWS[view])
    monkeypatch.setattr(camera_task, "_STILL", ())  # as of a task that is not known: nothing is left out
    plain = make_task_env("PickCube-v1", 48, camera=VIEWS[view])
    actions = np.random.default_rng(0).uniform(-1, 1, (2, 4, 7)).astype(np.float32)
    for seed in range(2):
        np.testing.assert_array_equal(*(frames(env.reset(seed=seed)[0]) for env in (selecting, plain)))
        for action in actions[seed]:
            np.testing.assert_array_equal(*(frames(env.step(action)[0]) for env in (selecting, plain)))
    assert robot_triangles(plain) == PANDA
    assert robot_triangles(selecting) < robot_triangles(plain)
    selecting.close()
    plain.close()


@pytest.mark.parametrize(
    ("options", "selects"), [({}, True), ({"mesh_detail": 0.5}, False), ({"image_size": 600}, False)]
)
def test_is_done_where_triangles_are_tiny(options, selects):
    env = make_task_env("PushCube-v1", **{"image_size": 16, **options})
    env.reset(seed=0)
    assert (robot_triangles(env) < 10_000) == selects
    env.close()
