"""jemalloc is installed where that takes no question; where it does not work out, the tests run without it."""

import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "setup" / "allocator.sh"
# Stand for the machine: apt-get writes what it is asked, and has the package once it has fetched its lists.
FAKES = {
    "ldconfig": """#!/bin/bash
[ -e "$MACHINE/there" ] && echo "libjemalloc.so.2 (libc6,x86-64) => /lib/libjemalloc.so.2"
""",
    "id": '#!/bin/bash\ncat "$MACHINE/user"\n',
    "apt-get": """#!/bin/bash
echo "$@" >> "$MACHINE/asked"
if [ "$1" = update ]; then [ -e "$MACHINE/offline" ] || touch "$MACHINE/lists"; exit 0; fi
[ -e "$MACHINE/lists" ]
""",
}
INSTALL = "install -y --no-install-recommends libjemalloc2"


def set_up(root: Path, *has: str, user: int = 0) -> tuple[list[str], str]:
    """What apt-get was asked on a machine that has these files, and what was said."""
    for name, text in FAKES.items():
        (root / name).write_text(text)
        (root / name).chmod(0o755)
    for name in has:
        (root / name).touch()
    (root / "user").write_text(f"{user}\n")
    environment = {"PATH": f"{root}:/usr/bin:/bin", "MACHINE": str(root)}
    run = subprocess.run(["bash", SCRIPT], env=environment, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0 and run.stderr == ""
    asked = root / "asked"
    return asked.read_text().splitlines() if asked.exists() else [], run.stdout


@pytest.mark.parametrize(
    ("has", "user", "expected"),
    [
        (["there"], 0, []),
        (["lists"], 1000, []),
        (["lists"], 0, [INSTALL]),
        ([], 0, [INSTALL, "update", INSTALL]),
    ],
)
def test_it_asks_for_what_is_missing_as_root_only(tmp_path, has, user, expected):
    assert set_up(tmp_path, *has, user=user) == (expected, "")


def test_without_a_network_it_is_said(tmp_path):
    asked, said = set_up(tmp_path, "offline")
    assert asked == [INSTALL, "update", INSTALL] and said.startswith("libjemalloc2 could not be installed")
