"""The rollout as the learner sees it, and the axes of its arrays."""

import typing

from flax import struct
from jaxtyping import Array, Bool, Float, UInt8, jaxtyped


@struct.dataclass
class Rollout:
    """What T steps of N environments gave, labels included.

    Attributes:
        rgb: camera frames, or None where the student sees the state only.
        state: D numbers of the simulator, or None where it sees frames only.
        actions: as drawn by the policy, before the environment clips them.
        logprobs: log density of the actions under the policy that drew them.
        values: value of each observation.
        rewards: of each step.
        dones: dones[t] says that an episode ended before step t.
        next_done: the same flag for the observation after the last step.
        next_value: value of the observation after the last step.
        final_values: value of the last observation of an episode that ended at step t, else 0.
        teacher_actions: S labels of each observation in each of E sets. Epoch e of an update learns from set e mod E:
            E is 1 where a frame keeps its label. None without a teacher.
        valid: False where the step was lost (see Step.valid), whose sample is not to be learnt from; None: none was.
    """

    rgb: UInt8[Array, "T N H W 3"] | None
    state: Float[Array, "T N D"] | None
    actions: Float[Array, "T N A"]
    logprobs: Float[Array, "T N"]
    values: Float[Array, "T N"]
    rewards: Float[Array, "T N"]
    dones: Float[Array, "T N"] | Bool[Array, "T N"]
    next_done: Float[Array, " N"] | Bool[Array, " N"]
    next_value: Float[Array, " N"]
    final_values: Float[Array, "T N"]
    teacher_actions: Float[Array, "E S T N A"] | None = None
    valid: Bool[Array, "T N"] | None = None


def _axes(pytree: type) -> dict[str, tuple[str, ...]]:
    hints = {name: typing.get_args(hint) or (hint,) for name, hint in typing.get_type_hints(pytree).items()}
    return {name: tuple(kinds[0].dim_str.split()) for name, kinds in hints.items()}


# Field of a Rollout -> the names of its axes, such as ("T", "N", "A").
AXES = _axes(Rollout)


def check_arrays(record: typing.Any) -> None:
    """Compares the arrays of a Rollout, or of another record with such annotations, with what they say.

    In a function that is traced it costs nothing when that runs.

    Raises:
        TypeError: an array of another type or shape, or axes of the same name with different sizes.
    """
    with jaxtyped("context"):
        for name, hint in typing.get_type_hints(type(record)).items():
            value = getattr(record, name)
            if not any(isinstance(value, kind) for kind in typing.get_args(hint) or (hint,)):
                found = f"{value.dtype}{list(value.shape)}" if hasattr(value, "shape") else type(value).__name__
                raise TypeError(
                    f"{type(record).__name__}.{name} is {found}, not {hint}, or its sizes are not those of the fields "
                    "before it."
                )
