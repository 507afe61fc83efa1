"""What is imported is declared, what is declared is imported, and a missing extra is named in one sentence."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import metadata, packages_distributions
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from rpd_jax.command.extras import EXTRAS

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SUPPORTED = SpecifierSet(PROJECT["requires-python"])
PACKAGES = ("rpd_jax", "octo_teacher", "openvla_bridge", "configs")
OURS = {*PACKAGES, "tests", "train", "finetune_octo"}
OF_TESTS = {path.stem for path in (ROOT / "tests").rglob("*.py")}
# Declared, and not imported by us:
UNSEEN = {
    "filelock": "JAX locks with it the programs that it keeps",
    "mkdocs-material": "the theme that mkdocs.yml names",
    "pytest-timeout": "a plugin",
    "pytest-xdist": "a plugin",
    "ruff": "a command",
    "rpd-jax": "the project's own extras",
}
# Imported in environments of their own: by tests/original_octo, which says how to make it, and after `make openpi-env`.
ELSEWHERE = {"octo", "openpi_client", "openpi_server"}
# What openvla_bridge/lerobot imports is in an environment of its own too (`make lerobot-env`, `make lerobot06-env`).
OF_LEROBOT = {"lerobot", "torchvision"}


def normal(requirement: str) -> str:
    """Name of a distribution as PyPI compares names."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def modules_of(*places: str) -> Iterator[tuple[str, Path]]:
    """Top-level modules of other people that files import, lazily or not."""
    for place in places:
        path = ROOT / place
        files = [path] if path.is_file() else sorted(path.rglob("*.py"))
        for file in (file for file in files if ROOT / "tests" / "data" not in file.parents):
            own = OF_TESTS if ROOT / "tests" in file.parents else set()
            for node in ast.walk(ast.parse(file.read_text())):
                names = []
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and node.level == 0:
                    names = [node.module]
                for name in (name.split(".")[0] for name in names):
                    if name not in OURS | own and name not in sys.stdlib_module_names:
                        yield name, file


DISTRIBUTIONS = packages_distributions()  # reads all that is installed: seconds


def distributions_of(module: str) -> set[str]:
    if module == "google":  # a namespace of many
        return {"protobuf"}
    installed = DISTRIBUTIONS.get(module)
    return {normal(name) for name in installed} if installed else {normal(module)}


MANDATORY = {normal(requirement) for requirement in PROJECT["dependencies"]}
EXTRA = {name: {normal(one) for one in ones} for name, ones in PROJECT["optional-dependencies"].items()}


def test_what_the_packages_import_is_declared():
    for module, file in modules_of(*PACKAGES, "train.py", "finetune_octo.py"):
        needed, extra = distributions_of(module), EXTRAS.get(module)
        elsewhere = module in OF_LEROBOT and ROOT / "openvla_bridge" / "lerobot" in file.parents
        assert elsewhere or needed & MANDATORY or (extra and needed & EXTRA[extra]), f"{file} imports {module}"


def test_what_docs_and_tests_import_is_declared():
    declared = MANDATORY | set().union(*EXTRA.values())
    for module, file in modules_of("docs", "tests"):
        assert distributions_of(module) & declared or module in ELSEWHERE | OF_LEROBOT, f"{file} imports {module}"


def test_what_is_declared_is_imported():
    places = (*PACKAGES, "train.py", "finetune_octo.py", "docs", "tests")
    imported = set().union(*(distributions_of(module) for module in {module for module, _ in modules_of(*places)}))
    assert imported | set(UNSEEN) >= MANDATORY
    for name, wanted in EXTRA.items():
        assert wanted - {"jax"} <= imported | set(UNSEEN), name
    assert set(UNSEEN) <= MANDATORY.union(*EXTRA.values()), "an exception for what is no longer declared"


def test_tests_have_all_extras_but_those_of_a_gpu_and_of_an_account():
    (own,) = (one for one in PROJECT["optional-dependencies"]["test"] if one.startswith("rpd-jax["))
    assert set(re.search(r"\[(.*)\]", own)[1].split(",")) == set(EXTRA) - {"test", "cuda12", "cuda13", "wandb"}


def test_the_workers_environment_asks_for_the_same_versions():
    declared = {*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["openvla"]}
    lines = (ROOT / "openvla_bridge" / "requirements.txt").read_text().splitlines()
    wanted = {line for line in lines if line and not line.startswith("#")}
    assert wanted <= declared
    assert set(PROJECT["optional-dependencies"]["openvla"]) <= wanted


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13"])
def test_make_and_pip_refuse_the_same_pythons(version, tmp_path):
    python = tmp_path / "python"
    python.write_text(
        f"#!{sys.executable}\nimport sys\nsys.version_info = ({version.replace('.', ', ')}, 9, 'final', 0)\n"
        "if sys.argv[1] != '-c':\n    sys.exit('began')\nexec(sys.argv[2])\n"
    )
    python.chmod(0o755)
    command = ["make", f"PYTHON={python}", f"VENV={tmp_path / 'venv'}", "setup"]
    outcome = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert outcome.returncode == 2
    assert ("began" in outcome.stderr) == (f"{version}.9" in SUPPORTED)
    assert ("Python 3.11 or 3.12 is needed" in outcome.stderr) == (f"{version}.9" not in SUPPORTED)


