"""A policy and its processors as LeRobot's own code loads them, and what that code lets pass without a word."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from openvla_bridge.errors import BridgeError
from openvla_bridge.lerobot.checkpoint import PREPROCESSOR, WEIGHTS, Checkpoint, processor_steps

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}  # as safetensors names them


def load_policy(found: Checkpoint, device: str) -> tuple[Any, Callable[[dict], dict], Callable[..., torch.Tensor]]:
    """Loads a policy with its processors; see `told_of` for what may be raised besides.

    Args:
        found: the checkpoint.
        device: as torch names it.

    Returns:
        the policy, on its device and ready to predict, its preprocessor and its postprocessor.

    Raises:
        BridgeError: the weights are not those of the policy.
        ImportError: LeRobot, or what this policy needs, is not installed.
    """
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors

    config = PreTrainedConfig.from_pretrained(found.folder)
    config.device = device
    in_type_of_backbone = getattr(config, "load_vlm_weights", False)
    # The checkpoint has all weights; these would be fetched first, some as pickles, and be overwritten.
    for name, off in (("pretrained_backbone_weights", None), ("load_vlm_weights", False), ("compile_model", False)):
        if hasattr(config, name):
            setattr(config, name, off)
    policy = _load_weights(get_policy_class(found.kind), found.folder, config)
    if in_type_of_backbone:
        _set_types(policy, found.folder / WEIGHTS)
    steps = [step["registry_name"] for step in processor_steps(found.folder / PREPROCESSOR)]
    overrides = {"device_processor": {"device": device}} if "device_processor" in steps else {}
    preprocess, postprocess = make_pre_post_processors(config, str(found.folder), preprocessor_overrides=overrides)
    return policy.eval(), preprocess, postprocess


def _load_weights(policy_class: type, folder: Path, config: Any) -> Any:
    """The policy with all its weights: LeRobot's pi0 tells of some that it could not load, and goes on without."""
    faults = ["none were read"]

    class Complete(policy_class):
        def load_state_dict(self, weights: dict[str, Any], strict: bool = True, assign: bool = False) -> Any:
            try:
                result = super().load_state_dict(weights, strict=False, assign=assign)
                missing = _untied(self, result.missing_keys)
                if missing or result.unexpected_keys:
                    raise RuntimeError(f"missing {missing[:3]}, unexpected {result.unexpected_keys[:3]}")
            except RuntimeError as error:
                faults[:] = [" ".join(str(error).split())[:300]]
                raise
            faults.clear()
            return result

    policy = Complete.from_pretrained(folder, config=config, strict=True)
    if faults:
        raise BridgeError(
            f"{folder / WEIGHTS} has not the weights of this {policy.name} ({faults[0]}): get the checkpoint again."
        )
    return policy


def _untied(policy: Any, names: list[str]) -> list[str]:
    """Those of the names whose tensor has no other name: tied weights are saved under one of theirs."""
    tensors = policy.state_dict(keep_vars=True)
    loaded = {id(tensor) for name, tensor in tensors.items() if name not in set(names)}
    return [name for name in names if id(tensors[name]) not in loaded]


def _set_types(policy: Any, weights: Path) -> None:
    """Gives the parameters the types that they were saved with.

    LeRobot's SmolVLA has those of its backbone's weights where it loads these, bfloat16, and float32 in places without.
    """
    from safetensors import safe_open

    parameters = dict(policy.named_parameters())
    with safe_open(weights, "pt") as saved:
        for name in parameters.keys() & set(saved.keys()):
            dtype = _DTYPES.get(saved.get_slice(name).get_dtype(), parameters[name].dtype)
            parameters[name].data = parameters[name].data.to(dtype)


@contextlib.contextmanager
def told_of(found: Checkpoint) -> Iterator[None]:
    """Turns what LeRobot raises while it loads and labels a first frame into a BridgeError.

    What torch says of memory is left alone.
    """
    try:
        yield
    except (ImportError, MemoryError, torch.OutOfMemoryError, BridgeError):
        raise
    except Exception as error:  # draccus, safetensors, torch and transformers each have their own types
        if isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error):
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        cause = " ".join(lines[:2])[:300] or type(error).__name__
        raise BridgeError(
            f"{found.folder} cannot be loaded and run as LeRobot's {found.kind} ({type(error).__name__}: "
            f"{cause}): get the checkpoint again, or install what it needs."
        ) from None
