"""Where this project keeps what can be made again."""

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """$XDG_CACHE_HOME/rpd_jax/NAME, or ~/.cache/rpd_jax/NAME; it may not be there yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rpd_jax" / name
