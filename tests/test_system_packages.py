"""Mesa comes from the mirror that the machine has its packages from; nothing here touches the machine's own apt."""

import subprocess
import sys
from pathlib import Path

import pytest

SETUP = Path(__file__).resolve().parent.parent / "setup"
DEB822 = """# our mirror
Types: deb deb-src
URIs: https://mirror.corp.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /etc/apt/keyrings/corp.gpg

Types: deb
URIs: https://mirror.corp.example/security
Suites: bookworm-security
Components: main
"""
KEY = """Types: deb
URIs: http://key.corp.example/debian
Suites: bookworm
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mQINBGPL0BUBEADmW5NdOOHwPIJlgPu6JDcKw/NZJPR8lsD3K87ZM18gzyQZJD+w
 -----END PGP PUBLIC KEY BLOCK-----
"""


@pytest.fixture
def machine(tmp_path):
    """Files below etc/ of a machine that runs Debian 12."""

    def make(**sources: str) -> Path:
        folder = tmp_path / "etc" / "apt" / "sources.list.d"
        folder.mkdir(parents=True)
        (tmp_path / "etc" / "os-release").write_text('ID=debian\nVERSION_ID="12"\n')
        for name, text in sources.items():
            stem, _, suffix = name.rpartition("_")
            (folder / f"{stem}.{suffix}" if stem != "main" else folder.parent / "sources.list").write_text(text)
        return tmp_path

    return make


def backports_of(root: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, SETUP / "backports_source.py", "bookworm", root]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def stanza(uri: str, *more: str) -> str:
    return "\n".join(["Types: deb", f"URIs: {uri}", "Suites: bookworm-backports", "Components: main", *more]) + "\n"


CORP = stanza("https://mirror.corp.example/debian", "Signed-By: /etc/apt/keyrings/corp.gpg")
ONE_LINE = "# deb http://no.example/debian bookworm main\ndeb http://old.example/debian bookworm main\n"


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        ({"corp_sources": DEB822}, CORP),
        (
            {"main_list": ONE_LINE},
            stanza("http://old.example/debian"),
        ),
        (
            {"a_list": "deb [arch=amd64,arm64 signed-by=/k/corp.gpg] https://one.example/d/ bookworm main non-free\n"},
            stanza("https://one.example/d/", "Signed-By: /k/corp.gpg", "Architectures: amd64 arm64"),
        ),
        (
            {"a_list": "deb [ trusted=yes ] file:/srv/debian bookworm main\n"},
            stanza("file:/srv/debian", "Trusted: yes"),
        ),
        (
            {
                "a_list": "deb cdrom:[Debian_12]/ bookworm main\ndeb-src http://src.example/d bookworm main\n",
                "b_sources": KEY,
            },
            stanza("http://key.corp.example/debian", *KEY.rstrip().splitlines()[4:]),
        ),
        ({"off_sources": f"Enabled: no\n{DEB822.split(chr(10), 1)[1]}", "z_sources": KEY}, None),
        ({"a_sources": DEB822, "b_list": "deb http://x.example/d bookworm-backports main\n"}, ""),
    ],
    ids=["deb822", "one line", "options", "trusted", "key block", "disabled", "there already"],
)
def test_the_mirror_is_that_of_the_release_itself(machine, sources, expected):
    found = backports_of(machine(**sources))
    assert found.returncode == 0, found.stderr
    if expected is None:
        expected = stanza("http://key.corp.example/debian", *KEY.rstrip().splitlines()[4:])
    assert found.stdout.rstrip("\n") == expected.rstrip("\n")


def test_a_machine_without_the_release_is_told(machine):
    found = backports_of(machine(a_list="deb http://x.example/ubuntu noble main\n"))
    assert found.returncode == 1 and "No source in " in found.stderr and "has bookworm main" in found.stderr


