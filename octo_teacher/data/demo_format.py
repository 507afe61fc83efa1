"""What a format of demos is."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

from octo_teacher.data.actions import ActionMeaning
from octo_teacher.data.episodes import Demo


@dataclasses.dataclass(frozen=True)
class DemoFormat:
    """A way in which demos lie on disk; those of other packages are entry points of `octo_teacher.demo_formats`.

    Attributes:
        description: in a few words, for a path that is of no format.
        recognises: True if a path is, or is meant to be, a dataset of this format.
        read: yields the episodes, one in memory at a time; takes the arguments of `readers.read_demos` after the path,
            counts in `tally` (a `left_out.Tally`) what it reads and leaves out, and closes it.
        action_meaning: what the dataset's metadata says of its actions.
        resizes: whether `read` takes `sizes` too, and resizes each frame by `images.resize_frame` once it is decoded.
    """

    description: str
    recognises: Callable[[Path], bool]
    read: Callable[..., Iterator[Demo]]
    action_meaning: Callable[[Path], ActionMeaning]
    resizes: bool = False
