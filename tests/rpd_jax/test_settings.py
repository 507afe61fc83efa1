import importlib.util
import math
import re

import jax
import pytest
from ml_collections import ConfigDict

from configs import default
from rpd_jax import settings
from rpd_jax.command.wrong_flags import fields
from rpd_jax.errors import UserError

NAN, INFINITY = math.nan, math.inf

# For every field values that cannot work: too little, too much, no number, another type.
BAD = {
    "algorithm": ["rpd_mes", "", None, 1],
    "profile": ["laptop", None, 3],
    "seed": [-1, 2**32, 0.5, "0", True],
    "total_steps": [0, -5, 10**11, 10**5000, 1e6, "many"],
    "env.task": ["PushCub-v1", "", 7],
    "env.reward_mode": ["dense", False],
    "env.backend": ["tpu", None],
    "env.num_envs": [0, -1, 10**9, 2.0, True],
    "env.workers": [0, -1, 10**6, "all"],
    "env.image_size": [0, 10**6, 64.0],
    "env.mesh_detail": [0.0, -0.1, 1.5, NAN, "1.0"],
    "env.step_timeout": [0.0, -1.0, INFINITY, NAN, None],
    "env.restart_workers": [1, 0, "yes", None],
    "env.camera.eye_offset": [(0.2,), (0.0, 0.0, NAN), (0.0, INFINITY, 0.0), "0.0", None, ("0", "0", "0"), 0.2],
    "env.camera.target_offset": [(), (0.0, 0.0, 0.0, 0.0), (0.0, 0.0, 1e9), (True, 0, 0)],
    "env.camera.fov": [0.0, -1.0, math.pi, NAN, "wide"],
    "student.observation": ["rbg", None, ["rgb"]],
    "student.image_size": [0, -36, 10**6, "128"],
    "student.encoder": ["natur", 5],
    "student.precision": ["float16", None],
    "student.initial_log_std": [-1e3, 50.0, NAN, -INFINITY, "0"],
    "student.value_stop_gradient": [0, "true"],
    "student.critic": ["pixels", 1],
    "student.state": ["normal", None],
    "student.state_coef": [-0.1, 1e4, NAN, "0.4"],
    "refine": ["latent", None, True],
    "teacher.name": ["otco", None],
    "teacher.checkpoint": ["", "a\0b", "x" * 5000, 3, "half a pair: \ud800"],
    "teacher.instruction": [None, b"push", "a\0b"],
    "teacher.precision": ["int8", 32],
    "teacher.refresh": ["step", None],
    "teacher.overlap": [True, "yes"],
    "teacher.dataset": [None, 1, "\0"],
    "teacher.gripper": [None, "up", 1],
    "teacher.openvla_checkpoint": [None, "\0"],
    "teacher.python": [3.11, "\0"],
    "teacher.devices": [(), "cuda:0", ("",), (0,), None],
    "teacher.temperature": [-1.0, -0.0, 1e9, NAN, "hot"],
    "teacher.batch_size": [0, 10**9, 2.5],
    "teacher.start_timeout": [0, -1.0, NAN, INFINITY],
    "teacher.request_timeout": [-0.0, 1e12, "1h"],
    "teacher.address": [
        None,
        "localhost:8000",
        "http://host",
        "ws://",
        "ws://a b",
        "ws://a,b",
        "ws://a,",
        "ws://key@a",
        "tcp://",
        "tcp://a/b",
        "udp://a:5555",
    ],
    "teacher.connections": [0, 10**6, 1.5],
    "teacher.api_key_file": [None, "\0"],
    "teacher.observation.image": ["", None],
    "teacher.observation.prompt": [None, 7],
    "teacher.observation.state": ["", None],
    "teacher.action_key": ["", b"actions"],
    "teacher.resize": [(224,), (0, 224), (224, 224, 3), 224, (224.0, 224)],
    "teacher.letterbox": [1, "yes"],
    "student.start": [None, 3],
    "teacher.view": ["moved", None],
    "teacher.chunk": [0, 1.5, 10**4],
    "teacher.state": [None, "torques"],
    "teacher.eval_episodes": [-1, 10**9, 1.5],
    "ppo.critic_first": [-1, 0.5],
    "ppo.critic_continues": ["yes", 1],
    "ppo.bootstrap_success": ["no", 0],
    "distill.label": ["median", 3],
    "distill.replay_both": [1, None],
    "distill.still": ["yes", 1],
    "distill.guide": [-0.1, 1.5, NAN],
    "distill.guide_final": [-0.1, 1.5, "all"],
    "eval.until": [-0.1, 1.1, NAN],
    "eval.when_sampled": [-0.1, 1.1, "often"],
    "eval.share": [-0.1, 1.1, NAN],
    "eval.patience": [-1, 1.5, None],
    "eval.leave_best": [1, "best"],
    "ppo.rollout_steps": [0, -64, 10**12, "64"],
    "ppo.update_epochs": [0, -1, 10**6, 1.0],
    "ppo.num_minibatches": [0, -8, 1000, 10**9],
    "ppo.learning_rate": [-1e-3, -0.0, 2.0, NAN, INFINITY, "3e-4"],
    "ppo.learning_rate_final": [-1e-3, 10**400, NAN],
    "ppo.gamma": [-0.1, 1.01, NAN, True],
    "ppo.gae_lambda": [-0.1, 2, NAN],
    "ppo.finite_horizon": [1, None],
    "ppo.clip": [0, 0.0, -0.2, 1e-12, INFINITY, NAN],
    "ppo.clip_value_loss": ["off", 0.0],
    "ppo.entropy_coef": [-0.01, NAN, 1e30],
    "ppo.value_coef": [-0.5, INFINITY],
    "ppo.max_grad_norm": [0.0, -0.5, NAN],
    "ppo.adam_eps": [0.0, -1e-8, 1e-300, 10.0],
    "ppo.target_kl": [-0.2, NAN, INFINITY],
    "ppo.normalize_advantages": [None, 1],
    "ppo.advantage_std_floor": [-1e-3, NAN],
    "distill.coef": [-1.0, -0.0, NAN, 1e12],
    "distill.schedule": ["linear", 0],
    "distill.coef_final": [-0.5, NAN],
    "distill.anneal_steps": [0, -1, 10**12, 1e4],
    "distill.anneal_success": [0, -0.5, 1.01, "half"],
    "distill.num_samples": [0, -10, 10**6, 2.0],
    "distill.averaged": [0, -1, 10**6, "4"],
    "distill.std_floor": [-0.01, NAN, INFINITY],
    "distill.replay": [0, -1, 10**12, 1e4],
    "distill.replay_batch": [0, -1, 10**9],
    "distill.replay_coef": [-1.0, NAN],
    "distill.augment": [-1, 128, 10**6, 1.5],
    "distill.augment_ppo": [1, "no"],
    "eval.every": [0, -8, 10**12, 2.0],
    "eval.episodes": [0, -1, 10**9, NAN],
    "eval.final_episodes": [0, -1, 10**9],
    "eval.video_episodes": [-1, 10**6, 1.0],
    "checkpoint.every": [0, -1, 10**12],
    "checkpoint.keep": [0, -2, 10**12, None],
    "checkpoint.keep_best": [-1, 10**12, 0.5],
    "log.wandb": [1, "yes", None],
}

