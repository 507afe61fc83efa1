"""The student of a run directory: its network and the parameters of a checkpoint, nothing else of the run."""

import dataclasses
import logging
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util
from ml_collections import ConfigDict

from rpd_jax.errors import UserError
from rpd_jax.student.networks import ActorCritic
from rpd_jax.training_run.fields import read_run_config

# What Orbax, and the code behind it, raise where a checkpoint is damaged.
_DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError, NotImplementedError)


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
    params = _restore_params(checkpoints / str(iteration) / "state")
    try:
        _check_finite(params, checkpoints / str(iteration))
        network = ActorCritic.from_config(config.student, params["params"]["actor"]["output"]["bias"].shape[0])
        student = TrainedStudent(config, network, params, iteration, _state_dim(network, params["params"]))
        _check_shapes(student)
    except _DAMAGE as error:
        raise _unreadable(checkpoints / str(iteration), error) from error
    return student


def _check_shapes(student: TrainedStudent) -> None:
    """Raises ValueError if the parameters are not those of the network."""
    size, state_dim = student.config.env.image_size, student.state_dim
    frames = None if student.frame_shape is None else jax.ShapeDtypeStruct((1, size, size, 3), np.uint8)
    state = None if state_dim is None else jax.ShapeDtypeStruct((1, state_dim), np.float32)
    wanted = jax.eval_shape(student.network.init, jax.random.key(0), frames, state)
    shapes = [jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), tree) for tree in (wanted, student.params)]
    if shapes[0] != shapes[1]:
        raise ValueError("its parameters are not those of the student in config.json")


def _unreadable(checkpoint: Path, error: Exception) -> UserError:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return UserError(f"Checkpoint {checkpoint} cannot be read ({reason}): name another one (--checkpoint).")


def _restore_params(path: Path) -> dict:
    checkpointer = ocp.PyTreeCheckpointer()
    logger = logging.getLogger("absl")  # Orbax warns of a file that only checkpoints of a single tree have
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        saved = checkpointer.metadata(path).item_metadata.tree["learner"]["params"]
        wanted = {"learner": {"params": jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), saved)}}
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        placement = jax.tree.map(lambda _: ocp.ArrayRestoreArgs(sharding=sharding), wanted)
        arguments = ocp.args.PyTreeRestore(item=wanted, restore_args=placement, partial_restore=True)
        return checkpointer.restore(path, args=arguments)["learner"]["params"]
    except _DAMAGE as error:
        raise _unreadable(path.parent, error) from error
    finally:
        logger.setLevel(level)
        checkpointer.close()


def _check_finite(params: dict, path: Path) -> None:
    for name, leaf in traverse_util.flatten_dict(params["params"], sep="/").items():
        if not np.isfinite(leaf).all():
            raise UserError(
                f"Parameter {name} of checkpoint {path} has numbers that are not finite: name another one "
                "(--checkpoint)."
            )


def _state_dim(network: ActorCritic, params: dict) -> int | None:
    if not network.sees_state:
        return None
    layer = params["state_encoder" if network.sees_frames else "trunk_0"]
    return layer["kernel"].shape[0]
