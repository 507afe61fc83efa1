r"""Fine-tunes a published Octo with its original recipe: AdamW 3e-4, batch 256, crops of 0.8 to 1.0 of the frame.

    python finetune_octo.py --config=configs/finetune_octo_published.py --config.demos=demos/push_cube.h5 \
        --config.init=hf://rail-berkeley/octo-small-1.5 --workdir=runs/octo-small

Rates, warm-up and augmentations as in Octo's scripts/configs/finetune_config.py, 40,000 steps as the paper's teachers.
Demos should be recorded with --image-size 256. Meant for a GPU.
"""

from ml_collections import ConfigDict

from configs.finetune_octo import get_config as get_nano_config


def get_config() -> ConfigDict:
    config = get_nano_config()
    config.init = "hf://rail-berkeley/octo-base-1.5"
    config.batch_size = 256
    config.steps = 40000
    config.precision = "bfloat16"
    config.optimizer.learning_rate = 3e-4
    config.optimizer.warmup_steps = 2000
    config.augment.crop_scale = (0.8, 1.0)
    config.augment.shift = 0
    config.eval.mesh_detail = 1.0
    config.validate_every = config.save_every = 2500
    config.data_threads = 16
    return config
