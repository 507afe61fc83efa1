"""Fewer triangles for the software renderer, whose cost is per triangle and not per pixel."""

import hashlib

import fast_simplification
import numpy as np
import sapien.render

from rpd_jax.envs.kept_meshes import kept
from rpd_jax.envs.render_bodies import render_body, replace_body
from rpd_jax.envs.shaders import FLAT

# Below this a part has nothing to spare: SAPIEN refuses a mesh that collapsed to nothing.
_KEEP_WHOLE = 300

# Of the Panda's parts none has as many; StackCube's robot wears a camera of 425,160 triangles, three times its own.
_FINEST = 20_000

# What the shapes of a file became, so that a scene that is built anew does not go through all vertices again.
_of_files: dict[tuple, list[sapien.render.RenderShapeTriangleMesh] | None] = {}

# One shape per original mesh, fraction and way of shading; clones of a shape share its buffers.
_simplified: dict[tuple[str, float, bool], sapien.render.RenderShapeTriangleMesh] = {}


def reduce_mesh_detail(scene, fraction: float, marks: bool = False) -> None:
    """Keeps about `fraction` of the triangles of all robots' visual meshes, and makes a flat ground of two triangles.

    Quadric edge collapse (Garland and Heckbert, 1997) on each part of at least 300 triangles, of which 20,000 count at
    most; the result is shaded flat, as the Panda's meshes are. Physics is untouched. Call after loading a scene and
    before its first picture.

    Args:
        scene: ManiSkillScene.
        fraction: in (0, 1).
        marks: the shaders know the mark FLAT: triangles share their vertices then, of which each is shaded once.
    """
    for articulation in scene.articulations.values():
        for link in articulation.links:
            for body in link._objs:
                _replace_shapes(body.entity, lambda shape: _simplify_shape(shape, fraction, marks))
    if "ground" in scene.actors:
        for entity in scene.actors["ground"]._objs:
            _replace_shapes(entity, _flatten_shape)


def _replace_shapes(entity, simplify) -> None:
    body = render_body(entity)
    if body is not None:
        replace_body(entity, body, [part for shape in body.render_shapes for part in simplify(shape)])


def _simplify_shape(shape, fraction: float, marks: bool) -> list:
    if not isinstance(shape, sapien.render.RenderShapeTriangleMesh):
        return [shape.clone()]
    key = (shape.filename, tuple(_look(part.material) for part in shape.parts), fraction, marks)
    if key not in _of_files or not shape.filename:
        _of_files[key] = _simplify_parts(shape.parts, fraction, marks)
    prototypes = _of_files[key]
    if prototypes is None:
        return [shape.clone()]
    simplified = []
    for prototype in prototypes:
        clone = prototype.clone()
        clone.local_pose = shape.local_pose
        clone.scale = shape.scale
        clone.name = shape.name
        simplified.append(clone)
    return simplified


def _simplify_parts(parts: list, fraction: float, marks: bool) -> list | None:
    """A shape for each part, or None where all are to stay as they are."""
    whole = [len(part.triangles) < _KEEP_WHOLE or _is_textured(part) for part in parts]
    if all(whole):
        return None
    return [
        _simplify_part(part, 1.0 if stays else fraction * min(1.0, _FINEST / len(part.triangles)), marks)
        for part, stays in zip(parts, whole, strict=True)
    ]


def _is_textured(part) -> bool:
    material = part.material
    return material.base_color_texture is not None or material.normal_texture is not None


def _look(material) -> tuple:
    return (tuple(material.base_color), material.metallic, material.roughness, material.specular)


def _marked_flat(material) -> sapien.render.RenderMaterial:
    """A copy of a material without textures."""
    names = ("base_color", "emission", "metallic", "roughness", "specular", "transmission", "transmission_roughness")
    marked = sapien.render.RenderMaterial()
    for name in names:
        setattr(marked, name, getattr(material, name))
    marked.ior = FLAT
    return marked


def _simplify_part(part, fraction: float, marks: bool) -> sapien.render.RenderShapeTriangleMesh:
    material = part.material
    look = repr(_look(material)).encode()
    digest = hashlib.sha1(part.vertices.tobytes() + part.triangles.tobytes() + look).hexdigest()
    key = (digest, fraction, marks)
    if key not in _simplified:
        if fraction == 1.0:
            arrays = part.vertices, part.triangles, part.get_vertex_normal(), part.get_vertex_uv()
        else:
            points, faces = kept(part.vertices, part.triangles, fraction, _collapse_edges)
            arrays = _without_normals(points, faces) if marks else _with_normals(points, faces)
            material = _marked_flat(material) if marks else material
        _simplified[key] = sapien.render.RenderShapeTriangleMesh(*arrays, material)
    return _simplified[key]


