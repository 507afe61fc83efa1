"""Reads a checkpoint's config.json: the published layout, with its unwritten defaults."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openvla_bridge.checkpoint_files import read_json
from openvla_bridge.errors import BridgeError


@dataclasses.dataclass(frozen=True)
class BackboneConfig:
    """One vision transformer, as timm builds the model of that name.

    Attributes:
        width, depth, heads: of the transformer.
        mlp_ratio: hidden width of the MLP over `width`, truncated to a whole number.
        class_token: whether a class token goes before the patches.
        registers: register tokens between class token and patches.
        layer_scale: whether each residual branch is scaled by a learnt vector.
        attention_pool: whether the checkpoint holds an attention-pooling head (which nobody reads).
        patch, image_size: pixels.
    """

    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    class_token: bool = False
    registers: int = 0
    layer_scale: bool = False
    attention_pool: bool = False
    patch: int = 14
    image_size: int = 224

    @property
    def prefix_tokens(self) -> int:
        return int(self.class_token) + self.registers

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch) ** 2


BACKBONES = {
    "vit_large_patch14_reg4_dinov2.lvd142m": BackboneConfig(
        1024, 24, 16, class_token=True, registers=4, layer_scale=True
    ),
    "vit_so400m_patch14_siglip_224": BackboneConfig(1152, 27, 16, mlp_ratio=3.7362, attention_pool=True),
}

# What transformers' LlamaConfig leaves out of a saved config because it is its default.
LLAMA_DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 2048,
}
# What else is read of it; all the rest does not change what the network computes.
_LLAMA_OPTIONAL = ("num_key_value_heads", "head_dim", "hidden_act", "attention_bias", "mlp_bias", "pad_token_id")
# What a Llama may have and this one does not -> what that is called in a saved config.
_LLAMA_FIXED = {"rope_scaling": None, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What config.json says.

    Attributes:
        backbones: DINOv2 and SigLIP, in the order in which their features are concatenated.
        text: arguments of transformers' LlamaConfig, complete.
        action_vocab_size: the number V from which action tokens are counted down: the vocabulary without its padding.
        num_bins: edges of the action bins.
        norm_stats: statistics per data set.
        norm_source: the file that they are from.
        bos_id, eos_id: of the language model.
    """

    backbones: tuple[BackboneConfig, ...]
    text: Mapping[str, Any]
    action_vocab_size: int
    num_bins: int
    norm_stats: Mapping[str, Any]
    norm_source: str = "config.json"
    bos_id: int = 1
    eos_id: int = 2


def openvla_7b() -> ModelConfig:
    """Returns the settings of openvla/openvla-7b, without statistics."""
    return parse_config(
        {
            "model_type": "openvla",
            "timm_model_ids": list(BACKBONES),
            "use_fused_vision_backbone": True,
            "image_sizes": [224, 224],
            "n_action_bins": 256,
            "pad_to_multiple_of": 64,
            "text_config": {"model_type": "llama", "pad_token_id": 32000, "vocab_size": 32064},
        }
    )


def read_config(folder: Path) -> ModelConfig:
    """Reads config.json, and dataset_statistics.json where there is one, of a checkpoint.

    Raises:
        BridgeError: a file is missing or broken, or describes another kind of model.
    """
    config = parse_config(read_json(folder / "config.json"))
    statistics = folder / "dataset_statistics.json"
    if not statistics.is_file():
        return config
    norm_stats = _check_statistics(read_json(statistics), statistics.name)
    return dataclasses.replace(config, norm_stats=norm_stats, norm_source=statistics.name)


