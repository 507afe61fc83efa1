"""Every setting of a training run, with the values of the paper (arXiv 2503.05833, section IV) and of the CPU profiles.

A field that is None here takes its value from the profile (`profiles` below) once the machine is known: `paper` where
there is a CUDA device; elsewhere `refine`, or with refine=pixels `cpu`, `cpu_begun` for a student that begins as
another one, `cpu_state` for one that sees the state and no frames. A value set in a config file or on the command line
always wins over the profile.
"""

from ml_collections import ConfigDict, config_dict

# Where octo-nano's samples are several ways of doing it, whose mean is none: the mean of ten succeeds less than half as
# often as the one of them that is nearest to it (docs/miniatures.md).
_SEVERAL_WAYS = ("LiftPegUpright-v1", "PullCubeTool-v1", "StackCube-v1")
_ALL_EVALUATIONS = {"when_sampled": 0.0, "share": 0.0}
# PPO that begins as an imitator: a step too long, and what was imitated is lost.
_GENTLE_PPO = {
    "rollout_steps": 128,
    "learning_rate": 1e-4,
    "learning_rate_final": 1e-4,
    "critic_continues": True,
    "bootstrap_success": False,
    "target_kl": 0.05,
}


def get_config(task: str = "PushCube-v1", reward_mode: str = "sparse") -> ConfigDict:
    """Returns the settings for one task and reward mode ("sparse" or "normalized_dense")."""
    c = ConfigDict()
    c.algorithm = "rpd_mse"  # rpd_mse | rpd_l1 | rpd_bc | ppd | ppo | dagger | dagger_ppd
    # pixels: PPO in pixels, as in the paper | state: refine an expert that sees the simulator's state, then imitate it
    # auto: state without a CUDA device, if the profile is left to us and the student sees frames; else pixels
    c.refine = "auto"
    c.profile = "auto"  # auto | paper | cpu | cpu_begun | cpu_state | refine
    c.seed = 0
    c.total_steps = config_dict.placeholder(int)  # environment steps, all environments together

    c.env = ConfigDict()
    c.env.task = task
    c.env.reward_mode = reward_mode
    c.env.backend = "auto"  # auto: gpu where there is a CUDA device, else cpu
    c.env.num_envs = config_dict.placeholder(int)
    c.env.workers = config_dict.placeholder(int)  # CPU backend: worker processes; None: one per core
    c.env.image_size = config_dict.placeholder(int)  # px, height = width, of the one frame that teacher and student see
    c.env.mesh_detail = config_dict.placeholder(
        float
    )  # CPU backend: fraction of the robot's triangles that is drawn; 1.0 is exact
    c.env.step_timeout = 120.0  # seconds until a silent worker counts as hung
    c.env.restart_workers = False  # CPU backend: replace a worker that fails instead of ending the run
    c.env.camera = ConfigDict()
    c.env.camera.eye_offset = (0.0, 0.0, 0.0)  # metres, added to the human camera's position
    c.env.camera.target_offset = (0.0, 0.0, 0.0)  # metres, added to the point it looks at
    c.env.camera.fov = config_dict.placeholder(float)  # radians; None: the task's own

    c.student = ConfigDict()
    c.student.observation = "rgb"  # rgb | rgb+state | state
    c.student.start = ""  # a run, whose student this one begins as, all but its critic and σ; empty: it begins anew
    c.student.image_size = config_dict.placeholder(int)  # px; frames are resized to it inside the student
    c.student.encoder = config_dict.placeholder(str)  # nature: the paper's CNN | small, small_scaled: half its channels
    c.student.precision = "float32"  # float32 | bfloat16, of the convolutions
    c.student.initial_log_std = config_dict.placeholder(float)
    c.student.value_stop_gradient = config_dict.placeholder(bool)  # the critic's loss does not train the encoder
    # shared: on the actor's features | state: on the simulator's, in training only
    c.student.critic = config_dict.placeholder(str)
    # weight of a guess of the simulator's state from the actor's features, in training only; 0: none
    c.student.state_coef = config_dict.placeholder(float)
    c.student.state = "scaled"  # scaled: normalised by running statistics, and at finer scales | raw

    c.teacher = ConfigDict()
    c.teacher.name = "octo"
    c.teacher.checkpoint = config_dict.placeholder(str)  # folder, hf://owner/name, or the name of an embedded one
    # through which camera it looks: the student's | own: the task's, without what env.camera changes; for refine=state
    c.teacher.view = "student"
    c.teacher.instruction = ""  # empty: the task's own sentence
    c.teacher.precision = "float32"  # float32 | bfloat16
    c.teacher.refresh = "rollout"  # rollout: a frame keeps its label | epoch: new samples of it in each update epoch
    c.teacher.overlap = "auto"  # on: looks at frames while the environments step | off: afterwards | auto: if it helps
    c.teacher.dataset = ""  # whose statistics un-normalise its actions; empty: the checkpoint's only one
    c.teacher.gripper = "auto"  # auto: by its statistics | signed: -1..1 | open: 0..1, 1 open | closed: 0..1, 0 open
    c.teacher.openvla_checkpoint = "hf://Juelg/openvla-7b-finetuned-maniskill"  # openvla: if no checkpoint is given
    c.teacher.python = ""  # openvla, lerobot: the workers' interpreter (`make NAME-env` makes one); empty: this one
    c.teacher.devices = ("auto",)  # openvla, lerobot: a worker for each, ("cuda:0", "cuda:1"); auto: the GPU, or "cpu"
    c.teacher.temperature = 0.0  # openvla: of sampled actions; 0: the most likely action
    c.teacher.batch_size = 32  # openvla, lerobot, groot: frames that go through the model at a time
    c.teacher.start_timeout = 1800.0  # seconds without news from a starting worker; openpi, groot: without a server
    c.teacher.request_timeout = 600.0  # seconds until a batch counts as hung; openpi, groot: until it is asked again
    c.teacher.address = ""  # of policy servers, with commas. openpi: ws://host:8000 or wss://; groot: tcp://host:5555
    c.teacher.connections = 4  # openpi, groot: to each address, each with one frame (groot: one batch) on its way
    c.teacher.api_key_file = ""  # openpi, groot: file that holds the key; empty: RPD_POLICY_API_KEY, or none
    c.teacher.observation = ConfigDict()
    c.teacher.observation.image = "observation/image"  # openpi, groot, lerobot: the policy's name of the frame
    c.teacher.observation.state = "observation/state"  # its name of `state` below; groot: or arm:7,gripper:2
    c.teacher.observation.prompt = "prompt"  # openpi, groot: the policy's name of the instruction; empty: it gets none
    c.teacher.action_key = "actions"  # openpi, groot: the policy's name of its actions; groot: several with commas
    c.teacher.resize = ()  # openpi, groot: (height, width) of the frames that are sent, px; (): as they are rendered
    c.teacher.letterbox = True  # openpi, groot: where they are resized, keep proportions, on black; False: stretch
    c.teacher.chunk = 1  # each label is the mean of what so many chunks in a row say of its moment; not for ppd
    # openpi, groot, lerobot: none | joints: 7 and 2 fingers (qpos) | pose: the gripper's, 2 fingers | simulator: all
    c.teacher.state = "none"
    c.teacher.eval_episodes = config_dict.placeholder(
        int
    )  # episodes that measure the teacher's success before training; 0: none

    c.ppo = ConfigDict()
    c.ppo.rollout_steps = config_dict.placeholder(int)  # steps of each environment per iteration
    c.ppo.update_epochs = config_dict.placeholder(int)
    c.ppo.num_minibatches = config_dict.placeholder(int)
    c.ppo.learning_rate = config_dict.placeholder(float)
    c.ppo.learning_rate_final = config_dict.placeholder(float)  # reached linearly at the end of the run
    c.ppo.critic_first = config_dict.placeholder(int)  # environment steps in which the critic learns, the policy rests
    # where target_kl ends an update, the critic learns from the minibatches left over
    c.ppo.critic_continues = config_dict.placeholder(bool)
    # episodes that end by success go on in the value function, as those out of time do; with dense rewards always
    c.ppo.bootstrap_success = config_dict.placeholder(bool)
    c.ppo.gamma = config_dict.placeholder(float)
    c.ppo.gae_lambda = 0.9
    c.ppo.finite_horizon = True
    c.ppo.clip = 0.2
    c.ppo.clip_value_loss = False
    c.ppo.entropy_coef = 0.0
    c.ppo.value_coef = 0.5
    c.ppo.max_grad_norm = 0.5
    c.ppo.adam_eps = config_dict.placeholder(float)
    c.ppo.target_kl = config_dict.placeholder(float)  # 0: no early stop
    c.ppo.normalize_advantages = True
    c.ppo.advantage_std_floor = config_dict.placeholder(float)  # advantages are divided by max(std, floor)

    c.distill = ConfigDict()
    c.distill.coef = config_dict.placeholder(float)  # λ
    # constant: λ | cosine: from λ to coef_final within anneal_steps | success: from λ to coef_final while the success
    # of the sampled actions rises to anneal_success, and back if it falls
    c.distill.schedule = config_dict.placeholder(str)
    c.distill.coef_final = config_dict.placeholder(float)
    c.distill.anneal_steps = config_dict.placeholder(int)
    c.distill.anneal_success = 0.5
    c.distill.num_samples = 10  # teacher samples per frame for ppd; the other algorithms take one
    c.distill.averaged = config_dict.placeholder(int)  # each label is made of so many teacher samples; not for ppd
    c.distill.label = config_dict.placeholder(str)  # mean: of those samples | nearest: the one of them nearest to it
    c.distill.std_floor = 0.01  # ppd: the least standard deviation of the teacher's samples
    c.distill.replay = config_dict.placeholder(int)  # labelled frames kept for the distillation term; 0: none
    c.distill.replay_batch = config_dict.placeholder(int)  # kept frames added to each minibatch's distillation term
    c.distill.replay_coef = config_dict.placeholder(float)  # weight of that addition, in units of λ
    c.distill.replay_both = False  # keep frames and states in the replay, also what this student does not see
    # refine=state: where no label moves, the students of its last two stages rest, without noise and gradients
    c.distill.still = config_dict.placeholder(bool)
    c.distill.guide = config_dict.placeholder(float)  # share of episodes that the teacher acts in, at first; for dagger
    c.distill.guide_final = config_dict.placeholder(float)  # the same at the end, reached linearly
    c.distill.augment = config_dict.placeholder(int)  # px, largest random shift of replayed frames
    c.distill.augment_ppo = config_dict.placeholder(bool)  # shift the fresh ones too, in all terms

    c.eval = ConfigDict()
    c.eval.every = config_dict.placeholder(int)  # iterations between evaluations
    c.eval.episodes = config_dict.placeholder(int)  # at each evaluation before the last
    c.eval.final_episodes = config_dict.placeholder(int)  # at the end of the run
    c.eval.video_episodes = 16
    # one is left out while the sampled actions' success, since the one before, is less; 0: none
    c.eval.when_sampled = config_dict.placeholder(float)
    # one is left out while those before it took more than this share of the environment steps so far; 0: none
    c.eval.share = config_dict.placeholder(float)
    # training (or a stage of it) ends before total_steps when an evaluation's success reaches it, and still does with
    # final_episodes more episodes; 0: never
    c.eval.until = config_dict.placeholder(float)
    # it ends when so many evaluations in a row are no better than one before (with when_sampled or share: so many
    # sampled successes); 0: never
    c.eval.patience = 0
    c.eval.leave_best = False  # the student is that of the best of them, not of the last iteration

    c.checkpoint = ConfigDict()
    c.checkpoint.every = config_dict.placeholder(int)  # iterations
    c.checkpoint.keep = 2  # newest ones
    c.checkpoint.keep_best = 0  # ones with the highest success in an evaluation, besides

    c.log = ConfigDict()
    c.log.wandb = False  # write the metrics to Weights & Biases too

    c.stages = _open(_stages())  # of refine=state: what is different in its first two stages

    c.profiles = ConfigDict(_profiles(task, sparse=reward_mode == "sparse"))
    return c