def test_pinned_versions_are_for_the_oldest_python_too():
    """With one that is not, pip compares versions of all others for ever: Debian 12 has Python 3.11.2."""
    (oldest,) = (bound.version for bound in SUPPORTED if bound.operator == ">=")
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert len(pins) > 100
    for name, version in (pin.split("==") for pin in pins):
        told = metadata(name)
        assert told["Version"].split("+")[0] == version, f"{name} is installed in another version"
        assert oldest in SpecifierSet(told.get("Requires-Python") or ""), f"{name}=={version} needs another Python"


@pytest.mark.parametrize("name", ["requirements.txt", "requirements_06.txt"])
def test_lerobot_s_environments_have_what_their_workers_import(name):
    text = (ROOT / "openvla_bridge" / "lerobot" / name).read_text()
    (apart,) = re.findall(r"^# without its own requirements: (.*)$", text, re.MULTILINE)
    declared = {normal(line) for line in text.splitlines() if line and not line.startswith("#")}
    assert {normal(one) for one in apart.split()} == OF_LEROBOT
    imported = {module for module, _ in modules_of("openvla_bridge/lerobot", "tests/openvla_bridge/lerobot_peer.py")}
    assert set(map(normal, imported)) - OF_LEROBOT - {"torch"} <= declared  # torch is installed first


WITHOUT = """
import runpy, sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
sys.argv = {argv!r}
sys.path.insert(0, {root!r})
"""


def without(names: set[str], code: str, argv: list[str]) -> subprocess.CompletedProcess:
    """Runs code in a process in which modules cannot be imported."""
    program = WITHOUT.format(names=names, argv=argv, root=str(ROOT)) + code
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_training_imports_no_extra_and_leaves_the_simulator_to_its_workers():
    """Orbax and ManiSkill bring some extras along; what is ours must not ask for them. Torch alone takes seconds."""
    modules = ("train", "rpd_jax.trainer", "rpd_jax.evaluate.table", "rpd_jax.envs.cpu_env", "octo_teacher.teacher")
    modules += ("openvla_bridge.client", "configs.default")
    outcome = without(set(EXTRAS) - {"google"}, f"import {', '.join(modules)}; print(*sys.modules)", ["train.py"])
    assert outcome.returncode == 0, outcome.stderr
    assert not set(outcome.stdout.split()) & {"torch", "mani_skill", "scipy.stats", "matplotlib", "transformers"}


@pytest.mark.parametrize(
    ("extra", "module", "argv"),
    [
        ("demos", "octo_teacher.demos", ["inspect", "demos.h5"]),
        ("demos", "octo_teacher.demos", ["record", "--task=PushCube-v1", "--episodes=1", "-o", "nowhere/demos.h5"]),
        ("demos", "finetune_octo", ["--config=configs/finetune_octo.py", "--workdir=nowhere"]),
        ("groot", "rpd_jax.evaluate", ["--config.teacher.name=groot", "--config.teacher.gripper=signed"]),
        ("openvla", "openvla_bridge.profile", ["--architecture=tiny"]),
        ("report", "rpd_jax.report", ["nowhere"]),
        ("sweep", "rpd_jax.sweep", ["configs/paper/fig3.py", "--dry_run"]),
    ],
)
def test_a_command_whose_extra_is_missing_says_so(extra, module, argv):
    missing = {name for name, of in EXTRAS.items() if of == extra}
    outcome = without(missing, f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)", [module, *argv])
    assert outcome.returncode == 2, outcome.stderr
    (line,) = (line for line in outcome.stderr.splitlines() if line.startswith("error: "))
    assert re.fullmatch(
        rf"error: \w+ is not installed, which this command needs: pip install 'rpd-jax\[{extra}\]'\.", line
    )
    assert "Traceback" not in outcome.stderr


@pytest.mark.parametrize("module", ["openvla_bridge.profile", "octo_teacher.demos", "rpd_jax.report"])
def test_help_needs_no_extra(module):
    outcome = without(
        set(EXTRAS) - {"google"},
        f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)",
        [module, "--help"],
    )
    assert outcome.returncode == 0 and "--" in outcome.stdout, outcome.stderr


def test_commands_start_light():
    """Parsing a command line needs no JAX, no torch and none of the other big ones."""
    code = "import rpd_jax.command.line, sys; print(*sys.modules)"
    loaded = set(subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout.split())
    assert "absl.app" in loaded
    assert not loaded & {"jax", "torch", "numpy", "flax", "scipy", "matplotlib", "rich", "mani_skill", "orbax", "h5py"}
