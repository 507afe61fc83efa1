"""The plan of the house holds: imports go down only, no circle of rooms, no JAX where a process must start fast.

A room is a folder or a file right below a package; lazy imports inside of functions count like all others.
"""

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("rpd_jax", "octo_teacher", "openvla_bridge")
# Top floor first; rooms on one floor do not see each other. The picture with words: docs/extending.md.
FLOORS = {
    "rpd_jax": (
        ("trainer", "gpu_check", "growth"),
        ("first_stages",),
        ("stages",),
        ("sweep",),
        ("report", "export", "serve"),
        ("evaluate",),
        ("profile", "doctor"),
        ("plan",),
        ("acting",),
        ("settings", "training_run"),
        ("learning",),
        ("envs",),
        ("student",),
        ("command",),
        ("run",),
        ("policy_server",),
        ("workers", "teachers", "robot_state"),
        ("tasks", "markdown", "action_convention", "arithmetic", "kernels", "cores"),
        ("registry",),
        ("errors",),
    ),
    "octo_teacher": (
        ("profile", "finetune"),
        ("finetuning",),
        ("teacher",),
        ("demos",),
        ("data",),
        ("octo_model",),
        ("checkpoints",),
        ("model", "action_statistics"),
        ("embedded",),
    ),
    "openvla_bridge": (
        ("profile",),
        ("stage_times",),
        ("client", "lerobot_client"),
        ("team", "uniforms"),
        ("replicas", "worker_process", "worker"),
        ("protocol", "ring"),
        ("model", "lerobot"),
        ("request", "checkpoint_files"),
        ("errors",),
    ),
}
# What a teacher's package may use of rpd_jax: the ground, and what it needs where it runs episodes.
FOR_TEACHERS = {"errors", "tasks", "teachers", "registry", "markdown", "workers", "run", "command", "envs", "acting"}
FOR_TEACHERS |= {"action_convention", "arithmetic", "cores", "kernels", "robot_state"}
# Files (or folders) from which no way leads to JAX; those of a bridge's worker do not reach rpd_jax either.
WITHOUT_JAX = ("rpd_jax/workers", "rpd_jax/command", "rpd_jax/envs/cpu_worker.py", "rpd_jax/envs/nursery.py")
WITHOUT_RPD_JAX = ("openvla_bridge/worker.py", "openvla_bridge/model", "openvla_bridge/lerobot")


def modules():
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def file_of(name):
    path = ROOT / Path(*name.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


@functools.cache
def imports_of(path):
    """Full names of all that a file imports, at its top or inside of functions; of the project, down to the module."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written with their full names"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if file_of(full) else node.module)
    return frozenset(found)


def room_of(name):
    package, _, rest = name.partition(".")
    return package, rest.split(".")[0]


def own_imports(path):
    """(room of the file, room that it imports) for each of the project's own rooms."""
    here = room_of(name_of(path))
    for name in imports_of(path):
        there = room_of(name)
        if there[0] in PACKAGES and there[1] and there != here:
            yield here, there


def test_every_room_has_its_floor():
    for package in PACKAGES:
        rooms = {room_of(name_of(path))[1] for path in (ROOT / package).rglob("*.py")} - {""}
        planned = [room for floor in FLOORS[package] for room in floor]
        assert sorted(planned) == sorted(set(planned))
        assert rooms == set(planned), package


@pytest.mark.parametrize("package", PACKAGES)
def test_arrows_go_down(package):
    floor = {room: number for number, rooms in enumerate(FLOORS[package]) for room in rooms}
    wrong = [
        f"{path.relative_to(ROOT)} imports {'.'.join(there)}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for here, there in own_imports(path)
        if there[0] == package and here[1] and floor[there[1]] <= floor[here[1]]
    ]
    assert wrong == []


def test_teachers_use_the_trainer_and_not_the_other_way_round():
    wrong = []
    for path in modules():
        for here, there in own_imports(path):
            allowed = here[0] == there[0] or (there[0] == "rpd_jax" and there[1] in FOR_TEACHERS)
            if not allowed:
                wrong.append(f"{path.relative_to(ROOT)} imports {'.'.join(there)}")
    assert wrong == []


def test_the_code_does_not_import_its_settings_or_its_tests():
    for path in modules():
        assert not {name.split(".")[0] for name in imports_of(path)} & {"configs", "tests", "conftest"}, path


def test_folders_hold_no_circle():
    arrows = {}
    for path in modules():
        for here, there in own_imports(path):
            arrows.setdefault(here, set()).add(there)
    done, on_the_way = set(), []

    def walk(room):
        assert room not in on_the_way, f"a circle: {[*on_the_way, room]}"
        if room not in done:
            on_the_way.append(room)
            for there in sorted(arrows.get(room, ())):
                walk(there)
            done.add(on_the_way.pop())

    for room in sorted(arrows):
        walk(room)


def reached_from(path, forbidden):
    """The first way, as a list of names, on which imports of the project lead from a file to a forbidden package."""
    ways, seen = [[path]], {path}
    while ways:
        way = ways.pop()
        for name in sorted(imports_of(way[-1])):
            if name.split(".")[0] in forbidden:
                return [*map(name_of, way), name]
            # With a module come its folders' __init__ files.
            parts = name.split(".")
            for count in range(1, len(parts) + 1):
                file = file_of(".".join(parts[:count])) if parts[0] in PACKAGES else None
                if file and file not in seen:
                    seen.add(file)
                    ways.append([*way, file])
    return None


def files_below(place):
    path = ROOT / place
    files = [path] if path.is_file() else sorted(path.rglob("*.py"))
    assert files, f"{place} is gone: mend this list"
    return files


@pytest.mark.parametrize("place", WITHOUT_JAX)
def test_no_way_leads_to_jax(place):
    for file in files_below(place):
        assert reached_from(file, {"jax", "jaxlib", "flax", "optax", "orbax"}) is None


@pytest.mark.parametrize("place", WITHOUT_RPD_JAX)
def test_a_bridge_s_worker_needs_neither_jax_nor_this_trainer(place):
    for file in files_below(place):
        assert reached_from(file, {"jax", "jaxlib", "flax", "optax", "orbax", "rpd_jax", "octo_teacher"}) is None


@pytest.mark.parametrize("room", sorted({path.parent for path in modules()}))
def test_every_folder_says_what_it_is_for(room):
    assert (ast.get_docstring(ast.parse((room / "__init__.py").read_text())) or "").strip()


def takes_markup(call, imported):
    """Whether a call makes something of rich's that reads its texts as markup; a column's own words are none."""
    options = {keyword.arg: keyword.value for keyword in call.keywords}
    if None in options or ("markup" in options and options["markup"].value is False):
        return False
    if call.func.id == "TextColumn":
        text = call.args[0]
        return not isinstance(text, ast.Constant) or "{" in text.value.replace("{task.completed}", "")
    return call.func.id == "RichConsole" or (call.func.id == "Console" and "rich.console" in imported)


def test_rich_takes_no_text_for_its_markup():
    """Paths, instructions and errors come from outside: brackets in them are neither dropped nor refused."""
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in modules()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and takes_markup(node, imports_of(path))
    ]
    assert wrong == []


def test_json_is_utf_8_whatever_the_locale():
    """Read as bytes, which also leaves out the mark that some editors begin a file with."""
    locale = re.compile(r"json\.loads\(.*\.read_text\(\)")
    assert [str(path.relative_to(ROOT)) for path in modules() if locale.search(path.read_text())] == [
        "rpd_jax/gpu_check.py"  # the last line of a part's own output
    ]