def _profiles(task: str, sparse: bool) -> dict[str, dict]:
    return {
        "paper": _paper_profile(sparse),
        "cpu": _cpu_profile(task, sparse),
        "cpu_begun": _cpu_begun_profile(task, sparse),
        "cpu_state": _cpu_state_profile(task, sparse),
        "refine": _refine_profile(task, sparse),
    }


def _paper_profile(sparse: bool) -> dict:
    """The published runs: ManiSkill's ppo_rgb settings at 128 environments."""
    return {
        "total_steps": 30_000_000,
        "env": {"num_envs": 128, "image_size": 256, "mesh_detail": 1.0},
        "student": {
            "image_size": 256,
            "encoder": "nature",
            "initial_log_std": -0.5,
            "value_stop_gradient": False,
            "critic": "shared",
            "state_coef": 0.0,
        },
        "teacher": {"checkpoint": "hf://Juelg/octo-base-1.5-finetuned-maniskill", "eval_episodes": 500},
        "ppo": {
            "rollout_steps": 50,
            "update_epochs": 8,
            "num_minibatches": 48,
            "learning_rate": 3e-4,
            "learning_rate_final": 3e-4,
            **_plain_critic(sparse),
            "adam_eps": 1e-5,
            "target_kl": 0.2,
            "advantage_std_floor": 0.0,
        },
        "distill": {
            "coef": 1.0,
            "coef_final": 0.0,
            "schedule": "constant",
            "anneal_steps": 0,
            "averaged": 1,
            "label": "mean",
            "replay": 0,
            "replay_batch": 0,
            "replay_coef": 0.0,
            "still": False,
            "guide": 0.0,
            "guide_final": 0.0,
            "augment": 0,
            "augment_ppo": False,
        },
        "eval": {"every": 10, "episodes": 500, "final_episodes": 500, "until": 0.0, **_ALL_EVALUATIONS},
        "checkpoint": {"every": 10},
    }


