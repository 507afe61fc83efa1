"""What a LeRobot checkpoint must say to be a teacher: each fault has its sentence, before a policy is loaded."""

import json
import os
import re
import shutil
import sys

import numpy as np
import pytest
from hub import REPOSITORY, hub_of
from safetensors.numpy import load_file, save_file

from openvla_bridge.errors import BridgeError
from openvla_bridge.lerobot.checkpoint import read_checkpoint
from openvla_bridge.lerobot_client import LeRobotTeacher
from openvla_bridge.request import Known
from rpd_jax.errors import UserError

IMAGE, STATE = "observation.images.base", "observation.state"
A_WEIGHT = "model.action_head.bias"
BEFORE, AFTER = "policy_preprocessor.json", "policy_postprocessor.json"


@pytest.fixture
def copy(lerobot, tmp_path):
    """An ACT whose files can be changed; weights are linked."""
    return shutil.copytree(lerobot.folder / "act", tmp_path / "act", copy_function=os.link)


def change(folder, name, edit):
    """Edits a JSON file in a new file, so that what it is linked to stays."""
    content = json.loads((folder / name).read_text())
    edit(content)
    (folder / name).unlink()
    (folder / name).write_text(json.dumps(content))


def change_statistics(folder, processor, edit):
    (step,) = (each for each in json.loads((folder / processor).read_text())["steps"] if "state_file" in each)
    file = folder / step["state_file"]
    values = load_file(file)
    edit(values)
    file.unlink()
    save_file(values, file)


def add_image(config):
    config["input_features"]["observation.images.wrist"] = {"type": "VISUAL", "shape": [3, 64, 64]}


def read(folder):
    return read_checkpoint(str(folder), print)


def test_what_a_sound_checkpoint_says(lerobot):
    for kind in ("act", "diffusion"):
        found = read(lerobot.folder / kind)
        assert (found.kind, found.image) == (kind, IMAGE)
        assert found.known == Known(7, found.known.gripper, (64, 64), 9)
        assert (found.known.gripper["min"], found.known.gripper["max"]) == (0.0, 1.0)


def test_what_smolvla_says(lerobot):
    """Frames may have any size, and be one of its images; its state is as long as the statistics of it."""
    folder = lerobot.folder / "smolvla"
    found = read_checkpoint(str(folder), print, IMAGE)
    assert (found.image, found.known.image_size, found.known.state_dim) == (IMAGE, (0, 0), 9)
    assert read_checkpoint(str(folder), print, "observation.images.wrist").image == "observation.images.wrist"
    with pytest.raises(BridgeError, match=r"images observation.images.base, .*wrist, .* set teacher.observation.image"):
        read_checkpoint(str(folder), print, "observation/image")
    with pytest.raises(BridgeError, match=r"images .*, and not teacher.observation.image='observation.images.front'"):
        read_checkpoint(str(folder), print, "observation.images.front")


def test_smolvla_that_does_not_resize(lerobot, tmp_path):
    copy = shutil.copytree(lerobot.folder / "smolvla", tmp_path / "smolvla", copy_function=os.link)
    change(copy, "config.json", lambda c: c.update(resize_imgs_with_padding=None))
    assert read_checkpoint(str(copy), print, IMAGE).known.image_size == (256, 256)
    change(copy, "config.json", lambda c: c["input_features"][IMAGE].update(shape=[3, 480, 640]))
    change(copy, "config.json", lambda c: c.update(resize_imgs_with_padding=[96, 96]))
    assert read_checkpoint(str(copy), print, IMAGE).known.image_size == (480, 640)  # letterboxed, and frames are square


