r"""Trains one language-conditioned octo-nano on all six training tasks of the paper, from scratch on a CPU.

    for task in PushCube:0.6 PullCube:0.6 PickCube:0.3 StackCube:0.3 LiftPegUpright:0.3 RollBall:0.2; do
        python -m octo_teacher.demos record --task ${task%:*}-v1 --noise ${task#*:} --episodes 300 \
            --mesh-detail 0.15 -o demos/${task%:*}-v1.h5
    done
    python finetune_octo.py --config=configs/finetune_octo_six_tasks.py --workdir=runs/octo-nano-six-tasks
    python -m rpd_jax.evaluate --teacher=runs/octo-nano-six-tasks/model --tasks=all --output=runs/octo-nano-six-tasks

Action noise widens what the demos show; where a task is precise, more of it only costs failed episodes.
"""

from ml_collections import ConfigDict

from configs.finetune_octo import get_config as get_push_cube_config
from rpd_jax.tasks import TASKS


def get_config() -> ConfigDict:
    config = get_push_cube_config()
    config.demos = ",".join(f"demos/{task.env_id}.h5" for task in TASKS.values() if not task.held_out)
    config.steps = 15000
    config.optimizer.warmup_steps = 500
    config.validate_every = config.save_every = 1000
    return config
