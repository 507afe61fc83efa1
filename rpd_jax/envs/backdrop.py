"""What stands still is drawn once: in later frames only its depth is, and the first picture is put behind the rest.

The tasks have no shadows, so that where nothing is before the table or the ground they look the same in every frame,
and most of a frame's shading is theirs. The frames are the same, bit for bit.
"""

from collections.abc import Callable

import numpy as np
import torch

from rpd_jax.envs.render_bodies import render_body
from rpd_jax.envs.shaders import STILL

# A reset puts the table where PhysX, in the next step, moves it by a last digit.
_PLACES = 4

# Of materials that are not marked; nothing but the marks reads it.
_UNMARKED = 1.45


class Backdrop:
    """The picture of some actors of a scene alone.

    Args:
        scene: ManiSkillScene of one environment, loaded; its camera does not move.
        names: of actors that stand still between the resets; others are passed over.
    """

    def __init__(self, scene, names: tuple[str, ...]):
        self._scene = scene.sub_scenes[0]
        self._still = [entity for name in names if name in scene.actors for entity in scene.actors[name]._objs]
        bodies = [render_body(entity) for entity in self._still]
        self._materials = [part.material for body in bodies for shape in body.render_shapes for part in shape.parts]
        self._pictures: dict[bytes, np.ndarray] = {}  # by where the actors are
        self._mark(STILL)

    def behind(self, rgba: torch.Tensor, draw: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Puts the picture behind what was drawn.

        Args:
            rgba: uint8 [1, H, W, 4], with alpha 0 where nothing is or what stands still.
            draw: draws such a frame of the scene as it is.

        Returns:
            uint8 [1, H, W, 4].
        """
        poses = [entity.pose for entity in self._still]
        places = b"".join(part.tobytes() for pose in poses for part in (pose.p, pose.q))
        if places not in self._pictures:
            if len(self._pictures) == _PLACES:
                self._pictures.clear()
            self._pictures[places] = self._drawn_alone(draw)
        # A pixel's four bytes as one number, with alpha as the highest: a tenth of the time.
        pixels = rgba.numpy().view("<u4")
        behind = np.where(pixels < 1 << 24, self._pictures[places].view("<u4"), pixels)
        return torch.from_numpy(behind.view(np.uint8))

    def _drawn_alone(self, draw: Callable[[], torch.Tensor]) -> np.ndarray:
        others = [render_body(entity) for entity in self._scene.entities if entity not in self._still]
        visible = [(body, body.visibility) for body in others if body is not None]
        self._mark(_UNMARKED)
        for body, _ in visible:
            body.visibility = 0.0
        picture = draw().numpy().copy()
        for body, visibility in visible:
            body.visibility = visibility
        self._mark(STILL)
        return picture

    def _mark(self, index: float) -> None:
        for material in self._materials:
            material.ior = index
