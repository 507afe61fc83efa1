"""Trains a student: python train.py --config=configs/push_cube_sparse.py [--workdir=DIR] [--config.FIELD=VALUE ...]

The same command continues a run that was stopped. --first_stages=RUN takes the stages (of refine=state) that are the
same in another run from there.
"""

from rpd_jax.command.start import start

if __name__ == "__main__":
    start()

import os

# JAX shares the GPU with the simulator, so it must not take three quarters of the memory at its first use.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

from absl import flags
from ml_collections import config_flags

from rpd_jax.command.line import read_config, run_command

_CONFIG = config_flags.DEFINE_config_file("config", None, "The settings: a file of configs/.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The run's directory; by default runs/<config>-<algorithm>-seed<seed>.")
_FIRST_STAGES = flags.DEFINE_string("first_stages", None, "A run whose first stages are taken where they are the same.")


def main() -> None:
    from rpd_jax.trainer import train

    config_file = config_flags.get_config_filename(flags.FLAGS["config"])
    train(read_config(_CONFIG), _WORKDIR.value, config_file, _FIRST_STAGES.value)


flags.mark_flag_as_required("config")

if __name__ == "__main__":
    run_command(main)
