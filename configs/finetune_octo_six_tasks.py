r"""Trains one language-conditioned octo-nano on the paper's six training tasks, from scratch: the embedded teacher.

    for task in PushCube:0.6:300 PullCube:0.6:300 PickCube:0.3:300 LiftPegUpright:0.3:200 StackCube:0.3:250 \
        RollBall:0.2:150
    do
        IFS=: read name noise episodes <<< "$task"
        python -m octo_teacher.demos record --task $name-v1 --noise $noise --episodes $episodes --mesh-detail 0.15 \
            -o demos/$name-v1.h5
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
