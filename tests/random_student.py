"""A run directory whose student has random weights."""

import jax
import numpy as np

from configs import default
from rpd_jax import settings
from rpd_jax.run.checkpoints import Checkpoints
from rpd_jax.run.directory import open_run
from rpd_jax.student.networks import ActorCritic
from rpd_jax.training_run.fields import TRAINING

STATE_DIM = 5


def make_run(workdir, observation="rgb", image_size=40, student_size=40, encoder="small"):
    """A run with one checkpoint of a student with random weights (drawn here, as initialisers compile slowly)."""
    config = default.get_config()
    config.algorithm = "ppo"
    config.student.observation = observation
    config.env.image_size = image_size
    config.student.image_size = student_size
    config.student.encoder = encoder
    config = settings.resolve(config)
    open_run(workdir, config, TRAINING)
    network = ActorCritic.from_config(config.student)
    frames = np.zeros((1, image_size, image_size, 3), np.uint8) if "rgb" in observation else None
    shapes = jax.eval_shape(network.init, jax.random.key(0), frames, np.zeros((1, STATE_DIM), np.float32))
    random = np.random.default_rng(0)

    def draw(leaf):
        fan_in = np.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 10.0
        return random.normal(0.0, np.sqrt(2.0 / fan_in), leaf.shape).astype(np.float32)

    params = jax.tree.map(draw, shapes)
    if "statistics" in params:
        params["statistics"] = jax.tree.map(np.abs, params["statistics"])
    checkpoints = Checkpoints(workdir / "checkpoints", keep=1)
    checkpoints.save(3, {"learner": {"params": params}, "replay": {"frames": np.zeros(4, np.uint8)}}, {"step": 0})
    checkpoints.close()
    return network, params
