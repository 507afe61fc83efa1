"""What a wrong convention looks like: a number of a teacher's actions that stands still, or is always at its bound."""

import numpy as np

_NAMES = ("translation x", "translation y", "translation z", "rotation x", "rotation y", "rotation z", "gripper")
_GRIPPER = 6
_SHARE = 0.95  # of the frames
_BOUND = 1.0 - 1e-3
_FEWEST = 100  # actions, from which something can be said


class OddActions:
    """Looks at actions as they are taken, and says what is odd about them.

    A number that is always exactly 0 is not odd: it does nothing, as the rotation in most tasks. Nor is a gripper
    that is always open or always closed.
    """

    def __init__(self):
        self._count = 0
        self._low = self._high = None
        self._at_bounds = np.zeros((2, 1), int)  # lower and upper one

    def see(self, actions: np.ndarray) -> None:
        """Counts actions [N, A], clipped to [-1, 1]."""
        if self._low is None:
            self._low, self._high = np.full(actions.shape[1], np.inf), np.full(actions.shape[1], -np.inf)
        self._count += len(actions)
        self._low = np.minimum(self._low, actions.min(axis=0))
        self._high = np.maximum(self._high, actions.max(axis=0))
        self._at_bounds = self._at_bounds + np.stack([actions <= -_BOUND, actions >= _BOUND]).sum(axis=1)

    def sentences(self) -> list[str]:
        """A warning for each number that is odd."""
        if self._count < _FEWEST:
            return []
        found = []
        for index, (low, high) in enumerate(zip(self._low, self._high, strict=True)):
            share = self._at_bounds[:, index].max() / self._count
            if share > _SHARE and index == _GRIPPER:
                continue
            name = f"Number {index} of the teacher's actions" + (f" ({_NAMES[index]})" if len(self._low) == 7 else "")
            if low == high and low != 0.0:
                found.append(f"{name} never moves, it is always {low:g}")
            elif share > _SHARE and low != high:
                found.append(f"{name} is at its bound in {share:.0%} of the frames")
        mend = "its actions may mean something else here (teacher.gripper, its action statistics, pd_ee_delta_pose)."
        return [f"Warning: {sentence}: {mend}" for sentence in found]