def _collapse_edges(vertices: np.ndarray, triangles: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns points float32 [P, 3] and faces [K, 3] of a mesh with about `fraction` of the triangles."""
    # Flat shading stores a vertex once per face: without welding there are no shared edges to collapse.
    first, welded = distinct_rows(np.round(vertices * 1e5).astype(np.int64))
    points, faces = fast_simplification.simplify(
        vertices[first].astype(np.float32),
        welded[triangles].astype(np.int32),
        target_reduction=1.0 - fraction,
    )
    points = points.astype(np.float32)
    return points, faces[np.linalg.norm(_normals(points, faces), axis=1) > 0]


def distinct_rows(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index of each distinct row's first occurrence, in the rows' order, and for each row which of them it is.

    As np.unique(rows, axis=0), which takes four times as long.
    """
    order = np.lexsort(rows.T[::-1])
    ordered = rows[order]
    is_new = np.r_[True, (ordered[1:] != ordered[:-1]).any(axis=1)]
    which = np.empty(len(rows), np.int64)
    which[order] = np.cumsum(is_new) - 1
    return order[is_new], which


def _normals(points: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """float32 [K, 3], as long as twice the area."""
    corners = points[faces]
    return np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])


def _with_normals(points: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, ...]:
    """Returns vertices [3K, 3], triangles [K, 3], normals [3K, 3], uvs [3K, 2] of a flat-shaded mesh."""
    normals = _normals(points, faces)
    count = len(faces)
    return (
        points[faces].reshape(-1, 3),
        np.arange(3 * count, dtype=np.uint32).reshape(-1, 3),
        np.repeat(normals / np.linalg.norm(normals, axis=1, keepdims=True), 3, axis=0),
        np.zeros((3 * count, 2), np.float32),
    )


def _without_normals(points: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, ...]:
    """Returns vertices [V, 3], triangles [K, 3], and normals [V, 3] and uvs [V, 2] that nothing reads.

    Vertices are numbered as they are first used: Mesa's software renderer remembers what it has shaded by the last
    eight bits of the number, so that neighbours which come one after the other share it.
    """
    faces = faces[_along_a_curve(points[faces].mean(axis=1))]
    used, first_use, triangles = np.unique(faces, return_index=True, return_inverse=True)
    order = np.argsort(first_use)
    number = np.argsort(order)
    count = len(used)
    return (
        points[used[order]],
        number[triangles].reshape(-1, 3).astype(np.uint32),
        np.tile(np.array([0, 0, 1], np.float32), (count, 1)),
        np.zeros((count, 2), np.float32),
    )


def _along_a_curve(points: np.ndarray) -> np.ndarray:
    """The order in which the Z-curve (Morton 1966) comes through points float32 [K, 3]: near ones are near in it."""
    low, bits = points.min(axis=0), np.arange(10)
    places = (points - low) * ((2**10 - 1) / max(np.ptp(points, axis=0).max(), 1e-9))
    digits = (places.astype(np.int64)[..., None] >> bits) & 1
    return np.argsort((digits << (3 * bits + np.arange(3)[:, None])).sum(axis=(1, 2)), kind="stable")


def _flatten_shape(shape) -> list:
    """Returns the rectangle that a flat rectangular grid spans, texture coordinates extended linearly."""
    vertices, uvs = shape.parts[0].vertices, shape.parts[0].get_vertex_uv()
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    assert low[2] == high[2], "the ground is not flat"
    corners = np.array([[low[0], low[1]], [high[0], low[1]], [high[0], high[1]], [low[0], high[1]]], np.float32)
    affine, *_ = np.linalg.lstsq(np.c_[vertices[:, :2], np.ones(len(vertices))], uvs, rcond=None)
    return [
        sapien.render.RenderShapeTriangleMesh(
            np.c_[corners, np.full(4, low[2])].astype(np.float32),
            np.array([[0, 1, 2], [0, 2, 3]], np.uint32),
            np.tile(np.array([0, 0, 1], np.float32), (4, 1)),
            (np.c_[corners, np.ones(4)] @ affine).astype(np.float32),
            shape.parts[0].material,
        )
    ]