def _plain_critic(sparse: bool) -> dict:
    """PPO as ManiSkill has it."""
    return {
        "critic_first": 0,
        "critic_continues": False,
        "bootstrap_success": True,
        "gamma": 0.99 if sparse else 0.8,
    }


def _few_evaluations(when_sampled: float) -> dict:
    """A twentieth of the time at most: a step of an evaluation takes half of what one that is learnt from takes."""
    return {"when_sampled": when_sampled, "share": 0.1}


def _cpu_profile(task: str, sparse: bool) -> dict:
    """Two cores, RGB student: found by experiment on PushCube, sparse."""
    # On PushCube octo-nano has little left to refine: the mediocre one shows what the method does.
    teacher = "octo-nano-push-cube" if task == "PushCube-v1" else "octo-nano"
    return {
        "total_steps": 32_768,
        "env": {"num_envs": 16, "image_size": 128, "mesh_detail": 0.15},
        "student": {
            "image_size": 128,
            "encoder": "small",
            "initial_log_std": -1.2,
            "value_stop_gradient": True,
            "critic": "shared",
            "state_coef": 0.0,
        },
        "teacher": {"checkpoint": teacher, "eval_episodes": 100},
        "ppo": {
            "rollout_steps": 64,
            "update_epochs": 4,
            "num_minibatches": 8,
            "learning_rate": 5e-4,
            "learning_rate_final": 1e-4,
            **_plain_critic(sparse),
            "adam_eps": 1e-8,
            "target_kl": 0.0,
            "advantage_std_floor": 0.1,
        },
        "distill": {
            # Beside PPO's noisy gradient λ = 1 hardly pulls in so few steps.
            "coef": 10.0,
            "coef_final": 0.5,
            "schedule": "cosine",
            "anneal_steps": 40_000,
            "averaged": 4,
            "label": "mean",
            "replay": 20_000,
            "replay_batch": 128,
            "replay_coef": 1.0,
            "still": False,
            "guide": 0.0,
            "guide_final": 0.0,
            "augment": 6,
            "augment_ppo": False,
        },
        "eval": {"every": 8, "episodes": 16, "final_episodes": 100, "until": 0.0, **_ALL_EVALUATIONS},
        "checkpoint": {"every": 8},
    }


