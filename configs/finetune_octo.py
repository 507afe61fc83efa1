r"""Trains an Octo on recorded demos; the defaults made the teacher in octo_teacher/pretrained/octo-nano-push-cube.

    python -m octo_teacher.demos record --task PushCube-v1 --episodes 400 --mesh-detail 0.15 --noise 0.6 \
        -o demos/push_cube.h5
    python finetune_octo.py --config=configs/finetune_octo.py --workdir=runs/octo-nano

From a checkpoint: --config.init=hf://rail-berkeley/octo-small-1.5 --config.optimizer.learning_rate=3e-4
--config.optimizer.warmup_steps=2000 --config.batch_size=256 (on a GPU).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0

    # "scratch", or a checkpoint in the published layout: a folder or hf://owner/name.
    config.init = "scratch"
    # What is built from scratch; ignored with a checkpoint.
    config.model = "octo-nano"
    config.window = 1

    # Files of `python -m octo_teacher.demos record`, separated by commas.
    config.demos = "demos/push_cube.h5"
    config.held_out = 0.1
    config.batch_size = 64
    config.steps = 3000

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 200
    config.optimizer.weight_decay = 0.01
    config.optimizer.clip_norm = 1.0
    config.optimizer.freeze_t5 = True

    # The original recipe crops 0.8-1.0 of the frame; a crop moves the table, and from few demos that costs more than it
    # gives, so that here small shifts take its place.
    config.augment = ConfigDict()
    config.augment.enabled = True
    config.augment.crop_scale = (1.0, 1.0)
    config.augment.crop_ratio = (0.9, 1.1)
    config.augment.shift = 4
    config.augment.brightness = 0.1
    config.augment.contrast = (0.9, 1.1)
    config.augment.saturation = (0.9, 1.1)
    config.augment.hue = 0.05

    config.log_every = 50
    config.validate_every = 250
    config.save_every = 250
    # Threads that prepare batches; frames are in memory, so few are enough.
    config.data_threads = 2
    return config