# The last values that still work, and ones that look odd.
GOOD = {
    "seed": [0, 2**32 - 1],
    "total_steps": [1024, 10**10],
    "env.num_envs": [1, 64],
    "env.workers": [1, None],
    "env.mesh_detail": [1e-3, 1, 1.0],
    "env.camera.eye_offset": [(0, -1, 0.5), (-0.0, 0.0, 0.0), [0.1, 0.0, 0.0]],
    "env.camera.fov": [None, 0.01, 3.1],
    "student.image_size": [36],
    "student.initial_log_std": [-10.0, 5, -0.0],
    "teacher.instruction": ["", "pousse le cube à gauche"],
    "teacher.devices": [("cpu",), ("cuda:0", "cuda:1"), ["auto"]],
    "teacher.temperature": [0, 0.0, 1.5],
    "teacher.address": ["", "ws://host:8000", "wss://[::1]:8000/policy, ws://b"],
    "teacher.connections": [1, 1024],
    "teacher.resize": [(), (224, 224), [1, 4096]],
    "teacher.eval_episodes": [0],
    "ppo.learning_rate": [0.0, 1.0],
    "ppo.gamma": [0, 1, 1.0],
    "ppo.gae_lambda": [0.0, 1.0],
    "ppo.clip": [1e-6, 1.0, 1e6],
    "ppo.target_kl": [0.0],
    "ppo.num_minibatches": [1, 512],
    "distill.coef": [0.0, 1],
    "distill.averaged": [1],
    "distill.replay": [1],
    "distill.augment": [0, 127],
    "eval.every": [1],
    "eval.episodes": [1],
    "eval.video_episodes": [0],
    "checkpoint.keep": [1],
}


