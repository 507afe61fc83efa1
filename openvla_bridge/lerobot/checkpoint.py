"""What a LeRobot checkpoint says of itself, read from its JSON and safetensors files before LeRobot is imported.

LeRobot itself imports whatever class a processor's file names, and leaves unnormalised what it has no statistics of;
here both are refused.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from openvla_bridge.checkpoint_files import Report, find_folder, read_json
from openvla_bridge.errors import BridgeError
from openvla_bridge.request import Known

LAYOUT = "LeRobot's"
WEIGHTS, PREPROCESSOR, POSTPROCESSOR = "model.safetensors", "policy_preprocessor.json", "policy_postprocessor.json"
ACTION, STATE = "action", "observation.state"
# Policies of LeRobot 0.4 that predict chunks of actions, and whose loading runs no code but LeRobot's own.
POLICIES = ("act", "diffusion", "vqbet", "pi0", "pi05", "smolvla", "xvla")
# Their processors ask transformers to run code that comes with a checkpoint (trust_remote_code).
OF_REMOTE_CODE = ("pi0_fast", "groot", "wall_x")
# Steps between actions that are positions and changes of them; LeRobot 0.5 writes them even where they do nothing.
OF_POSITIONS = ("relative_actions_processor", "absolute_actions_processor")
# Steps of processors, by LeRobot's names, that compute and load nothing but tokenizers of JSON files.
STEPS = (
    "rename_observations_processor",
    "to_batch_processor",
    "device_processor",
    "normalizer_processor",
    "unnormalizer_processor",
    "tokenizer_processor",
    "smolvla_new_line_processor",
    "pi0_new_line_processor",
    "pi05_prepare_state_tokenizer_processor_step",
    "xvla_image_to_float",
    "xvla_image_scale",
    "xvla_imagenet_normalize",
    "xvla_add_domain_id",
    "xvla_rotation_6d_to_axis_angle",
    *OF_POSITIONS,
)
# Policies that bring images to their own size, do without cameras that are missing, and pad the state.
ADAPTING = ("smolvla", "pi0", "pi05")
# How a feature is normalised -> the statistics that it takes.
MODES = {
    "IDENTITY": (),
    "MEAN_STD": ("mean", "std"),
    "MIN_MAX": ("min", "max"),
    "QUANTILES": ("q01", "q99"),
    "QUANTILE10": ("q10", "q90"),
}


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that can be a teacher.

    Attributes:
        folder: where it is.
        kind: type of the policy, "act".
        image: the policy's name of its one image.
        known: sizes, and the statistics of the gripper.
    """

    folder: Path
    kind: str
    image: str
    known: Known


def read_checkpoint(checkpoint: str, report: Report, image: str = "") -> Checkpoint:
    """Finds and reads a checkpoint, but for its weights; of hf://owner/name these are not yet there.

    Args:
        checkpoint: a folder that LeRobot's `save_pretrained` wrote, or hf://owner/name.
        report: is told what is fetched.
        image: the policy's name of the image that frames are; it matters where the policy sees several.

    Raises:
        BridgeError: it is none, or none that can label one frame at a time with actions.
    """
    folder = find_folder(checkpoint, LAYOUT, ["*.json", "*.safetensors"], report, without=["*/*", WEIGHTS])
    config = _mapping(read_json(folder / "config.json", LAYOUT), folder / "config.json")
    kind = _policy(config, folder)
    inputs, outputs = (_features(config, name, folder) for name in ("input_features", "output_features"))
    image = _image_of_frames(kind, inputs, image, folder)
    channels, height, width = _shape(inputs, image, 3, folder)
    if channels != 3:
        raise BridgeError(f"{folder / 'config.json'}: {image!r} has {channels} channels; frames have 3.")
    (action_dim,) = _shape(outputs, ACTION, 1, folder)
    if not checkpoint.startswith("hf://") and not (folder / WEIGHTS).is_file():
        raise BridgeError(f"{folder / WEIGHTS} is missing: get the checkpoint again.")
    modes = _mapping(config.get("normalization_mapping"), folder / "config.json")
    seen = _processor_statistics(folder / PREPROCESSOR, "normalizer_processor", modes)
    if kind in ADAPTING and STATE in inputs:
        inputs = {**inputs, STATE: _state_of_statistics(inputs[STATE], modes, seen)}
    states = _shape(inputs, STATE, 1, folder) if STATE in inputs else (0,)
    for key, feature in inputs.items():
        _check_statistics(folder / PREPROCESSOR, key, feature, modes, seen)
    _check_normalised(folder / PREPROCESSOR, inputs, modes)
    acted = _processor_statistics(folder / POSTPROCESSOR, "unnormalizer_processor", modes)
    _check_statistics(folder / POSTPROCESSOR, ACTION, outputs[ACTION], modes, acted)
    # Letterboxed, other proportions would look like nothing that the policy has seen.
    resizes = kind in ADAPTING and height == width and config.get("resize_imgs_with_padding", True) is not None
    size = (0, 0) if resizes else (height, width)
    return Checkpoint(folder, kind, image, Known(action_dim, _of_gripper(acted, action_dim), size, states[0]))


