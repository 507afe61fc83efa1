"""Prints an apt source for a release's backports, on the mirror that this machine has the release itself from.

    python setup/backports_source.py bookworm [ROOT]

Reads ROOT/etc/apt as apt does: sources.list and sources.list.d/*.list (a line each) and *.sources (deb822). Prints
nothing if the backports are there already. Ends with status 1 and one sentence if no source has the release.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

# What the mirror's entry says on keys and trust holds for its backports too.
_KEPT = {"signed-by": "Signed-By", "trusted": "Trusted", "arch": "Architectures", "architectures": "Architectures"}


def entries(root: Path) -> Iterator[dict[str, str]]:
    """Each entry of the machine's sources, field names in lower case; continuation lines stay in their field."""
    apt = root / "etc" / "apt"
    for path in (apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))):
        if not path.is_file():
            continue
        text = path.read_text(errors="replace")
        if path.suffix == ".list":
            yield from _lines(text)
        elif path.suffix == ".sources":
            yield from _stanzas(text)


def backports(root: Path, release: str) -> str | None:
    """The source of `release`'s backports, "" if there is one already, None if no source has the release."""
    wanted = f"{release}-backports"
    found = None
    for entry in entries(root):
        suites = [suite.rstrip("/") for suite in entry.get("suites", "").split()]
        usable = "deb" in entry.get("types", "").split() and "main" in entry.get("components", "").split()
        if not usable or entry.get("enabled", "yes").lower() in ("no", "false", "without", "off", "disable"):
            continue
        if wanted in suites:
            return ""
        uris = [uri for uri in entry.get("uris", "").split() if not uri.startswith("cdrom:")]
        if release in suites and uris and found is None:
            kept = [f"{name}: {entry[key]}".replace(": \n", ":\n") for key, name in _KEPT.items() if key in entry]
            found = [f"Types: deb\nURIs: {' '.join(uris)}\nSuites: {wanted}\nComponents: main", *kept]
    return None if found is None else "\n".join(found) + "\n"


def _lines(text: str) -> Iterator[dict[str, str]]:
    for line in text.splitlines():
        match = re.match(r"\s*(deb(?:-src)?)\s+(?:\[([^\]]*)\]\s*)?(\S+)\s+(\S+)((?:\s+[^\s#]+)*)", line)
        if match:
            kind, options, uri, suite, components = match.groups()
            given = dict(re.findall(r"(\S+?)=(\S+)", options or ""))
            given = {name.lower(): value.replace(",", " ") for name, value in given.items()}
            yield given | {"types": kind, "uris": uri, "suites": suite, "components": components}


def _stanzas(text: str) -> Iterator[dict[str, str]]:
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for stanza in re.split(r"\n\s*\n", "\n".join(lines)):
        fields = re.findall(r"^([\w-]+):[ \t]*(.*(?:\n[ \t].*)*)", stanza, re.MULTILINE)
        if fields:
            yield {name.lower(): value.rstrip() for name, value in fields}


def main() -> None:
    release, root = sys.argv[1], Path(sys.argv[2] if len(sys.argv) > 2 else "/")
    source = backports(root, release)
    if source is None:
        sys.exit(f"No source in {root / 'etc/apt'} has {release} main, so its mirror is not known.")
    print(source, end="")


if __name__ == "__main__":
    main()