def with_value(path: str, value) -> ConfigDict:
    """The settings of a run of one stage with one of them changed, whatever its type."""
    tree = default.get_config().to_dict() | {"refine": "pixels"}
    part = tree
    *groups, name = path.split(".")
    for group in groups:
        part = part[group]
    part[name] = value
    return ConfigDict(tree)


def test_paper_profile_has_the_published_values():
    config = default.get_config("PushCube-v1", "normalized_dense")
    config.profile = "paper"
    config = settings.resolve(config)
    assert (config.env.num_envs, config.ppo.rollout_steps, config.total_steps) == (128, 50, 30_000_000)
    assert (config.ppo.update_epochs, config.ppo.num_minibatches, config.ppo.learning_rate) == (8, 48, 3e-4)
    assert (config.ppo.gamma, config.ppo.gae_lambda, config.ppo.target_kl) == (0.8, 0.9, 0.2)
    assert (config.env.image_size, config.student.image_size, config.student.encoder) == (256, 256, "nature")
    assert (config.distill.coef, config.distill.schedule, config.distill.replay, config.distill.augment) == (
        1,
        "constant",
        0,
        0,
    )


def test_sparse_rewards_discount_less():
    assert settings.resolve(default.get_config("PushCube-v1", "sparse")).ppo.gamma == 0.99


@pytest.mark.parametrize(
    ("changes", "refine", "profile"),
    [
        ({}, "state", "refine"),
        ({"algorithm": "dagger"}, "state", "refine"),
        ({"student.observation": "rgb+state"}, "state", "refine"),
        ({"refine": "pixels"}, "pixels", "cpu"),
        ({"profile": "cpu"}, "pixels", "cpu"),
        ({"profile": "paper"}, "pixels", "paper"),
        ({"profile": "refine"}, "state", "refine"),
        ({"algorithm": "ppd"}, "state", "refine"),
        # What three stages cannot do.
        ({"student.start": "runs/a"}, "pixels", "cpu_begun"),
        ({"student.start": "runs/a", "profile": "cpu"}, "pixels", "cpu"),
        ({"student.observation": "state"}, "pixels", "cpu_state"),
        ({"env.image_size": 256}, "pixels", "cpu"),
    ],
)
def test_without_a_gpu_auto_refines_on_the_state_where_it_can(changes, refine, profile):
    config = default.get_config()
    config.update_from_flattened_dict(changes)
    resolved = settings.resolve(config)
    assert (resolved.refine, resolved.profile) == (refine, profile)


def test_departures_name_what_differs_from_the_paper():
    config = default.get_config()
    paper = config.profiles.paper
    config.profile = "paper"
    config.env.num_envs = 64
    assert settings.departures(settings.resolve(config), paper) == ["env.num_envs=64"]
    assert "distill.augment=6" in settings.departures(settings.resolve(default.get_config()), paper)


