"""What a policy takes from elsewhere: configuration and tokenizer of the language model that it is built on, and
transformers, which runs that."""

import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from openvla_bridge.checkpoint_files import Report, first_line, read_json
from openvla_bridge.errors import BridgeError
from openvla_bridge.lerobot.checkpoint import LAYOUT, PREPROCESSOR, Checkpoint, processor_steps

# Configurations and tokenizers; no weights, code or pickles.
FILES = ("*.json", "*.jinja", "merges.txt", "tokenizer.model")


def find_backbones(found: Checkpoint, report: Report) -> None:
    """Brings what a checkpoint names, and does not hold, into the hub's cache.

    LeRobot's `save_pretrained` writes the name of a repository or folder only.

    Args:
        found: the checkpoint.
        report: is told what is fetched.

    Raises:
        BridgeError: something can be had neither from a folder nor from the hub nor from its cache.
    """
    files: dict[str, Path] = {}
    for file, name in _names(found):
        files.setdefault(name, file)
    for name, file in files.items():
        if Path(name).is_dir():
            continue
        report(f"looking for configuration and tokenizer of {name}")
        try:
            import huggingface_hub  # imported late: most policies need no hub

            huggingface_hub.snapshot_download(name, allow_patterns=list(FILES))
        except Exception as error:  # the hub's client raises many types for one thing: not to be had
            raise BridgeError(
                f"{file} names {name!r}, whose configuration and tokenizer are in no folder of that name, nor in the "
                "Hugging Face hub's cache, nor could they be fetched from the hub: run `hf download "
                f"{name} --include {' '.join(map(repr, FILES))}` where there is a network (if it is gated, after `hf "
                f"auth login`), and set HF_HOME to that cache ({first_line(error)[:200]})."
            ) from None


def leave_hub() -> None:
    """From now on this process asks no hub: all that is needed was fetched.

    transformers asks for each file that there may be, which takes minutes where there is no network.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    if client := sys.modules.get("huggingface_hub.constants"):
        client.HF_HUB_OFFLINE = True


def check_transformers(found: Checkpoint) -> None:
    """LeRobot 0.4 looks for openpi's changes itself, but only when it has built pi0, of gigabytes.

    Raises:
        BridgeError: transformers lacks them.
        ImportError: LeRobot or transformers is not installed.
    """
    if found.kind not in ("pi0", "pi05"):
        return
    version = importlib.metadata.version("lerobot")
    if version.startswith("0.4.") and importlib.util.find_spec("transformers.models.siglip.check") is None:
        raise BridgeError(
            f"LeRobot {version} runs {found.kind} on a transformers that has openpi's changes, and {sys.executable} "
            f"has {importlib.metadata.version('transformers')} without them: run `make lerobot06-env "
            "PYTHON=python3.12` and set teacher.python=.venv-lerobot06/bin/python, or serve the policy and set "
            "teacher.name=openpi."
        )


def _names(found: Checkpoint) -> Iterator[tuple[Path, str]]:
    """The file that names it, and the name of a repository or folder."""
    config = found.folder / "config.json"
    # LeRobot's default is read where a name is missing, and then asks the hub itself.
    settings: Mapping[str, Any] = read_json(config, LAYOUT) if found.kind == "smolvla" else {}
    if isinstance(name := settings.get("vlm_model_name"), str):
        yield config, name
    for step in processor_steps(found.folder / PREPROCESSOR):
        if isinstance(name := step.get("config", {}).get("tokenizer_name"), str):
            yield found.folder / PREPROCESSOR, name
