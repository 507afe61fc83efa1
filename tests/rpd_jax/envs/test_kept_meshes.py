"""Collapsed meshes are made once for all workers, and made again where what was kept is not what was written."""

import numpy as np
import pytest

from rpd_jax.envs.kept_meshes import kept

VERTICES = np.random.default_rng(0).standard_normal((12, 3)).astype(np.float32)
TRIANGLES = np.arange(12, dtype=np.uint32).reshape(4, 3)
POINTS = VERTICES[:5] * 2
FACES = np.array([[0, 1, 2], [2, 3, 4]], np.int32)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "rpd_jax" / "meshes"


@pytest.fixture
def collapse():
    def collapse(vertices, triangles, fraction):
        collapse.calls.append(fraction)
        return POINTS, FACES

    collapse.calls = []
    return collapse


def assert_is_the_mesh(mesh):
    for array, expected in zip(mesh, (POINTS, FACES), strict=True):
        np.testing.assert_array_equal(array, expected)
        assert array.dtype == expected.dtype


def test_a_mesh_is_made_once(cache, collapse):
    for _ in range(3):
        assert_is_the_mesh(kept(VERTICES, TRIANGLES, 0.5, collapse))
    assert collapse.calls == [0.5]
    kept(VERTICES, TRIANGLES, 0.25, collapse)
    kept(VERTICES + 1, TRIANGLES, 0.5, collapse)
    kept(VERTICES, TRIANGLES[:3], 0.5, collapse)
    assert len(collapse.calls) == len(list(cache.iterdir())) == 4


def test_what_cannot_be_read_is_made_again(cache, collapse):
    kept(VERTICES, TRIANGLES, 0.5, collapse)
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(POINTS.tobytes())] ^= 1
    for number, damaged in enumerate([b"", whole[: len(whole) // 2], bytes(flipped), b"\x80\x04N."], start=2):
        path.write_bytes(damaged)
        assert_is_the_mesh(kept(VERTICES, TRIANGLES, 0.5, collapse))
        assert len(collapse.calls) == number and path.read_bytes() == whole


@pytest.mark.parametrize(
    "points, faces",
    [
        (POINTS, FACES + 3),
        (POINTS, -FACES),
        (POINTS, FACES[:0]),
        (POINTS, FACES[:, :2]),
        (POINTS.astype(np.float64), FACES),
        (POINTS, FACES.astype(np.float32)),
        (POINTS, np.array([[None] * 3])),
    ],
)
def test_arrays_that_are_no_mesh_are_not_taken(points, faces, cache, collapse):
    kept(VERTICES, TRIANGLES, 0.5, collapse)
    (path,) = cache.iterdir()
    np.savez(path, points=points, faces=faces)
    assert_is_the_mesh(kept(VERTICES, TRIANGLES, 0.5, collapse))
    assert len(collapse.calls) == 2


def test_without_a_place_it_is_made_each_time(cache, collapse):
    cache.parent.mkdir()
    cache.touch()  # a file in its place
    for _ in range(2):
        assert_is_the_mesh(kept(VERTICES, TRIANGLES, 0.5, collapse))
    assert len(collapse.calls) == 2
