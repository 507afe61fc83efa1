"""Trains an Octo on demos: flags only, the work is in octo_teacher.finetune."""

import os
import sys

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

from absl import app, flags
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file("config", "configs/finetune_octo.py", "What to train, and on what.")
WORKDIR = flags.DEFINE_string("workdir", "runs/finetune_octo", "Where results go; an interrupted run continues there.")


def main(arguments: list[str]) -> None:
    from octo_teacher.finetune import finetune
    from rpd_jax.errors import UserError

    if len(arguments) > 1:
        sys.exit(f"error: unknown argument {arguments[1]!r}: options are given as --config.name=value.")
    try:
        finetune(CONFIG.value, WORKDIR.value)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    app.run(main)