def _cpu_begun_profile(task: str, sparse: bool) -> dict:
    """Two cores, PPO in pixels where imitation ended (student.start): found by experiment on PickCube, sparse."""
    profile = _cpu_profile(task, sparse)
    profile["total_steps"] = 196_608
    profile["student"] |= {
        "encoder": "small_scaled",  # that of the students of refine=state
        "initial_log_std": -2.0,
        "critic": "state",
        "state_coef": 1.0,
    }
    profile["ppo"] |= _GENTLE_PPO | {"critic_first": 16_384, "gamma": 0.98 if sparse else 0.8}
    profile["distill"] |= {"coef": 1.0, "coef_final": 0.0, "schedule": "success"}
    profile["eval"] = {"every": 12, "episodes": 48, "final_episodes": 112, "until": 0.95, **_few_evaluations(0.85)}
    return profile


def _cpu_state_profile(task: str, sparse: bool) -> dict:
    """Two cores, student that sees the simulator's state instead of pixels: learns in minutes."""
    profile = _cpu_profile(task, sparse)
    profile["total_steps"] = 49_152
    profile["student"]["initial_log_std"] = -1.0
    profile["student"]["value_stop_gradient"] = False
    profile["ppo"] |= {"update_epochs": 8, "num_minibatches": 4, "learning_rate": 3e-4, "learning_rate_final": 1e-4}
    profile["distill"] |= {"anneal_steps": 50_000, "replay": 0, "replay_batch": 0, "replay_coef": 0.0}
    profile["distill"]["augment"] = 0
    return profile


