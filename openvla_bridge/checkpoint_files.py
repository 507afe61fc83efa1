"""Where a checkpoint's files are: in a folder, or on the Hugging Face hub. No code and no pickles are fetched."""

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from openvla_bridge.errors import BridgeError

Report = Callable[[str], None]


def find_folder(
    checkpoint: str, layout: str, patterns: Sequence[str], report: Report, without: Sequence[str] = ()
) -> Path:
    """Returns the local folder of a checkpoint; of hf://owner/name what `patterns` name is downloaded, or in the cache.

    Args:
        checkpoint: a folder, or hf://owner/name.
        layout: whose layout it must have, for the sentence: "OpenVLA's".
        patterns: of the files to fetch.
        report: is told that something is fetched.
        without: patterns of files that are not fetched, whatever `patterns` say.

    Raises:
        BridgeError: there is no such folder or repository.
    """
    if not checkpoint.startswith("hf://"):
        folder = Path(checkpoint)
        if not folder.is_dir():
            raise BridgeError(
                f"There is no checkpoint folder {checkpoint}: give teacher.checkpoint a folder in {layout} layout, or "
                "hf://owner/name."
            )
        return folder
    repo = repository(checkpoint)
    import huggingface_hub  # imported late: local checkpoints do not need it

    report(f"fetching {' and '.join(patterns)} of {checkpoint}")
    with hub_errors(checkpoint):
        return Path(
            huggingface_hub.snapshot_download(repo, allow_patterns=list(patterns), ignore_patterns=list(without))
        )


def fetch_files(checkpoint: str, folder: Path, names: Sequence[str], report: Report) -> None:
    """Downloads files of hf://owner/name, of the commit that the folder is of, into it; nothing for a local one.

    Args:
        checkpoint: as for `find_folder`.
        folder: that this returned.
        names: of the files.
        report: is told of each of them before it is fetched.

    Raises:
        BridgeError: one could not be had.
    """
    if not checkpoint.startswith("hf://"):
        return
    import huggingface_hub

    for number, name in enumerate(names, 1):
        report(f"fetching {name} ({number} of {len(names)}) of {checkpoint}")
        with hub_errors(checkpoint):
            huggingface_hub.hf_hub_download(repository(checkpoint), name, revision=folder.name)


def file_names(checkpoint: str, folder: Path) -> list[str]:
    """Names of the files of a checkpoint: of its folder, and of hf://owner/name all that the hub has besides.

    Args:
        checkpoint: as for `find_folder`.
        folder: that this returned.
    """
    names = {path.name for path in folder.iterdir()}
    if checkpoint.startswith("hf://"):
        import huggingface_hub

        # Without a network the folder, in the hub's cache, is all that there is.
        with contextlib.suppress(Exception):
            names.update(huggingface_hub.HfApi().list_repo_files(repository(checkpoint), revision=folder.name))
    return sorted(names)


def repository(checkpoint: str) -> str:
    """The owner/name of hf://owner/name; raises BridgeError if it is none."""
    repo = checkpoint.removeprefix("hf://")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise BridgeError(f"{checkpoint} is not the name of a repository: it must look like hf://owner/name.")
    return repo


@contextlib.contextmanager
def hub_errors(checkpoint: str) -> Iterator[None]:
    """Turns what the hub's client raises into a BridgeError."""
    try:
        yield
    except Exception as error:  # the hub's client raises many types for one thing: not to be had
        raise BridgeError(
            f"{checkpoint} could not be had from the Hugging Face hub and is not in its cache: check the name and the "
            f"network, or give a local folder ({first_line(error)})"
        ) from None


def first_line(error: Exception) -> str:
    """What an error says, in its first line, or its type."""
    said = str(error).strip()
    return said.splitlines()[0] if said else type(error).__name__


def read_json(path: Path, layout: str = "OpenVLA's") -> Any:
    """Returns the contents of a JSON file; raises BridgeError if it is missing or broken."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise BridgeError(
            f"{path} is missing: teacher.checkpoint must be a folder in {layout} layout, or hf://owner/name."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise BridgeError(f"{path} cannot be read as JSON ({error}): get the checkpoint again.") from None
