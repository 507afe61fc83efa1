"""SAPIEN's physics on the GPU: a library outside its package, which SAPIEN fetches when it is first asked for."""

import platform
import urllib.request
from pathlib import Path

import sapien.physx

from rpd_jax.errors import UserError

LIBRARY = "libPhysXGpu_64.so"
_RELEASES = "https://github.com/sapien-sim/physx-precompiled/releases/download"
_SECONDS = 10.0


def folder() -> Path:
    """Where SAPIEN keeps the library."""
    return Path.home() / ".sapien" / "physx" / sapien.physx.version()


def is_there() -> bool:
    """Whether the library is on this machine, so that nothing would be fetched."""
    return (folder() / LIBRARY).is_file()


def check_available(releases: str = _RELEASES, seconds: float = _SECONDS) -> None:
    """Raises UserError if the library is neither here nor can be fetched; SAPIEN itself would wait without a limit."""
    if is_there():
        return
    archive = "linux-aarch64-so.zip" if platform.machine() in ("aarch64", "arm64") else "linux-so.zip"
    url = f"{releases}/{sapien.physx.version()}/{archive}"
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds).close()
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(
            f"env.backend='gpu' needs SAPIEN's GPU physics, {LIBRARY}, which SAPIEN fetches from {url}, and that "
            f"cannot be reached ({reason}): unzip it into {folder()}, or use --config.env.backend=cpu."
        ) from error
