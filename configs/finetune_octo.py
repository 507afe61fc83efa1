r"""Trains an Octo on demos; the defaults made the teacher octo_teacher/pretrained/octo-nano-push-cube.

    python -m octo_teacher.demos record --task PushCube-v1 --episodes 400 --mesh-detail 0.15 --noise 0.6 \
        -o demos/push_cube.h5
    python finetune_octo.py --config=configs/finetune_octo.py --workdir=runs/octo-nano

From a checkpoint, with the original recipe: configs/finetune_octo_published.py.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0

    # "scratch", or a checkpoint in the published layout: a folder or hf://owner/name.
    config.init = "scratch"
    # What is built from scratch; ignored with a checkpoint.
    config.model = "octo-nano"
    # full, head_only, head_mlp_only; and patterns of further parameters that stay, separated by commas, for example
    # octo_transformer.observation_tokenizers_*
    config.mode = "full"
    config.frozen = ""
    config.window = 1
    # Actions per chunk; 0 keeps the model's.
    config.action_horizon = 0
    # What tells the task: language, image (a later frame of the episode), multimodal (one of the two each time).
    config.modality = "language"

    # Demos, separated by commas: ManiSkill h5 files, folders of RLDS or LeRobot datasets.
    config.demos = "demos/push_cube.h5"
    # Camera of the model -> the demos' name of it; "" is ManiSkill's human camera or the only one there is.
    config.cameras = ConfigDict()
    config.cameras.primary = ""
    config.cameras.wrist = config_dict.placeholder(str)
    # Frame size of a camera that the model does not know yet.
    config.new_camera_size = 128
    # Told to the robot where the demos hold no instruction, or an empty one.
    config.instruction = ""
    # The part of an RLDS or LeRobot dataset, also train[:95%], train[10:20], train+val, all.
    config.split = "train"
    # Leave out ManiSkill's failed episodes and those longer than the task's limit.
    config.only_successful = True
    # Where the last of 7 numbers goes from 0 to 1 and the demos do not say what it means: one_is_open or zero_is_open
    # convert it to ManiSkill's -1 (closed) to 1 (open), as_is keeps it.
    config.gripper = ""
    # Name of the action statistics in the checkpoint.
    config.dataset_name = "maniskill"
    config.held_out = 0.1
    # Where decoded frames are kept; "" is ~/.cache/rpd_jax/demos.
    config.cache = ""

    config.batch_size = 64
    # Parts of a batch that are computed one after the other, to save memory.
    config.accumulate = 1
    config.steps = 3000
    # float32 or bfloat16; parameters, head and optimiser are float32 anyway.
    config.precision = "float32"
    # Decay of a running mean of the parameters, for example 0.999; 0 for none.
    config.ema = 0.0
    # Devices that share each batch; 0 for all of this machine.
    config.devices = 0

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

    # Success in the simulator every so many steps; 0 for never.
    config.eval = ConfigDict()
    config.eval.every = 0
    config.eval.tasks = "PushCube-v1"
    config.eval.episodes = 40
    config.eval.num_envs = 10
    config.eval.seed = 1000
    config.eval.mesh_detail = 0.15

    config.log_every = 50
    config.validate_every = 250
    config.save_every = 250
    # Checkpoints, and models in model/, to keep: the newest ones.
    config.keep = 2
    # Threads that read ahead, and processes that make batches (0: threads of this process).
    config.data_threads = 2
    config.data_workers = 0
    return config
