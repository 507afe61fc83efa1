"""What the actions of demos mean, as far as their files say it, and whether that is what the tasks are driven with.

The convention of the tasks is ManiSkill's pd_ee_delta_pose: 3 translations and 3 rotations of the tool in units of
0.1 m and 0.1 rad, in [-1, 1], and a gripper from -1, closed, to 1, open.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from rpd_jax.action_convention import ACTION_DIM, CONTROL_MODE, gripper_to_environment
from rpd_jax.errors import UserError

GRIPPERS = ("", "as_is", "one_is_open", "zero_is_open")
_JOINTS = ("joint", "motor", "shoulder", "elbow", "waist", "wrist", "forearm", "main_", "left_", "right_")


@dataclasses.dataclass(frozen=True)
class ActionMeaning:
    """What a dataset's own metadata says of its actions.

    Attributes:
        found: that, in words.
        dimension: numbers in an action, after conversion.
        stated: whether the metadata says that they are pd_ee_delta_pose's, or can be converted to them exactly.
        gripper: how the last number tells the gripper, one of GRIPPERS; "" if the metadata does not say it.
        unusable: why a model of these actions cannot drive the tasks; "" if it can, as far as the metadata says.
    """

    found: str
    dimension: int
    stated: bool = False
    gripper: str = ""
    unusable: str = ""


def meaning_of_names(names: Any, dimension: int, description: str = "") -> ActionMeaning:
    """The meaning of actions whose dimensions have names, or of which there is a description.

    Args:
        names: of LeRobot's features: a list of texts, one such list in an object, or None.
        dimension: numbers in an action.
        description: of TFDS's features.
    """
    names = _flat_names(names)
    found = f"named {', '.join(names)}" if names else "the files do not say what they mean"
    if description:
        found = f"described as {description!r}"
    unusable = ""
    if dimension != ACTION_DIM:
        unusable = f"they have {dimension} numbers, {CONTROL_MODE}'s {ACTION_DIM}"
    elif any(word in name.lower() for name in names for word in _JOINTS):
        unusable = f"they are named {', '.join(names)}, which are joints"
    gripper = ""
    if len(names) == dimension == ACTION_DIM:
        last = names[-1].lower()
        gripper = "one_is_open" if "open" in last else "zero_is_open" if "clos" in last else ""
    return ActionMeaning(found, dimension, gripper=gripper, unusable=unusable)


def checked_actions(values: np.ndarray, where: str) -> np.ndarray:
    """Returns actions [T, A] of any number type as float32.

    Raises:
        UserError: one is not finite; the message starts with `where`, which names the file and the episode.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        actions = values.astype(np.float32)
    bad = np.argwhere(~np.isfinite(actions))
    if len(bad):
        step, dimension = bad[0]
        more = f", and {len(bad) - 1} more numbers are none" if len(bad) > 1 else ""
        raise UserError(
            f"{where}: the action of step {step} has {values[step, dimension]} in dimension {dimension} (both counted "
            f"from 0), which is no finite number{more}: mend this episode or leave it out."
        )
    return actions


def convert_gripper(actions: np.ndarray, gripper: str) -> np.ndarray:
    """Returns actions float32 [T, 7] with the gripper from -1, closed, to 1, open; see GRIPPERS."""
    if gripper in ("", "as_is"):
        return actions
    return gripper_to_environment(actions, "open" if gripper == "one_is_open" else "closed")


def choose_gripper(actions: np.ndarray, meaning: ActionMeaning, asked: str, source: Path) -> str:
    """How the gripper of a dataset is converted, one of GRIPPERS: as asked, else as its metadata says.

    Args:
        actions: all of them, [N, A].
        meaning: what the metadata says.
        asked: the user's choice, "" if there is none.
        source: the dataset, for messages.

    Raises:
        UserError: it stays within 0 and 1 and nobody says which end is open, or it does not and is to be converted.
    """
    if asked not in GRIPPERS:
        raise UserError(f"config.gripper={asked!r} is not one of {', '.join(map(repr, GRIPPERS))}.")
    if meaning.stated or meaning.unusable or actions.shape[1] != ACTION_DIM:
        return "as_is"
    least, greatest = actions[:, -1].min(), actions[:, -1].max()
    from_zero = least >= 0.0 and greatest <= 1.0
    if asked in ("one_is_open", "zero_is_open") and not from_zero:
        raise UserError(
            f"{source}: config.gripper={asked!r} is for a gripper from 0 to 1; this one goes from {least:g} to "
            f"{greatest:g}."
        )
    if asked or not from_zero:
        return asked or "as_is"
    if meaning.gripper:
        return meaning.gripper
    runs = f"goes from {least:g} to {greatest:g}" if least < greatest else f"is always {least:g}"
    raise UserError(
        f"{source}: the gripper, the last of {ACTION_DIM} numbers, {runs}, where "
        f"{CONTROL_MODE}'s goes from -1 (closed) to 1 (open): say with config.gripper what it means, one_is_open or "
        "zero_is_open, which convert it, or as_is."
    )


def why_not_ours(actions: np.ndarray, meaning: ActionMeaning) -> str:
    """Why a model of these converted actions [N, A] cannot drive the tasks, the end of a sentence; "" if it can."""
    if meaning.unusable or meaning.stated:
        return meaning.unusable
    if actions.shape[1] != ACTION_DIM:
        return f"they have {actions.shape[1]} numbers, {CONTROL_MODE}'s {ACTION_DIM}"
    least, greatest = actions.min(), actions.max()
    if least < -1.0 or greatest > 1.0:
        return f"they go from {least:.3g} to {greatest:.3g}, {CONTROL_MODE}'s from -1 to 1"
    return ""


def _flat_names(names: Any) -> list[str]:
    if isinstance(names, dict):
        names = [name for part in names.values() for name in (part if isinstance(part, list) else [part])]
    if not isinstance(names, list):
        return []
    flat = [name for part in names for name in (part if isinstance(part, list) else [part])]
    return flat if all(isinstance(name, str) for name in flat) else []
