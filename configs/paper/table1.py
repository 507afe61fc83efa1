"""The paper's Table I: success of the teachers by themselves on the eight tasks.

python -m rpd_jax.sweep configs/paper/table1.py [--launcher=slurm --slurm=partition=gpu,gpus_per_node=1]
python -m rpd_jax.sweep configs/paper/table1.py --scale=cpu

Expect of the fine-tuned Octo: LiftPegUpright 0%, PickCube 9%, PullCube 90%, PullCubeTool 10%, PushCube 67%, RollBall
10%, StackCube 1%, PokeCube 12%; of the one that is not fine-tuned 0% on all. The miniature has the embedded teacher.
"""

from rpd_jax.sweep.grid import Job, teacher_evaluation
from rpd_jax.tasks import TASKS


def get_sweep(scale: str) -> list[Job]:
    if scale == "cpu":
        return teacher_evaluation({"octo-nano": "octo-nano"}, TASKS, {"episodes": 100})
    teachers = {
        "octo-finetuned": "hf://Juelg/octo-base-1.5-finetuned-maniskill",
        "octo-base": "hf://rail-berkeley/octo-base-1.5",
    }
    return teacher_evaluation(teachers, TASKS, {"episodes": 500, "image_size": 256, "mesh_detail": 1.0})