CONFIGS = {
    "of no type": (lambda c: c.pop("type"), "has type 'None', which is no LeRobot policy .* known are act, diffusion"),
    "of an unknown type": (
        lambda c: c.update(type="octo"),
        "has type 'octo', which is no LeRobot policy",
    ),
    "without chunks": (
        lambda c: c.update(type="sac"),
        "has type 'sac', which is no LeRobot policy that predicts",
    ),
    "of remote code": (
        lambda c: c.update(type="pi0_fast"),
        "loading runs code from the hub, .* teacher.name=openpi",
    ),
    "an adapter": (lambda c: c.update(use_peft=True), "is that of an adapter"),
    "with a memory": (lambda c: c.update(n_obs_steps=2), "has n_obs_steps=2: the policy looks at several moments"),
    "without an image": (lambda c: c["input_features"].pop(IMAGE), "the policy sees no image"),
    "with two images": (add_image, "sees the images observation.images.base, observation.images.wrist, and a teacher"),
    "with more to see": (
        lambda c: c["input_features"].update({"observation.environment_state": {"type": "ENV", "shape": [3]}}),
        r"takes 'observation.environment_state' \(ENV\), which nothing here can fill",
    ),
    "of grey images": (lambda c: c["input_features"][IMAGE].update(shape=[1, 64, 64]), "has 1 channels; frames have 3"),
    "of flat images": (
        lambda c: c["input_features"][IMAGE].update(shape=[64]),
        r"shape \[64\]; 3 whole numbers",
    ),
    "without features": (lambda c: c.update(input_features=None), "has no input_features with types and shapes"),
    "without actions": (lambda c: c["output_features"].pop("action"), "has 'action' of the shape None"),
    "of strange rules": (lambda c: c["normalization_mapping"].update(ACTION=["MIN_MAX"]), "normalises by other rules"),
    "of other rules": (lambda c: c["normalization_mapping"].update(ACTION="IDENTITY"), "normalises by other rules"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_that_cannot_be_a_teacher_s(copy, name):
    edit, sentence = CONFIGS[name]
    change(copy, "config.json", edit)
    with pytest.raises(BridgeError, match=sentence):
        read(copy)


def step(processor, name):
    return next(each for each in processor["steps"] if each["registry_name"] == name)


PROCESSORS = {
    "without its normaliser": (
        AFTER,
        lambda p: p["steps"].remove(step(p, "unnormalizer_processor")),
        "no normalisation statistics 'mean' of 'action', which config.json normalises by MEAN_STD",
    ),
    "without its file": (
        BEFORE,
        lambda p: step(p, "normalizer_processor").pop("state_file"),
        "no normalisation statistics 'mean' of 'observation.images.base'",
    ),
    "with a lost file": (
        AFTER,
        lambda p: step(p, "unnormalizer_processor").update(state_file="gone.safetensors"),
        "gone.safetensors, which policy_postprocessor.json names, is missing",
    ),
    "with a pickle": (
        AFTER,
        lambda p: step(p, "unnormalizer_processor").update(state_file="state.pt"),
        "names 'state.pt', which is no safetensors file beside it",
    ),
    "with a file elsewhere": (
        AFTER,
        lambda p: step(p, "unnormalizer_processor").update(state_file="../act/model.safetensors"),
        "names '../act/model.safetensors', which is no safetensors file beside it",
    ),
    "with a step of another package": (
        BEFORE,
        lambda p: p["steps"].insert(0, {"class": "subprocess.Popen", "config": {"args": ["true"]}}),
        "has the step 'subprocess.Popen', which is not run here",
    ),
    "with remote code": (
        BEFORE,
        lambda p: p["steps"].insert(0, {"registry_name": "action_tokenizer_processor", "config": {}}),
        "has the step 'action_tokenizer_processor', which is not run here",
    ),
    "with actions that are positions": (
        AFTER,
        lambda p: p["steps"].append({"registry_name": "absolute_actions_processor", "config": {"enabled": True}}),
        "has the step 'absolute_actions_processor', for actions that are positions",
    ),
    "that leaves the state as it is": (
        BEFORE,
        lambda p: step(p, "normalizer_processor")["config"]["features"].pop(STATE),
        r"does not normalise 'observation.state' .STATE., which config.json normalises by MEAN_STD",
    ),
    "that takes the state for something else": (
        BEFORE,
        lambda p: step(p, "normalizer_processor")["config"]["features"][STATE].update(type="ENV"),
        "does not normalise 'observation.state' ",
    ),
    "that normalises nothing": (
        BEFORE,
        lambda p: step(p, "normalizer_processor")["config"].update(normalize_observation_keys=[]),
        "does not normalise 'observation.images.base' ",
    ),
    "that normalises images alone": (
        BEFORE,
        lambda p: step(p, "normalizer_processor")["config"].update(normalize_observation_keys=[IMAGE]),
        "does not normalise 'observation.state' ",
    ),
    "that does not say what it normalises": (
        BEFORE,
        lambda p: step(p, "normalizer_processor")["config"].update(features=None),
        "is not LeRobot's: it has NoneType where names must be",
    ),
    "without steps": (BEFORE, lambda p: p.pop("steps"), "has no list of steps"),
}


def test_steps_that_do_nothing(copy):
    """As LeRobot 0.5 and later write them for pi0."""
    for file, name in ((BEFORE, "relative_actions_processor"), (AFTER, "absolute_actions_processor")):
        idle = {"registry_name": name, "config": {"enabled": False}}
        change(copy, file, lambda p, idle=idle: p["steps"].append(idle))
    assert read(copy).known.action_dim == 7


def test_observations_that_are_to_be_normalised_may_be_listed(copy):
    change(
        copy,
        BEFORE,
        lambda p: step(p, "normalizer_processor")["config"].update(normalize_observation_keys=[IMAGE, STATE]),
    )
    assert read(copy).known.state_dim == 9


@pytest.mark.parametrize("name", PROCESSORS)
def test_processors_that_are_not_run(copy, name):
    file, edit, sentence = PROCESSORS[name]
    change(copy, file, edit)
    with pytest.raises(BridgeError, match=sentence):
        read(copy)


STATISTICS = {
    "short": (
        lambda v: v.update({"action.std": np.ones(3, np.float32)}),
        r"of 'action' are float32 \[3\]; 7 numbers",
    ),
    "a number": (
        lambda v: v.update({"action.mean": np.array(1.0, np.float32)}),
        r"of 'action' are float32 \[\]; 7 numbers",
    ),
    "NaN": (lambda v: v.update({"action.mean": np.full(7, np.nan, np.float32)}), "'mean' of 'action' are not finite"),
    "missing": (lambda v: v.pop("action.std"), "no normalisation statistics 'std' of 'action'"),
}


@pytest.mark.parametrize("name", STATISTICS)
def test_statistics_that_are_none(copy, name):
    edit, sentence = STATISTICS[name]
    change_statistics(copy, AFTER, edit)
    with pytest.raises(BridgeError, match=sentence):
        read(copy)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("config.json", "config.json is missing: teacher.checkpoint must be a folder in LeRobot's layout"),
        (AFTER, "is missing: .* in LeRobot's layout since 0.4, where it holds the normalisation statistics"),
        ("model.safetensors", "model.safetensors is missing: get the checkpoint again"),
    ],
)
def test_files_that_are_missing_or_broken(copy, name, sentence):
    (copy / name).unlink()
    with pytest.raises(BridgeError, match=sentence):
        read(copy)
    if name != "model.safetensors":
        (copy / name).write_text("{")
        with pytest.raises(BridgeError, match="cannot be read as JSON"):
            read(copy)


