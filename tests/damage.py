"""Damage as disks, networks, editors and other programs do it: bytes and fields flipped, cut and duplicated.

All of it is drawn from a `random.Random`, so that a seed says what was done.
"""

import copy
import json
from pathlib import Path
from random import Random
from typing import Any

# What a field may become: other types, and numbers and texts that nobody expects.
_VALUES = (
    None,
    True,
    0,
    1,
    -1,
    2**31,
    2**63,
    10**30,
    0.5,
    -1.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    "../x",
    "{",
    [],
    {},
    [0],
    {"x": 0},
)


def damage_bytes(data: bytes, random: Random) -> bytes:
    """Returns the data with one to three bits flipped, or stretches of bytes cut, duplicated or overwritten."""
    damaged = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 3))):
        if not damaged:
            break
        start = random.randrange(len(damaged))
        size = min(random.choice((1, 1, 2, 4, 16, 256)), len(damaged) - start)
        kind = random.choice(("flip", "flip", "cut", "duplicate", "overwrite", "truncate"))
        if kind == "flip":
            damaged[start] ^= 1 << random.randrange(8)
        elif kind == "cut":
            del damaged[start : start + size]
        elif kind == "duplicate":
            damaged[start:start] = damaged[start : start + size]
        elif kind == "overwrite":
            damaged[start : start + size] = bytes([random.choice((0, 255, 127, 48))]) * size
        elif random.random() < 0.3:
            del damaged[start:]
    return bytes(damaged)


def damage_fields(content: Any, random: Random) -> Any:
    """Returns a json value with one to three of its fields removed, doubled, exchanged or given another value."""
    content = copy.deepcopy(content)
    for _ in range(random.choice((1, 1, 2, 3))):
        places = list(_places(content))
        if not places:
            break
        parent, key = random.choice(places)
        kind = random.choice(("remove", "value", "value", "exchange", "duplicate", "rename"))
        if kind == "remove":
            del parent[key]
        elif kind == "value":
            parent[key] = copy.deepcopy(random.choice(_VALUES))
        elif kind == "exchange":
            other, other_key = random.choice(places)
            parent[key] = copy.deepcopy(other[other_key])
        elif isinstance(parent, list):
            parent.insert(key, copy.deepcopy(parent[key]))
        elif kind == "rename":
            parent[f"{key}x"] = parent.pop(key)
    return content


def damage_file(path: Path, random: Random) -> None:
    """Damages a file: the fields of a .json or the lines of a .jsonl, or the bytes of any."""
    data = path.read_bytes()
    by_field = random.random() < 0.7
    if path.suffix == ".json" and by_field:
        path.write_text(json.dumps(damage_fields(json.loads(data), random)))
    elif path.suffix == ".jsonl" and by_field:
        lines = damage_fields([json.loads(line) for line in data.splitlines()], random)
        path.write_text("\n".join(json.dumps(line) for line in lines))
    else:
        path.write_bytes(damage_bytes(data, random))


def damage_folder(folder: Path, random: Random) -> None:
    """Damages one file below a folder, or removes or empties it, or exchanges it with another one."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = random.choice(files)
    kind = random.random()
    if kind < 0.03:
        path.unlink()
    elif kind < 0.06:
        path.write_bytes(b"")
    elif kind < 0.09:
        path.write_bytes(random.choice(files).read_bytes())
    else:
        damage_file(path, random)


def _places(content: Any):
    """Yields (object or list, key) of every value in a json value."""
    keys = content.keys() if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ()
    for key in list(keys):
        yield content, key
        yield from _places(content[key])
