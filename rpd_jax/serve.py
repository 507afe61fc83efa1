"""Serves a teacher or a student to robot clients and to trainers elsewhere, by openpi's WebSocket protocol.

python -m rpd_jax.serve --teacher=octo-nano [--port=8000]
python -m rpd_jax.serve --run=runs/push_cube_sparse-rpd_mse-seed0 [--checkpoint=ITERATION]
python -m rpd_jax.serve --teacher=octo-nano --host=0.0.0.0 --api_key_file=FILE

Requests of several connections go through the policy together. --config.teacher.FIELD changes how a teacher is loaded,
as in train.py. Other machines reach it only with another --host, which needs an API key: in a file, or in the variable
RPD_POLICY_API_KEY. A trainer there uses --config.teacher.name=openpi --config.teacher.address=ws://HOST:PORT.
"""

from rpd_jax.command.start import start

if __name__ == "__main__":
    start()

import os

# As in train.py: a share of the GPU stays free for others.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags
from ml_collections.config_flags import config_flags

from rpd_jax.command.line import read_config, run_command
from rpd_jax.errors import UserError

if TYPE_CHECKING:
    from rpd_jax.policy_server.server import ServedPolicy

_TEACHER = flags.DEFINE_string("teacher", None, "A checkpoint's folder or hub address, or embedded name.")
_RUN = flags.DEFINE_string("run", None, "A run's directory, for its student.")
_CHECKPOINT = flags.DEFINE_integer("checkpoint", None, "With --run: the checkpoint's iteration; by default the newest.")
_HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen at; 0.0.0.0 is every one of this machine.")
_PORT = flags.DEFINE_integer("port", 8000, "Port to listen at; 0 takes a free one.", lower_bound=0, upper_bound=65535)
_API_KEY_FILE = flags.DEFINE_string("api_key_file", "", "File that holds the API key that clients have to send.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the samples of clients that give no random key.")
_CONFIG = config_flags.DEFINE_config_file("config", None, "Says how a teacher is loaded.")
_DEFAULT_CONFIG = Path(__file__).parents[1] / "configs" / "default.py"


def main() -> None:
    import asyncio

    from rpd_jax.policy_server.api_key import VARIABLE, read_api_key
    from rpd_jax.policy_server.server import PolicyServer, listen_at

    if _TEACHER.value and _RUN.value:
        raise UserError("--teacher and --run exclude each other: give one of them.")
    if _CHECKPOINT.value is not None and not _RUN.value:
        raise UserError(f"--checkpoint={_CHECKPOINT.value} is one of a run: name that with --run, or leave it out.")
    if _RUN.value:
        ignored = [f"config.{name}" for name in config_flags.get_override_values(flags.FLAGS["config"])]
        ignored += ["seed"] if flags.FLAGS["seed"].present else []
        if ignored:
            raise UserError(f"--{ignored[0]} has no effect on the student of --run: leave it out.")
    api_key = read_api_key(_API_KEY_FILE.value, "--api_key_file")
    if api_key is None and not _is_loopback(_HOST.value):
        raise UserError(
            f"--host={_HOST.value} lets other machines in, which needs an API key: put one in a file and name it with "
            f"--api_key_file, or in the variable {VARIABLE}."
        )
    listener = listen_at(_HOST.value, _PORT.value)  # before the policy is loaded, which may take minutes
    policy = _student(_RUN.value) if _RUN.value else _teacher()
    place = f"ws://{_HOST.value}:{listener.getsockname()[1]}"
    print(f"Serving {policy.metadata['policy']} at {place}; Ctrl-C ends it.", flush=True)
    asyncio.run(PolicyServer(policy, api_key).run(listener))


def _is_loopback(host: str) -> bool:
    import ipaddress

    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _teacher() -> "ServedPolicy":
    import jax
    import jax.numpy as jnp
    import numpy as np

    from rpd_jax.evaluate.policies import named_teacher
    from rpd_jax.policy_server.seeding import SEEDED
    from rpd_jax.policy_server.server import ServedPolicy
    from rpd_jax.teachers import sees_state

    teacher, name = named_teacher(read_config(_CONFIG), _TEACHER.value)
    if sees_state(teacher):
        raise UserError(f"{name} sees the simulator's state: serve a student by --run, and a teacher that sees frames.")
    own_key = jax.random.key(_SEED.value)

    def act(frames, states, instruction, words, samples, number, steps):
        key = own_key if words is None else jax.random.wrap_key_data(jnp.asarray(words, jnp.uint32))
        asked = (jnp.asarray(frames), instruction, key, samples, number)
        if steps == 1:
            return np.asarray(teacher.act(*asked))[:, :, None]
        return np.asarray(teacher.act(*asked, steps=steps))

    horizon = getattr(teacher, "horizon", 1) or 1
    metadata = {"policy": name, "action_dim": 7, "action_horizon": horizon, SEEDED: 1}
    return ServedPolicy(act, metadata, frame_shape=(), state_dim=None, prompted=True, horizon=horizon)


def _student(run: str) -> "ServedPolicy":
    import numpy as np

    from rpd_jax.evaluate.trained_student import load_student
    from rpd_jax.policy_server.seeding import SEEDED
    from rpd_jax.policy_server.server import ServedPolicy

    student = load_student(run, _CHECKPOINT.value)
    mean_action = student.compiled_mean_action()

    def act(frames, states, instruction, words, samples, number, steps):
        actions = np.clip(np.asarray(mean_action(frames, states)), -1.0, 1.0)[:, None]
        return np.broadcast_to(actions, (samples, *actions.shape))

    name = f"{Path(run).resolve().name}, iteration {student.iteration}"
    metadata = {"policy": name, "action_dim": 7, "action_horizon": 1, SEEDED: 1}
    if student.frame_shape:
        metadata["image_size"] = list(student.frame_shape[:2])
    return ServedPolicy(act, metadata, student.frame_shape, student.state_dim, prompted=False)


if __name__ == "__main__":
    run_command(main, default_config=_DEFAULT_CONFIG)