def _policy(config: Mapping[str, Any], folder: Path) -> str:
    """The type of the policy; raises BridgeError unless it is one that labels frames one at a time."""
    file, kind = folder / "config.json", config.get("type")
    if kind in OF_REMOTE_CODE:
        raise BridgeError(
            f"{file} has type {kind!r}, whose loading runs code from the hub, which is not done here: serve that "
            "policy and set teacher.name=openpi."
        )
    if kind not in POLICIES:
        raise BridgeError(
            f"{file} has type {str(kind)[:40]!r}, which is no LeRobot policy that predicts chunks of actions here: "
            f"known are {', '.join(POLICIES)}."
        )
    if config.get("use_peft"):
        raise BridgeError(f"{file} is that of an adapter (use_peft): merge it into its policy, and save that.")
    steps = config.get("n_obs_steps", 1)
    if steps != 1:
        raise BridgeError(
            f"{file} has n_obs_steps={str(steps)[:40]}: the policy looks at several moments at once, and frames are "
            "labelled one by one; train one with n_obs_steps=1."
        )
    return kind


def _features(config: Mapping[str, Any], name: str, folder: Path) -> dict[str, Mapping[str, Any]]:
    features = config.get(name)
    whole = isinstance(features, dict) and all(
        isinstance(feature, dict) and isinstance(feature.get("shape"), list) for feature in features.values()
    )
    if not whole:
        raise BridgeError(f"{folder / 'config.json'} has no {name} with types and shapes: get the checkpoint again.")
    return features


def _image_of_frames(kind: str, inputs: Mapping[str, Mapping[str, Any]], wanted: str, folder: Path) -> str:
    """The name of the image that frames fill; raises BridgeError for features that frames and states cannot fill."""
    file = folder / "config.json"
    # Empty cameras are for the policy to fill.
    images = [
        name for name, feature in inputs.items() if feature.get("type") == "VISUAL" and "empty_camera" not in name
    ]
    there = f"the images {', '.join(images)}" if images else "no image"
    # Names of other kinds of teachers, such as the default, say nothing here.
    if wanted.startswith("observation.image") and wanted not in images:
        raise BridgeError(f"{file}: the policy sees {there}, and not teacher.observation.image={wanted!r}.")
    if not images or (len(images) > 1 and kind not in ADAPTING):
        raise BridgeError(
            f"{file}: the policy sees {there}, and a teacher is shown one camera's frame: give one that sees one image."
        )
    if len(images) > 1 and wanted not in images:
        raise BridgeError(
            f"{file}: the policy sees {there}, and a teacher is shown one camera's frame: set "
            "teacher.observation.image to its name; the policy is told that the others are missing."
        )
    for name, feature in inputs.items():
        if feature.get("type") != "VISUAL" and name != STATE:
            raise BridgeError(
                f"{file}: the policy takes {name!r} ({feature.get('type')}), which nothing here can fill: give one "
                f"that takes an image, and {STATE!r} at most."
            )
    return wanted if wanted in images else images[0]


def _shape(features: Mapping[str, Mapping[str, Any]], name: str, rank: int, folder: Path) -> tuple[int, ...]:
    shape = features[name]["shape"] if name in features else None
    if shape is None or len(shape) != rank or not all(type(length) is int and length > 0 for length in shape):
        raise BridgeError(
            f"{folder / 'config.json'} has {name!r} of the shape {str(shape)[:40]}; {rank} whole number"
            f"{'s' * (rank > 1)} must be there: get the checkpoint again."
        )
    return tuple(shape)


