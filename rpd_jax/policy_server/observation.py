"""What a policy is shown of a moment: frame, robot's state, instruction, under the names that the policy wants."""

import dataclasses

import numpy as np
from PIL import Image

from rpd_jax.robot_state import NOTHING, ToldState


@dataclasses.dataclass(frozen=True)
class ObservationMap:
    """How an observation is laid out.

    Attributes:
        image: key of the frame, uint8 [H, W, 3].
        prompt: key of the instruction; it is not sent if empty.
        size: (height, width) of the frames that are sent; as they are rendered if empty.
        letterbox: frames keep their proportions and get black borders, instead of being stretched.
        state: key of the state, float32 [D].
        told: what that is; nothing is sent if it is none.
    """

    image: str
    prompt: str
    size: tuple[int, ...] = ()
    letterbox: bool = True
    state: str = "observation/state"
    told: ToldState = NOTHING

    def observation(self, frame: np.ndarray, instruction: str, state: np.ndarray) -> dict[str, object]:
        """Returns the observation of one frame, uint8 [H, W, 3], and of what is told of its state, float32 [D]."""
        shown = {self.image: self.shown(frame)}
        if self.told.size != 0:
            shown |= {self.state: state}
        return shown | ({self.prompt: instruction} if self.prompt else {})

    def shown(self, frame: np.ndarray) -> np.ndarray:
        """Returns a frame, uint8 [H, W, 3], in the size that is sent."""
        return resized(frame, *self.size, letterbox=self.letterbox) if self.size else frame


def resized(frame: np.ndarray, height: int, width: int, *, letterbox: bool) -> np.ndarray:
    """Returns a frame of another size, as openpi-client 0.1.2 makes it (image_tools.py): Pillow's bilinear filter.

    Args:
        frame: uint8 [H, W, 3].
        height: wanted, pixels.
        width: wanted, pixels.
        letterbox: keep the proportions, on black; else stretch.

    Returns:
        uint8 [height, width, 3].
    """
    if frame.shape[:2] == (height, width):
        return frame
    if not letterbox:
        return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR))
    ratio = max(frame.shape[1] / width, frame.shape[0] / height)
    inner_height, inner_width = max(1, int(frame.shape[0] / ratio)), max(1, int(frame.shape[1] / ratio))
    inner = Image.fromarray(frame).resize((inner_width, inner_height), Image.Resampling.BILINEAR)
    canvas = Image.new("RGB", (width, height))
    canvas.paste(inner, (max(0, int((width - inner_width) / 2)), max(0, int((height - inner_height) / 2))))
    return np.asarray(canvas)
