"""Meshes with fewer triangles, kept for the next worker: collapsing edges is a fifth of what its start computes."""

import contextlib
import hashlib
import zipfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np

from rpd_jax.run.cache import cache_folder
from rpd_jax.run.whole_file import replacing

Mesh = tuple[np.ndarray, np.ndarray]
# What the result depends on besides the mesh: to be raised where `_collapse_edges` gives others.
_METHOD = f"1, fast_simplification {version('fast_simplification')}"


def kept(vertices: np.ndarray, triangles: np.ndarray, fraction: float, collapse: Callable[..., Mesh]) -> Mesh:
    """Returns `collapse(vertices, triangles, fraction)`: points float32 [P, 3] and faces [K, 3].

    In the project's cache folder, by what it is made from. Where nothing can be kept, or what is there cannot be read,
    it is made.
    """
    made_from = [vertices.tobytes(), triangles.tobytes(), repr((vertices.shape, fraction, _METHOD)).encode()]
    path = cache_folder("meshes") / f"{hashlib.sha256(b'|'.join(made_from)).hexdigest()[:32]}.npz"
    mesh = _read(path)
    if mesh is None:
        mesh = collapse(vertices, triangles, fraction)
        with contextlib.suppress(OSError), replacing(path) as scratch:
            np.savez(scratch, points=mesh[0], faces=mesh[1])
    return mesh


def _read(path: Path) -> Mesh | None:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            points, faces = arrays["points"], arrays["faces"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    shapes = points.ndim == faces.ndim == 2 and points.shape[1] == faces.shape[1] == 3
    types = points.dtype == np.float32 and np.issubdtype(faces.dtype, np.integer)
    fits = shapes and types and len(faces) and faces.min() >= 0 and faces.max() < len(points)
    return (points, faces) if fits else None