# Stands for the machine: apt-get writes what it is asked, and installing Mesa makes SAPIEN render.
FAKES = {
    "apt-get": """#!/bin/bash
echo "$@" >> "$RPD_JAX_ROOT/asked"
[ "$1" = install ] && touch "$RPD_JAX_ROOT/installed"
exit "$( [ "$1" = update ] && cat "$RPD_JAX_ROOT/update_status" 2>/dev/null || echo 0)"
""",
    "apt-cache": """#!/bin/bash
echo "mesa-vulkan-drivers | 22.3.6-1+deb12u1 | https://mirror.corp.example/debian bookworm/main amd64 Packages"
added=$RPD_JAX_ROOT/etc/apt/sources.list.d/rpd-jax-backports.sources
if [ -e "$RPD_JAX_ROOT/has_backports" ] && [ -e "$added" ]; then
  echo "mesa-vulkan-drivers | 25.0.7-2~bpo12+1 | https://mirror.corp.example/debian bookworm-backports/main amd64"
fi
""",
    "id": "#!/bin/bash\ncat $RPD_JAX_ROOT/user\n",
    "sudo": "#!/bin/bash\nexit 1\n",
    "dpkg": """#!/bin/bash
[ "$(printf '%s\\n' "$2" "$4" | sort -V | head -1)" = "$4" ]
""",
    "python": f"""#!/bin/bash
case "$1" in *can_render.py) [ -e "$RPD_JAX_ROOT/installed" ];; *) exec {sys.executable} "$@";; esac
""",
}


def set_up(root: Path, user: int = 0) -> subprocess.CompletedProcess:
    programs = root / "bin"
    programs.mkdir(exist_ok=True)
    for name, text in FAKES.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    (root / "user").write_text(f"{user}\n")
    environment = {"PATH": f"{programs}:/usr/bin:/bin", "RPD_JAX_ROOT": str(root)}
    command = ["bash", SETUP / "system_packages.sh", programs / "python"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def test_mesa_is_installed_from_the_mirror_s_backports(machine):
    root = machine(corp_sources=DEB822)
    (root / "has_backports").touch()
    outcome = set_up(root)
    assert outcome.returncode == 0, outcome.stderr
    source = (root / "etc/apt/sources.list.d/rpd-jax-backports.sources").read_text()
    assert source == CORP
    asked = (root / "asked").read_text().splitlines()
    assert asked[0] == "update" and asked[1].startswith(
        "install -y --no-install-recommends -t bookworm-backports mesa-"
    )
    assert (
        set_up(root).returncode == 0 and (root / "asked").read_text().splitlines() == asked
    )  # it renders: nothing to do


def test_a_mirror_without_backports_is_named_and_left_as_it_was(machine):
    root = machine(corp_sources=DEB822)
    (root / "update_status").write_text("100\n")
    outcome = set_up(root)
    assert outcome.returncode == 1
    assert outcome.stderr.splitlines()[-1] == (
        "Mesa >= 24.3 is not to be had from https://mirror.corp.example/debian: add a source that has it "
        "(bookworm-backports of a Debian mirror that this machine can reach) to /etc/apt/sources.list.d by hand, then "
        "run this command again."
    )
    assert not (root / "etc/apt/sources.list.d/rpd-jax-backports.sources").exists()
    assert (root / "asked").read_text().splitlines() == ["update"]


def test_without_root_the_commands_are_shown_and_make_the_same_source(machine):
    root = machine(corp_sources=DEB822)
    outcome = set_up(root, user=1000)
    assert outcome.returncode == 1 and not (root / "asked").exists()
    add, update, install = (line.strip() for line in outcome.stderr.splitlines()[1:])
    assert update == "apt-get update" and install.startswith("apt-get install -y")
    subprocess.run(["bash", "-c", add], check=True)
    source = (root / "etc/apt/sources.list.d/rpd-jax-backports.sources").read_text()
    assert source == CORP


def test_no_host_is_named():
    assert "http" not in (SETUP / "system_packages.sh").read_text() + (SETUP / "backports_source.py").read_text()
