"""Trains an Octo on demos: python finetune_octo.py --config=configs/finetune_octo.py [--workdir=DIR]

Settings change with --config.FIELD=VALUE. The same command continues a run that was stopped.
"""

from rpd_jax.command.start import start

if __name__ == "__main__":
    start()

import os

# As in train.py: a share of the GPU stays free for a simulator beside it.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

from absl import flags
from ml_collections import config_flags

from rpd_jax.command.line import read_config, run_command

_CONFIG = config_flags.DEFINE_config_file("config", None, "The settings: configs/finetune_octo.py or one like it.")
_WORKDIR = flags.DEFINE_string("workdir", "runs/finetune_octo", "The run's directory.")


def main() -> None:
    from octo_teacher.finetune import finetune

    finetune(read_config(_CONFIG), _WORKDIR.value)


flags.mark_flag_as_required("config")

if __name__ == "__main__":
    run_command(main)