def test_of_the_hub_no_weights_are_fetched_before_the_rest_was_checked(copy, tmp_path):
    """Nor what training left in folders of the repository."""
    steps = copy / "checkpoints" / "000100"
    shutil.copytree(copy, steps, copy_function=os.link)
    change(copy, "config.json", lambda c: c.update(n_obs_steps=2))
    code = """
from openvla_bridge.errors import BridgeError
from openvla_bridge.lerobot.checkpoint import read_checkpoint
try:
    read_checkpoint(checkpoint, print)
except BridgeError as error:
    print(error)
"""
    with hub_of(copy, tmp_path / "cache") as hub:
        assert "has n_obs_steps=2: the policy looks at several moments" in hub.run(code)[-1]
        assert {"config.json", BEFORE, AFTER} < set(hub.fetched)
        assert "model.safetensors" not in hub.fetched and not any("/" in name for name in hub.fetched)


@pytest.mark.slow
def test_of_the_hub_a_policy_is_fetched_and_loaded(lerobot, copy, tmp_path):
    """And one whose weights are not those of its config.json is not, in the same process."""
    weights = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    save_file({name: weights[name] for name in weights if name != A_WEIGHT}, copy / "model.safetensors")
    code = f"""
from openvla_bridge.errors import BridgeError
from openvla_bridge.lerobot.policy import LeRobotPolicy
print(LeRobotPolicy.load(checkpoint, "cpu", report=print).horizon)
try:
    LeRobotPolicy.load({str(copy)!r}, "cpu")
except BridgeError as error:
    print(error)
"""
    with hub_of(lerobot.folder / "act", tmp_path / "cache") as hub:
        said = hub.run(code, lerobot.python)
        assert hub.fetched.count("model.safetensors") == 1 and hub.fetched[-1] == "model.safetensors"
    assert said[1:3] == [f"fetching model.safetensors (1 of 1) of hf://{REPOSITORY}", "importing lerobot"]
    assert "4" in said and re.search(rf"loaded and run as LeRobot's act .*{A_WEIGHT}", said[-1])