def _processor_statistics(file: Path, step_name: str, modes: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The statistics that a processor's step normalises with, by "feature.statistic"."""
    found: dict[str, np.ndarray] = {}
    for step in processor_steps(file):
        if step["registry_name"] == step_name:
            rules = _mapping(step.get("config", {}).get("norm_map", {}), file)
            if any(rules.get(kind, "IDENTITY") != mode for kind, mode in modes.items()):
                raise BridgeError(f"{file} normalises by other rules than config.json says: get the checkpoint again.")
            found |= _statistics(file, step)
    return found


def _state_of_statistics(
    feature: Mapping[str, Any], modes: Mapping[str, Any], found: Mapping[str, np.ndarray]
) -> Mapping[str, Any]:
    """The state as the policy was last trained with it.

    LeRobot's fine-tuning leaves the shape of the policy that it started from in config.json; it is the statistics that
    are of the demos.
    """
    mode = modes.get("STATE", "IDENTITY")
    for statistic in MODES.get(mode, ()) if isinstance(mode, str) else ():
        values = found.get(f"{STATE}.{statistic}")
        if values is not None and values.ndim == 1:
            return {**feature, "shape": [len(values)]}
    return feature


def _of_gripper(statistics: Mapping[str, np.ndarray], action_dim: int) -> dict[str, float]:
    """What is known of the actions' last number, by the names of the statistics."""
    known = {}
    for name in ("min", "max", "q01", "q99", "mean", "std"):
        values = statistics.get(f"{ACTION}.{name}")
        if values is not None and values.shape == (action_dim,):
            known[name] = float(values[-1])
    return known


def processor_steps(processor: Path) -> Iterator[Mapping[str, Any]]:
    """The steps of a processor; raises BridgeError for one that would do more than compute."""
    if not processor.is_file():
        raise BridgeError(
            f"{processor} is missing: teacher.checkpoint must be in LeRobot's layout since 0.4, where it holds the "
            "normalisation statistics; `python -m lerobot.processor.migrate_policy_normalization` turns older ones "
            "into it."
        )
    steps = _mapping(read_json(processor, LAYOUT), processor).get("steps")
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise BridgeError(f"{processor} has no list of steps: get the checkpoint again.")
    for step in steps:
        step_name, file = step.get("registry_name"), step.get("state_file")
        # Without a name of the registry, LeRobot imports and calls whatever "class" says.
        if step_name not in STEPS:
            unknown = str(step_name or step.get("class"))[:80]
            raise BridgeError(
                f"{processor} has the step {unknown!r}, which is not run here: known are {', '.join(STEPS)}."
            )
        if file is not None and (Path(str(file)).name != file or not file.endswith(".safetensors")):
            raise BridgeError(f"{processor} names {str(file)[:80]!r}, which is no safetensors file beside it.")
        if file is not None and not (processor.parent / file).is_file():
            missing = processor.parent / file
            raise BridgeError(f"{missing}, which {processor.name} names, is missing: get the checkpoint again.")
        if not isinstance(step.get("config", {}), dict):
            raise BridgeError(f"{processor}: the step {step_name!r} has no settings: get the checkpoint again.")
        if step_name in OF_POSITIONS and step.get("config", {}).get("enabled"):
            raise BridgeError(
                f"{processor} has the step {step_name!r}, for actions that are positions, and the environment takes "
                "changes of the gripper's pose: give a policy that was trained without use_relative_actions."
            )
        yield step


def _statistics(file: Path, step: Mapping[str, Any]) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if "stats" in step.get("config", {}):
        raise BridgeError(f"{file} holds statistics itself; they must be in a safetensors file beside it.")
    if step.get("state_file") is None:
        return {}
    statistics = file.parent / step["state_file"]
    try:
        return load_file(statistics)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise BridgeError(f"{statistics} cannot be read ({error}): get the checkpoint again.") from None


def _check_statistics(
    file: Path,
    key: str,
    feature: Mapping[str, Any],
    modes: Mapping[str, Any],
    found: Mapping[str, np.ndarray],
) -> None:
    kind = str(feature.get("type"))
    mode = modes.get(kind, "IDENTITY")
    if not isinstance(mode, str) or mode not in MODES:
        raise BridgeError(
            f"{file}: {kind} is normalised by {str(mode)[:40]!r}, which is not known: {', '.join(MODES)}."
        )
    if "empty_camera" in key:
        return
    for statistic in MODES[mode]:
        values = found.get(f"{key}.{statistic}")
        if values is None:
            raise BridgeError(
                f"{file} has no normalisation statistics {statistic!r} of {key!r}, which config.json normalises by "
                f"{mode}: save the processors of the training beside the policy."
            )
        length = feature["shape"][0]
        if values.ndim == 0 or values.shape[0] != length or values.size != length or values.dtype.kind not in "fiu":
            raise BridgeError(
                f"{file}: the statistics {statistic!r} of {key!r} are {values.dtype} {list(values.shape)}; {length} "
                "numbers must be there."
            )
        if not np.isfinite(values).all():
            raise BridgeError(f"{file}: the statistics {statistic!r} of {key!r} are not finite.")


def _check_normalised(file: Path, inputs: Mapping[str, Mapping[str, Any]], modes: Mapping[str, Any]) -> None:
    """Raises BridgeError for an input that the normaliser leaves as it is, though there are statistics of it."""
    for step in processor_steps(file):
        if step["registry_name"] != "normalizer_processor":
            continue
        settings = step.get("config", {})
        features, only = _mapping(settings.get("features"), file), settings.get("normalize_observation_keys")
        for key, feature in inputs.items():
            kind = str(feature.get("type"))
            if not MODES[modes.get(kind, "IDENTITY")] or "empty_camera" in key:
                continue
            own = features.get(key)
            listed = only is None or (isinstance(only, list) and key in only)
            if not listed or not isinstance(own, dict) or own.get("type") != kind:
                raise BridgeError(
                    f"{file} does not normalise {key!r} ({kind}), which config.json normalises by {modes[kind]}: save "
                    "the processors of the training beside the policy."
                )


def _mapping(value: Any, file: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BridgeError(f"{file} is not LeRobot's: it has {type(value).__name__} where names must be.")
    return value