def test_explicit_values_win_over_the_profile():
    config = default.get_config()
    config.env.num_envs = 4
    config.ppo.num_minibatches = 2
    resolved = settings.resolve(config)
    assert resolved.env.num_envs == 4
    assert resolved.ppo.num_minibatches == 2
    assert resolved.env.image_size == 128


def test_every_field_has_its_check_and_its_bad_values():
    named = {path for path, _ in fields(default.get_config())}
    of_stages = {path for path in named if path.startswith("stages.")}
    assert named - of_stages == set(settings.SETTINGS) == set(BAD)
    assert {path.split(".", 2)[2] for path in of_stages} <= set(BAD)


@pytest.mark.parametrize("path", BAD)
def test_what_cannot_work_is_refused_in_a_sentence_with_the_field_and_what_is_allowed(path):
    for value in BAD[path]:
        with pytest.raises(UserError) as refusal:
            settings.resolve(with_value(path, value))
        sentence = str(refusal.value)
        assert re.match(rf"{re.escape(path)}[ =]", sentence) or f" {path}" in sentence, sentence
        assert re.search(r"must|is not one of|is too many|too small|go together|needs|less than|give a", sentence), (
            sentence
        )
        assert sentence.endswith((".", "?")) and "\n" not in sentence and len(sentence) < 600, sentence


@pytest.mark.parametrize(("path", "value"), [(path, value) for path, values in GOOD.items() for value in values])
def test_the_last_values_that_work_are_taken(path, value):
    config = with_value(path, value)
    if path == "env.num_envs":
        config.update_from_flattened_dict({"ppo.rollout_steps": 512, "total_steps": 32_768, "distill.replay": 32_768})
    found = settings.resolve(config)
    for name in path.split("."):
        found = found[name]
    assert found == value


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"distill.replay_batch": 0}, "distill.replay and distill.replay_batch go together"),
        (
            {"student.observation": "state", "student.state_coef": 0.1},
            "student.state_coef=0.1 guesses the state from frames, and student.observation='state' sees none",
        ),
        ({"student.image_size": 35}, "student.image_size=35 is too small for the encoder: use 36 or more"),
        ({"student.image_size": 64, "distill.augment": 64}, "distill.augment=64 shifts the whole frame out of sight"),
        ({"algorithm": "dagger", "distill.coef": 0.0}, "distill.coef=0.0 leaves dagger nothing to learn"),
        (
            {"refine": "pixels", "distill.anneal_steps": 0},
            "distill.schedule='cosine' needs distill.anneal_steps of at least 1",
        ),
        ({"refine": "state", "student.start": "runs/a"}, "student.start='runs/a' is for runs of one stage"),
        ({"eval.leave_best": True}, "eval.leave_best takes parameters from the checkpoint of an evaluation"),
        (
            {"eval.leave_best": True, "checkpoint.keep_best": 1, "checkpoint.every": 4},
            "let checkpoint.every divide eval.every, and keep one of the best",
        ),
        ({"teacher.name": "openpi"}, "teacher.address='' names no policy server"),
        (
            {"teacher.name": "groot"},
            "teacher.address='' names no policy server: give one, such as tcp://127.0.0.1:5555",
        ),
        (
            {"teacher.name": "groot", "teacher.address": "tcp://a:5555, ws://b:8000"},
            "teacher.address='tcp://a:5555, ws://b:8000' is none of teacher.name='groot'",
        ),
        (
            {"teacher.name": "openpi", "teacher.address": "tcp://a:5555"},
            "teacher.address='tcp://a:5555' is none of teacher.name='openpi': openpi's servers are at ws://host:port",
        ),
        (
            {"teacher.name": "openpi", "teacher.address": "ws://a", "teacher.observation.prompt": "observation/image"},
            "teacher.observation.image and teacher.observation.prompt must differ",
        ),
        (
            {
                "teacher.name": "openpi",
                "teacher.address": "ws://a",
                "teacher.state": "joints",
                "teacher.observation.state": "prompt",
            },
            "teacher.observation.state='prompt' must differ from the names of the image and the prompt",
        ),
        (
            {"algorithm": "ppd", "distill.std_floor": 0.0, "distill.num_samples": 1},
            "distill.std_floor=0 makes the loss of ppd infinite",
        ),
        (
            {"algorithm": "ppd", "distill.std_floor": 0.0, "teacher.name": "openvla"},
            "distill.std_floor=0 makes the loss of ppd infinite",
        ),
    ],
)
def test_contradictions_are_named(changes, sentence):
    config = default.get_config()
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=re.escape(sentence)):
        settings.resolve(config)