def test_a_folder_that_is_not_there():
    with pytest.raises(BridgeError, match=r"no checkpoint folder /nowhere: give teacher.checkpoint a folder in LeR"):
        read("/nowhere")


def teach(folder, python, **arguments):
    return LeRobotTeacher(str(folder), python=python, devices=("cpu",), say=lambda text: None, **arguments)


@pytest.mark.slow
def test_what_only_the_worker_can_see(lerobot, copy):
    """Weights that are not finite end in one sentence for the user."""
    weights = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    save_file(weights | {A_WEIGHT: np.full_like(weights[A_WEIGHT], np.nan)}, copy / "model.safetensors")
    with pytest.raises(UserError, match="The policy's actions are not finite: the checkpoint is broken"):
        teach(copy, lerobot.python, state="joints")


@pytest.mark.slow
def test_a_backbone_that_is_not_to_be_had(lerobot, tmp_path, monkeypatch):
    """Told before LeRobot is imported, which asks the hub at length."""
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=r"config.json names 'tiny/smolvlm', whose configuration .* `hf download tiny/"):
        teach(lerobot.folder / "smolvla", lerobot.python, state="joints", image=IMAGE)


@pytest.mark.slow
def test_pi0_without_its_transformers(lerobot, copy):
    """Told before its gigabytes are built."""
    change(copy, "config.json", lambda c: c.update(type="pi0"))
    with pytest.raises(
        UserError, match=r"runs pi0 on a transformers that has openpi's changes, and .* 4.57.6 without .* lerobot06-env"
    ):
        teach(copy, lerobot.python, state="joints")


@pytest.mark.slow
def test_what_the_settings_do_not_fit(lerobot, copy):
    """Told before LeRobot is imported."""
    with pytest.raises(UserError, match=r"observation.state of 9 numbers, and teacher.state='none' gives it none: set"):
        teach(copy, lerobot.python)
    with pytest.raises(UserError, match=r"teacher.state='torques' is not one of none, joints, pose, simulator"):
        teach(copy, lerobot.python, state="torques")
    with pytest.raises(UserError, match=r"lacks torchvision: run `make lerobot-env` and set teacher.python"):
        teach(copy, sys.executable, state="joints")
    change(copy, "config.json", lambda c: c["output_features"]["action"].update(shape=[8]))
    for processor in (BEFORE, AFTER):
        change_statistics(
            copy,
            processor,
            lambda v: v.update({key: np.ones(8, np.float32) for key in v if key.startswith("action.")}),
        )
    with pytest.raises(UserError, match="gives actions of 8 numbers; the environment takes 7"):
        teach(copy, lerobot.python, state="joints")