def _refine_profile(task: str, sparse: bool) -> dict:
    """Two cores, refine=state: the last stage, in which a student of pixels imitates the expert, and `stages`."""
    profile, several_ways = _cpu_profile(task, sparse), task in _SEVERAL_WAYS
    profile["total_steps"] = 24_576
    # Beside four times the squared error of the actions (λ, and three times λ for replayed ones).
    profile["student"] |= {"encoder": "small_scaled", "initial_log_std": -2.3, "state_coef": 1.0}
    profile["ppo"] |= {
        # 256 steps of Adam in an iteration, each on 32 fresh and 96 replayed frames.
        "update_epochs": 8,
        "num_minibatches": 32,
        "learning_rate": 1e-3,
        "learning_rate_final": 1e-4,
    }
    profile["distill"] |= {
        "coef": 1.0,
        "schedule": "constant",
        "averaged": 8 if several_ways else 4,
        "label": "nearest" if several_ways else "mean",
        "replay": 32_768,
        "replay_batch": 96,
        "replay_coef": 3.0,
        "still": True,
        "augment_ppo": True,
        "guide": 1.0,
        "guide_final": 0.0,
    }
    profile["eval"] = {"every": 6, "episodes": 48, "final_episodes": 112, "until": 0.98, **_few_evaluations(0.7)}
    profile["checkpoint"] = {"every": 8}
    return profile | {"stages": _stages()}


def _stages() -> dict:
    """What the first two stages of refine=state have for themselves; all else is as in the last one."""
    return {
        "label": {
            "total_steps": 32_768,
            "student": {"initial_log_std": -2.3},
            "ppo": {
                "update_epochs": 16,
                "num_minibatches": 8,
                "learning_rate": 1e-3,
                "learning_rate_final": 3e-4,
            },
            "distill": {
                "replay": 32_768,
                "replay_batch": 256,
                "replay_coef": 2.0,
                "replay_both": True,
                "guide": 1.0,
                "guide_final": 0.25,
            },
            "eval": {"every": 4, "episodes": 16, "final_episodes": 112, "until": 0.8, **_few_evaluations(0.5)},
            "checkpoint": {"every": 8, "keep": 1},
        },
        "refine": {
            "total_steps": 1_048_576,
            "student": {"initial_log_std": -2.0},
            "ppo": _GENTLE_PPO
            | {
                "critic_first": 8192,
                "update_epochs": 8,
                "num_minibatches": 4,
                "gamma": 0.98,
                "gae_lambda": 0.9,
            },
            "distill": {
                "coef": 1.0,
                "coef_final": 0.0,
                "schedule": "success",
                "anneal_success": 0.5,
                "replay": 32_768,
                "replay_batch": 256,
                "replay_coef": 1.0,
                "replay_both": False,
                "guide": 0.0,
                "guide_final": 0.0,
            },
            "eval": {
                "every": 12,
                "episodes": 112,
                "final_episodes": 112,
                "until": 0.99,
                **_few_evaluations(0.85),
                "patience": 6,
                "leave_best": True,
            },
            "checkpoint": {"every": 12, "keep_best": 1},
        },
    }


def _open(values: dict) -> ConfigDict:
    """Open fields for values that a profile holds."""
    return ConfigDict(
        {
            name: _open(value) if isinstance(value, dict) else config_dict.placeholder(type(value))
            for name, value in values.items()
        }
    )
