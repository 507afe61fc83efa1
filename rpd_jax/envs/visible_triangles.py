"""At full detail most of a robot's triangles are smaller than a pixel: only those are drawn that a pixel may show.

A triangle colours the pixels whose middle it covers (Vulkan's rule of rasterization), at 128 pixels one in fourteen of
the Panda's. Which may is found here, at each frame, from where their corners are on the picture, for a tenth of what it
costs a software renderer to find it. What is left out would have left no trace: the frames are the same, bit for bit.
"""

import dataclasses

import numpy as np
import sapien
from sapien.render import (
    RenderCameraComponent,
    RenderMaterial,
    RenderShape,
    RenderShapeTriangleMesh,
    RenderShapeTriangleMeshPart,
)

from rpd_jax.envs.mesh_detail import distinct_rows
from rpd_jax.envs.render_bodies import render_body, replace_body

# Pixels by which the renderer's corners may lie elsewhere: it rounds them to 1/256, and computes in float32 as we do.
_MARGIN = np.float32(0.02)
_HALF = np.float32(0.5)

# A corner's column and row as bounds: of the smallest pixel whose middle may be at or beyond it, and minus that of the
# largest whose middle may be at or before it. With these any triangle may cover something.
_ANYWHERE = np.int16(-(2**14))

_Corners = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class _Meshes:
    """The triangles of some meshes in one table; each mesh in coordinates of its own.

    Attributes:
        points: float32 [3, P], all meshes' different corners.
        first_points: int [M + 1], where each mesh's points begin.
        corners: the points of each triangle, three of int [T].
        first_triangles: int [M + 1], where each mesh's triangles begin.
        vertices: float32 [T, 3, 8], the position, normal and texture coordinates of each triangle's vertices.
    """

    points: np.ndarray
    first_points: np.ndarray
    corners: _Corners
    first_triangles: np.ndarray
    vertices: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a mesh is drawn: as a part of a shape of one of the bodies."""

    body: int
    shape: RenderShapeTriangleMesh
    material: RenderMaterial


class VisibleTriangles:
    """Gives the renderer, for each frame, those triangles of a scene's robots that a camera may show.

    Args:
        scene: ManiSkillScene of one environment, loaded, with lights that cast no shadows.
        camera: the only one that draws it, with perspective.
    """

    def __init__(self, scene, camera: RenderCameraComponent):
        self._camera = camera
        self._entities, self._bodies, self._places = [], [], []
        for entity in _entities_of_robots(scene):
            body = render_body(entity)
            if body is not None and all(map(_is_from_file, body.render_shapes)):
                self._places += [
                    _Place(len(self._bodies), shape, part.material)
                    for shape in body.render_shapes
                    for part in shape.parts
                ]
                self._entities.append(entity)
                self._bodies.append(body)
        self._meshes = _meshes_of([shape for body in self._bodies for shape in body.render_shapes])

    def select(self) -> None:
        """To be called before a frame is drawn, when everything is where it will be."""
        meshes = self._meshes
        drawn = may_cover(*self._projected(), meshes.corners, self._camera.width, self._camera.height)
        shapes = [[] for _ in self._bodies]
        cuts = np.searchsorted(drawn, meshes.first_triangles)
        for place, first, last in zip(self._places, cuts[:-1], cuts[1:], strict=True):
            if first < last:
                shapes[place.body].append(_shape(place, meshes.vertices.take(drawn[first:last], axis=0)))
        self._bodies = list(map(replace_body, self._entities, self._bodies, shapes))

    def _projected(self) -> tuple[np.ndarray, np.ndarray]:
        """Where each point is on the picture, in pixels float32 [2, P], and whether it is too near to say, bool [P]."""
        camera, points, firsts = self._camera, self._meshes.points, self._meshes.first_points
        half_width, half_height = camera.width / 2, camera.height / 2
        to_pixels = np.array([[half_width, 0, 0, half_width], [0, half_height, 0, half_height], [0, 0, 0, 1]])
        seen = to_pixels @ camera.get_projection_matrix() @ np.linalg.inv(camera.get_model_matrix().astype(float))
        pixels, near = np.empty((2, points.shape[1]), np.float32), np.empty(points.shape[1], bool)
        for place, first, last in zip(self._places, firsts[:-1], firsts[1:], strict=True):
            pose = self._entities[place.body].pose * place.shape.local_pose
            matrix = seen @ pose.to_transformation_matrix() @ np.diag([*place.shape.scale, 1.0])
            matrix = matrix.astype(np.float32)
            x, y, depth = matrix[:, :3] @ points[:, first:last] + matrix[:, 3:]
            np.less(depth, 2 * camera.near, out=near[first:last])
            depth[near[first:last]] = 1
            np.divide(x, depth, out=pixels[0, first:last])
            np.divide(y, depth, out=pixels[1, first:last])
        return pixels, near


def may_cover(pixels: np.ndarray, near: np.ndarray, corners: _Corners, width: int, height: int) -> np.ndarray:
    """Returns which triangles may cover the middle of a pixel of the picture, int [K], in order; of the rest none does.

    Args:
        pixels: float32 [2, P], columns and rows of points; the first pixel's middle is at (0.5, 0.5).
        near: bool [P], points that are not where `pixels` says: a triangle with such a corner may cover anything.
        corners: the points of each triangle, three of int [T].
        width, height: of the picture, pixels.
    """
    bounds = np.empty((pixels.shape[1], 4), np.int16)
    for axis, length in enumerate((width, height)):
        bounds[:, axis] = np.clip(np.ceil(pixels[axis] - (_HALF + _MARGIN)), 0, length)
        bounds[:, 2 + axis] = np.clip(np.ceil((_HALF - _MARGIN) - pixels[axis]), 1 - length, 1)
    bounds[near] = _ANYWHERE
    # A triangle's smallest bounds are those of the rectangle around it; a point's four are taken as one number.
    of_points = bounds.view(np.int64).ravel()
    around = of_points.take(corners[0]).view(np.int16)
    for corner in corners[1:]:
        np.minimum(around, of_points.take(corner).view(np.int16), out=around)
    around = around.reshape(-1, 4)
    columns, rows = around[:, 0] + around[:, 2], around[:, 1] + around[:, 3]  # minus the number of middles, plus 1
    drawn = np.flatnonzero((columns <= 0) & (rows <= 0))
    one = (columns[drawn] == 0) & (rows[drawn] == 0)
    only, others = drawn[one], drawn[~one]
    covering = only[_may_cover_middle(pixels, [corner.take(only) for corner in corners], around[only, :2])]
    return np.sort(np.concatenate([covering, others]))


def _may_cover_middle(pixels: np.ndarray, corners: list[np.ndarray], pixel: np.ndarray) -> np.ndarray:
    """Whether triangles may cover the middle of one pixel each, int16 [T, 2]; bool [T].

    It is inside where it lies on the same side of all three edges, whichever way round they go.
    """
    x, y = ([axis.take(corner) for corner in corners] for axis in pixels)
    column, row = pixel.T + _HALF
    left, right = np.ones((2, len(pixel)), bool)
    for a, b in ((0, 1), (1, 2), (2, 0)):
        dx, dy = x[b] - x[a], y[b] - y[a]
        side = dx * (row - y[a]) - dy * (column - x[a])
        margin = _MARGIN * (np.abs(dx) + np.abs(dy))
        left &= side <= margin
        right &= side >= -margin
    return left | right


def _entities_of_robots(scene) -> list[sapien.Entity]:
    links = [link for articulation in scene.articulations.values() for link in articulation.links]
    return [body.entity for link in links for body in link._objs]


def _is_from_file(shape: RenderShape) -> bool:
    return isinstance(shape, RenderShapeTriangleMesh) and bool(shape.filename)


def _meshes_of(shapes: list[RenderShapeTriangleMesh]) -> _Meshes:
    """The meshes of all parts of shapes, made once of files: the scenes of a process share them."""
    files = tuple(shape.filename for shape in shapes)
    if files not in _of_files:
        _of_files[files] = _tabulated([part for shape in shapes for part in shape.parts])
    return _of_files[files]


_of_files: dict[tuple[str, ...], _Meshes] = {}


def _tabulated(parts: list[RenderShapeTriangleMeshPart]) -> _Meshes:
    points, corners, vertices = [], [], []
    for part in parts:
        triangles = part.triangles
        first, which = distinct_rows(part.vertices)
        corners.append(which[triangles] + sum(map(len, points)))
        points.append(part.vertices[first])
        whole = np.concatenate([part.vertices, part.get_vertex_normal(), part.get_vertex_uv()], axis=1)
        vertices.append(whole[triangles])
    return _Meshes(
        points=np.ascontiguousarray(np.concatenate(points).T, np.float32),
        first_points=np.cumsum([0, *map(len, points)]),
        corners=tuple(np.ascontiguousarray(np.concatenate(corners).T, np.intp)),
        first_triangles=np.cumsum([0, *map(len, corners)]),
        vertices=np.concatenate(vertices).astype(np.float32),
    )


def _shape(place: _Place, vertices: np.ndarray) -> RenderShapeTriangleMesh:
    """Of some of a mesh's triangles: float32 [K, 3, 8]."""
    position, normal, uv = np.split(vertices.reshape(-1, 8), [3, 6], axis=1)
    order = np.arange(len(position), dtype=np.uint32).reshape(-1, 3)
    shape = RenderShapeTriangleMesh(position, order, normal, uv, place.material)
    shape.local_pose = place.shape.local_pose
    shape.scale = place.shape.scale
    shape.front_face = place.shape.front_face
    return shape
