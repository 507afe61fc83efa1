"""A JSON file that is whole or not there."""

import json
import os
from pathlib import Path


def write_json(path: Path, values: dict) -> None:
    """Writes `values` to `path` under another name, renamed when it is whole."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(values, indent=2) + "\n")
    os.replace(temporary, path)
