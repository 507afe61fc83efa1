"""The student of a run directory: its network and the parameters of a checkpoint, nothing else of the run."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from rpd_jax.errors import UserError
from rpd_jax.run.checkpoints import DAMAGE, read_part, unreadable
from rpd_jax.student.networks import ActorCritic
from rpd_jax.training_run.fields import read_run_config


@dataclasses.dataclass(frozen=True)
class TrainedStudent:
    """A student as a run left it.

    Attributes:
        config: of the run, resolved.
        network: the actor-critic.
        params: its parameters, float32, as `network.apply` takes them.
        iteration: of the checkpoint.
        state_dim: D of the simulator's state that it sees, or None.
    """

    config: ConfigDict
    network: ActorCritic
    params: dict
    iteration: int
    state_dim: int | None

    @property
    def frame_shape(self) -> tuple[int, int, int] | None:
        """(H, W, 3) of the frames it was trained on, before its own resizing, or None where it sees none."""
        size = self.config.env.image_size
        return (size, size, 3) if self.network.sees_frames else None

    def compiled_mean_action(self) -> Callable[[jax.Array | None, jax.Array | None], jax.Array]:
        """A function of frames and states that gives μ float32 [B, A], not clipped."""
        mean_action = jax.jit(partial(self.network.apply, method=ActorCritic.mean_action))
        return partial(mean_action, self.params)


def load_student(run: str | Path, iteration: int | None = None) -> TrainedStudent:
    """Reads a student; the run may still be going on, nothing in its directory is touched.

    Args:
        run: the run's directory.
        iteration: which checkpoint; the newest one if None.

    Raises:
        UserError: no run, no such checkpoint, or one that cannot be read.
    """
    config = read_run_config(run)
    checkpoints = Path(run).absolute() / "checkpoints"
    saved = sorted(int(path.name) for path in checkpoints.glob("*") if path.name.isdigit())
    if not saved:
        raise UserError(f"{run} has no checkpoint yet: wait until the run has saved one (checkpoint.every).")
    if iteration is None:
        iteration = saved[-1]
    if iteration not in saved:
        raise UserError(f"{run} has no checkpoint {iteration}: there are {', '.join(map(str, saved))}.")
    params = read_part(checkpoints / str(iteration) / "state", "learner", "params")
    try:
        _check_finite(params, checkpoints / str(iteration))
        network = ActorCritic.from_config(config.student, params["params"]["actor"]["output"]["bias"].shape[0])
        state_dim = _state_dim(network, params) if network.sees_state else None
        student = TrainedStudent(config, network, params, iteration, state_dim)
        _check_shapes(student)
    except DAMAGE as error:
        raise unreadable(checkpoints / str(iteration), error) from error
    return student


def _check_shapes(student: TrainedStudent) -> None:
    """Raises ValueError if the parameters are not those of the network."""
    size = student.config.env.image_size
    frames = None if student.frame_shape is None else jax.ShapeDtypeStruct((1, size, size, 3), np.uint8)
    read = _state_dim(student.network, student.params) if student.network.reads_state else None
    state = None if read is None else jax.ShapeDtypeStruct((1, read), np.float32)
    wanted = jax.eval_shape(student.network.init, jax.random.key(0), frames, state)
    shapes = [jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), tree) for tree in (wanted, student.params)]
    if shapes[0] != shapes[1]:
        raise ValueError("its parameters are not those of the student in config.json")


def _check_finite(params: dict, path: Path) -> None:
    # Parameters, and what their collection "statistics" holds.
    for name, leaf in traverse_util.flatten_dict(params, sep="/").items():
        if not np.isfinite(leaf).all():
            name = name.removeprefix("params/")
            raise UserError(
                f"Parameter {name} of checkpoint {path} has numbers that are not finite: name another one "
                "(--checkpoint)."
            )


def _state_dim(network: ActorCritic, params: dict) -> int:
    """D of a network that reads the state, in the actor, in the critic or for its guess."""
    if network.state == "scaled":
        return params["statistics"]["state_features"]["mean"].shape[0]
    if network.critic == "state":
        return params["params"]["critic_trunk"]["dense0"]["kernel"].shape[0]
    if network.state_coef > 0:
        return params["params"]["state_error"]["guess"]["bias"].shape[0]
    layer = params["params"]["state_encoder" if network.sees_frames else "trunk_0"]
    return layer["kernel"].shape[0]
