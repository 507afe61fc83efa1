"""Finds, reads and writes checkpoints in OpenVLA's published layout: JSON settings and safetensors."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from openvla_bridge import checkpoint_files
from openvla_bridge.checkpoint_files import Report, read_json
from openvla_bridge.errors import BridgeError
from openvla_bridge.model.model_config import ModelConfig, read_config
from openvla_bridge.model.openvla import OpenVLAModel
from openvla_bridge.model.precision import PRECISIONS

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# What OpenVLA-OFT saves beside a model of the same config.json: networks that its actions come from, instead of tokens.
_OF_OFT = ("action_head--", "noisy_action_projector--", "proprio_projector--", "vision_backbone--")
DTYPES = {name: getattr(torch, name) for name in PRECISIONS}


def find_folder(checkpoint: str, report: Report) -> Path:
    """Returns the local folder of a checkpoint; of hf://owner/name, all but the weights is downloaded.

    Raises:
        BridgeError: there is none, or it is OpenVLA-OFT's.
    """
    folder = checkpoint_files.find_folder(checkpoint, "OpenVLA's", ["*.json", "tokenizer.model"], report)
    for name in checkpoint_files.file_names(checkpoint, folder):
        if name.startswith(_OF_OFT):
            raise BridgeError(
                f"{checkpoint} has {name}: it is OpenVLA-OFT's, whose actions come from that and not from tokens, "
                "which is not known here; give teacher.checkpoint an OpenVLA checkpoint."
            )
    return folder


def fetch_weights(checkpoint: str, folder: Path, report: Report) -> None:
    """Downloads the safetensors files of hf://owner/name that its settings in `folder` name; nothing for a folder."""
    checkpoint_files.fetch_files(checkpoint, folder, weight_files(folder), report)


def weight_files(folder: Path) -> list[str]:
    """Names of the safetensors files of a checkpoint, in order."""
    if not (folder / INDEX).is_file():
        return [SINGLE]
    index = read_json(folder / INDEX)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise BridgeError(f"{folder / INDEX} has no weight_map: get the checkpoint again.")
    names = sorted(set(map(str, weight_map.values())))
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise BridgeError(f"{folder / INDEX} names {name!r}, which is no safetensors file beside it.")
    return names


def create_model(config: ModelConfig, device: str | torch.device, dtype: torch.dtype) -> OpenVLAModel:
    """Returns the network with weights that are allocated, not initialised ("meta": not even allocated)."""
    with torch.device("meta"):
        model = OpenVLAModel(config).to(dtype)
    if torch.device(device).type != "meta":
        model.to_empty(device=device)
        # Not in the checkpoint, and never in low precision.
        rotary = model.language_model.model.rotary_emb
        inv_freq, rotary.attention_scaling = rotary.compute_default_rope_parameters(rotary.config)
        rotary.inv_freq = inv_freq.to(device)
        rotary.original_inv_freq = inv_freq.to(device)
    return model.eval().requires_grad_(False)


def load_model(folder: Path, device: str, precision: str, report: Report) -> OpenVLAModel:
    """Reads a checkpoint's settings and weights.

    Args:
        folder: as `find_folder` returned it.
        device: as torch names it.
        precision: "float32" or "bfloat16".
        report: is told which file is being read.

    Raises:
        BridgeError: files, weights or shapes are not those of the model that config.json describes.
    """
    from safetensors import safe_open

    config, names = read_config(folder), weight_files(folder)
    # Nothing is allocated before the files are known to hold what config.json asks for.
    wanted = {name: tuple(tensor.shape) for name, tensor in _shapes(config).items()}
    for name in names:
        with _weights_errors(folder / name), safe_open(folder / name, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118, it is no mapping
                _check_weight(key, file.get_slice(key), wanted, folder / name)
    if wanted:
        raise BridgeError(
            f"{folder} lacks {len(wanted)} of the weights that config.json asks for, {next(iter(wanted))} among them."
        )
    model = create_model(config, device, DTYPES[precision])
    targets = model.state_dict()
    for number, name in enumerate(names, 1):
        report(f"reading {name} ({number} of {len(names)})")
        with _weights_errors(folder / name), safe_open(folder / name, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                targets[key].copy_(file.get_tensor(key))
                if not torch.isfinite(torch.stack(torch.aminmax(targets[key]))).all():
                    raise BridgeError(
                        f"{key} in {folder / name} has numbers that are not finite: get the checkpoint again."
                    )
    return model


def _shapes(config: ModelConfig) -> dict[str, torch.Tensor]:
    try:
        return dict(create_model(config, "meta", torch.float32).state_dict())
    except Exception as error:  # whatever nonsensical sizes make torch and transformers stumble over
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BridgeError(f"config.json does not describe a working network ({cause}): get it again.") from None


def _check_weight(key: str, found: Any, wanted: dict[str, tuple[int, ...]], file: Path) -> None:
    """Takes a weight off the list of those that are wanted; raises BridgeError unless it is one."""
    if key not in wanted:
        raise BridgeError(f"{file} has a weight {key!r} that config.json does not ask for.")
    shape = wanted.pop(key)
    if found.get_dtype() not in ("BF16", "F16", "F32", "F64"):
        raise BridgeError(f"{key} in {file} has the type {found.get_dtype()}; weights are real numbers.")
    if tuple(found.get_shape()) != shape:
        raise BridgeError(f"{key} is {list(found.get_shape())} in {file}; config.json asks for {list(shape)}.")


@contextlib.contextmanager
def _weights_errors(file: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise BridgeError(f"{file} cannot be read ({error}): get the checkpoint again.") from None


def save_weights(model: OpenVLAModel, folder: Path, shard_bytes: int | None = None) -> None:
    """Writes a model's weights, in shards of about `shard_bytes` with an index, or in one file."""
    from safetensors.torch import save_file

    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if shard_bytes is None:
        save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
        return
    shards: list[dict[str, torch.Tensor]] = [{}]
    for name, tensor in tensors.items():
        size = sum(other.nbytes for other in shards[-1].values())
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards.append({})
        shards[-1][name] = tensor
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2))


def randomize(model: OpenVLAModel, seed: int = 0) -> OpenVLAModel:
    """Fills a network with random weights of the size that training starts with; returns it."""
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("scale_factor"):
            parameter.data.fill_(0.0 if name.endswith("bias") else 1.0)
        else:
            parameter.data.normal_(0.0, 0.02, generator=generator)
    return model