def test_what_does_not_matter_is_no_contradiction():
    config = default.get_config()
    config.update_from_flattened_dict({"algorithm": "ppo", "distill.std_floor": 0.0, "distill.num_samples": 1})
    settings.resolve(config)
    config = default.get_config()
    config.update_from_flattened_dict({"student.observation": "state", "student.image_size": 8})
    settings.resolve(config)


def test_a_field_that_there_is_not_and_one_that_is_missing_are_named():
    config = default.get_config()
    config.env.nun_envs = 4
    with pytest.raises(UserError, match=r"The config has no field env.nun_envs: did you mean env.num_envs\?"):
        settings.resolve(config)
    config = default.get_config()
    del config.ppo.gamma
    with pytest.raises(UserError, match=r"The config lacks ppo.gamma: make it with get_config of a file of configs/\."):
        settings.resolve(config)
    with pytest.raises(UserError, match=r"checkpoint is a group of settings: set one of checkpoint.every, "):
        settings.resolve(with_value("checkpoint", 3))
    with pytest.raises(UserError, match="The config lacks profiles"):
        settings.resolve(settings.resolve(default.get_config()))


def test_what_the_devices_cannot_hold_is_refused(monkeypatch):
    def resolved(**changes):
        config = default.get_config()
        config.update_from_flattened_dict(changes)
        return settings.resolve(config)

    settings.check_machine(resolved())
    huge = {"env.num_envs": 4096, "ppo.rollout_steps": 4096, "total_steps": 10**8, "distill.replay": 10**8}
    with pytest.raises(UserError, match=r"The frames that a device keeps take \d{5} GB and it has \d+: lower env"):
        settings.check_machine(resolved(**huge))
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    with pytest.raises(UserError, match=r"env\.num_envs=6 cannot be spread evenly over 4 devices"):
        settings.check_machine(resolved(**{"env.num_envs": 6}))
    with pytest.raises(UserError, match=r"distill\.replay=20002 cannot be spread evenly over 4 devices"):
        settings.check_machine(resolved(**{"distill.replay": 20_002}))
    few = {"env.num_envs": 4, "ppo.rollout_steps": 3, "ppo.num_minibatches": 4, "total_steps": 100}
    with pytest.raises(UserError, match=r"each device needs a frame of each minibatch"):
        settings.check_machine(resolved(**few))


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("algorithm", "rpd_mes", "did you mean 'rpd_mse'"),
        ("env.task", "PushCub-v1", "did you mean 'PushCube-v1'"),
        ("student.observation", "rbg", "did you mean 'rgb'"),
        ("ppo.num_minibatches", 1000, "is too many"),
        ("env.mesh_detail", 1.5, "env.mesh_detail"),
        ("env.camera.eye_offset", (0.2,), r"env.camera.eye_offset=\(0.2,\) must be three numbers"),
        ("total_steps", 10, "less than one iteration"),
        ("distill.replay", 0, "go together"),
        ("profile", "laptop", "profile='laptop'"),
    ],
)
def test_values_that_cannot_work_are_refused_by_name(field, value, sentence):
    config = default.get_config()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=sentence):
        settings.resolve(config)


def test_wandb_is_off_and_its_absence_is_told_before_work():
    config = default.get_config()
    assert settings.resolve(config).log.wandb is False
    if importlib.util.find_spec("wandb") is not None:
        pytest.skip("wandb is installed here")
    config.log.wandb = True
    with pytest.raises(UserError, match=r"pip install 'rpd-jax\[wandb\]'"):
        settings.resolve(config)