def parse_config(config: Mapping[str, Any]) -> ModelConfig:
    """Returns what the contents of a config.json mean."""
    kind = config.get("model_type")
    if kind != "openvla":
        raise BridgeError(
            f"config.json is of a model of type {kind!r}, not 'openvla': give teacher.checkpoint an OpenVLA checkpoint."
        )
    if not config.get("use_fused_vision_backbone"):
        raise BridgeError(
            "The checkpoint has one vision backbone (use_fused_vision_backbone is not true in config.json): "
            "only those with DINOv2 and SigLIP can be loaded."
        )
    try:
        names = config["timm_model_ids"]
        overrides = config.get("timm_override_kwargs") or [{}] * len(names)
        backbones = tuple(
            _backbone(name, size, override)
            for name, size, override in zip(names, config["image_sizes"], overrides, strict=True)
        )
        activations = config.get("timm_override_act_layers") or [None] * len(names)
        given = config["text_config"]
        if given.get("model_type", "llama") != "llama" or any(activations):
            raise BridgeError("config.json asks for another language model or activation than Llama's and GELU.")
        text = _text(given)
        _check_sizes(text, backbones, config)
        return ModelConfig(
            backbones=backbones,
            text=text,
            action_vocab_size=text["vocab_size"] - config.get("pad_to_multiple_of", 64),
            num_bins=config.get("n_action_bins", 256),
            norm_stats=_check_statistics(config.get("norm_stats") or {}, "config.json"),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BridgeError(f"config.json is not OpenVLA's ({error!r} is missing or wrong): get it again.") from None


def _text(given: Mapping[str, Any]) -> dict[str, Any]:
    """What `text_config` says of the network; raises BridgeError for what would be computed otherwise."""
    text = LLAMA_DEFAULTS | {name: given[name] for name in LLAMA_DEFAULTS if name in given}
    text |= {name: given[name] for name in _LLAMA_OPTIONAL if given.get(name) is not None}
    for name, value in _LLAMA_FIXED.items():
        if given.get(name, value) != value:
            raise BridgeError(
                f"config.json has {name}={str(given[name])[:80]} in text_config, where only {value} is known."
            )
    rope = given.get("rope_parameters")  # as transformers writes it since version 5
    if rope is not None:
        theta = rope.get("rope_theta", LLAMA_DEFAULTS["rope_theta"])
        if rope != {"rope_type": "default", "rope_theta": theta} or given.get("rope_theta", theta) != theta:
            raise BridgeError(
                f"config.json has rope_parameters={str(rope)[:80]} in text_config; only a rope_theta of the rope_type "
                "'default' is known, and not another one beside it."
            )
        text["rope_theta"] = theta
    return text


# Larger numbers are mistakes or attacks: they would build networks without end.
_LARGEST = {
    "vocab_size": 1 << 20,
    "hidden_size": 1 << 16,
    "intermediate_size": 1 << 18,
    "num_hidden_layers": 1000,
    "num_attention_heads": 1024,
    "num_key_value_heads": 1024,
    "max_position_embeddings": 1 << 20,
    "width": 1 << 14,
    "depth": 1000,
    "heads": 1024,
    "image_size": 1 << 11,
    "n_action_bins": 1 << 16,
}


def _check_sizes(text: Mapping[str, Any], backbones: tuple[BackboneConfig, ...], config: Mapping[str, Any]) -> None:
    found = [(name, text[name]) for name in _LARGEST if name in text]
    found += [(name, value) for backbone in backbones for name, value in vars(backbone).items() if name in _LARGEST]
    found.append(("n_action_bins", config.get("n_action_bins", 256)))
    for name, value in found:
        if type(value) is not int or not 1 <= value <= _LARGEST[name]:
            raise BridgeError(
                f"config.json has {name}={str(value)[:40]}; it must be a whole number from 1 to {_LARGEST[name]}."
            )
    widths = [("width", "heads", backbone.width, backbone.heads) for backbone in backbones]
    # Rotary position embeddings turn pairs of numbers.
    widths.append(("hidden_size", "2 x num_attention_heads", text["hidden_size"], 2 * text["num_attention_heads"]))
    heads = text["num_attention_heads"]
    widths.append(("num_attention_heads", "num_key_value_heads", heads, text.get("num_key_value_heads", heads)))
    for name, parts, width, heads in widths:
        if width % heads:
            raise BridgeError(f"config.json has {name}={width}, which is no multiple of {parts}={heads}.")
    head_dim = text["hidden_size"] // text["num_attention_heads"]
    if text.get("head_dim", head_dim) != head_dim:
        raise BridgeError(
            f"config.json has head_dim={str(text['head_dim'])[:40]}; hidden_size / num_attention_heads is {head_dim}."
        )
    for name in ("rms_norm_eps", "rope_theta"):
        if isinstance(text[name], bool) or not isinstance(text[name], int | float) or not 0 < text[name] < 1e12:
            raise BridgeError(f"config.json has {name}={str(text[name])[:40]}; it must be a number above 0.")
    padding = config.get("pad_to_multiple_of", 64)
    if type(padding) is not int or not 0 <= padding < text["vocab_size"]:
        raise BridgeError(f"config.json has pad_to_multiple_of={str(padding)[:40]}; it must be less than vocab_size.")


def _backbone(name: str, image_size: int, override: Mapping[str, Any]) -> BackboneConfig:
    if name not in BACKBONES:
        raise BridgeError(f"The vision backbone {name!r} is not known: known are {', '.join(BACKBONES)}.")
    names = {"embed_dim": "width", "depth": "depth", "num_heads": "heads"}
    changes = {names[key]: value for key, value in override.items()}
    return dataclasses.replace(BACKBONES[name], image_size=image_size, **changes)


def _check_statistics(statistics: Any, source: str) -> Mapping[str, Any]:
    if not isinstance(statistics, dict) or not all(isinstance(entry, dict) for entry in statistics.values()):
        raise BridgeError(f"{source} has no action statistics per data set: get the checkpoint again.")
    return statistics
