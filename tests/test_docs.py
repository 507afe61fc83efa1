"""The documentation builds without a warning, and what it names exists."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from configs import default, finetune_octo
from rpd_jax.report import refinement
from rpd_jax.report.runs import find_runs, group

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_site_builds_strictly_and_needs_no_network(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", f"--site-dir={tmp_path}"]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stdout + built.stderr
    for name in ("index", "method", "settings", "errors", "results", "sweeps", "troubleshooting", "extending"):
        page = (tmp_path / f"{name}.html").read_text()
        loaded = re.findall(r"<(?:script|img)[^>]+src=\"([^\"]+)\"|<link[^>]+stylesheet[^>]+href=\"([^\"]+)\"", page)
        assert loaded and not [match for match in loaded if "".join(match).startswith(("http", "//"))], name


def test_every_setting_is_in_the_reference(hooks):
    def paths(config, prefix=""):
        for name, value in config.items():
            if isinstance(value, ConfigDict):
                yield from paths(value, f"{prefix}{name}.")
            else:
                yield prefix + name

    config = default.get_config()
    del config.profiles
    page = hooks.settings_page()
    assert set(re.findall(r"^\| `([\w.]+)` \|", page, re.MULTILINE)) >= set(paths(config))
    assert "| `ppo.gae_lambda` |  | `0.9` |" in page
    assert re.search(r"^\| `ppo.gamma` \|.*\| at least 0 and at most 1 \|$", page, re.MULTILINE)
    # Meaning, open, paper, cpu.
    assert "| `total_steps` | environment steps, all environments together |  | `30000000` | `32768` |" in page


# Sentences that are put together at run time: a worker's own, or one that another part passes on.
PASSED_ON = {
    "policies.py": 1,
    "profile.py": 1,
    "growth.py": 1,
    "relations.py": 1,
    "settings.py": 1,
    "inspect.py": 1,
    "cpu_env.py": 3,
    "team.py": 1,
    "worker_process.py": 1,
}


def test_every_error_message_is_in_the_troubleshooting_reference(hooks):
    page = hooks.errors_page()
    files = [path for package in hooks.PACKAGES for path in (ROOT / package).rglob("*.py")]
    messages = {path: list(hooks.error_messages(path)) for path in files}
    raised = sum(len(re.findall(r"raise (?:\w+\.)?(?:UserError|WorkerError)\(", path.read_text())) for path in files)
    assert sum(map(len, messages.values())) >= raised > 100
    assert "- total\\_steps=… is less than one iteration of … frames" in page
    for path, found in messages.items():
        assert found.count(None) <= PASSED_ON.get(path.name, 0), path
        assert all(f"- {message}\n" in page for message in found if message), path


def flat(config):
    """The names of all fields."""
    return flatten_dict(config.to_dict(preserve_field_references=False), sep=".")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_exists(page):
    text = page.read_text()
    for module in re.findall(r"python -m ((?:rpd_jax|octo_teacher|openvla_bridge)[\w.]*)", text):
        assert importlib.util.find_spec(module.rstrip(".")) is not None, module
    for path in re.findall(r"(?:python |`|--config=)((?:tests|configs|rpd_jax|octo_teacher)/[\w/]+\.py)", text):
        assert (ROOT / path).exists(), path
    training, finetuning = flat(default.get_config()), flat(finetune_octo.get_config())
    for line in re.findall(r".*--config\..*", text):
        known = finetuning if "finetune_octo.py" in line else training
        for field in re.findall(r"--config\.([a-z_.]+[a-z_])(?==)", line):
            # A command in several lines names its program in the first.
            assert field in known or (field in finetuning and "python" not in line), field


def test_tables_of_refinement_are_those_of_the_runs_that_are_kept():
    panels = group(find_runs([ROOT / "docs" / "refinement"]))
    added, left = refinement.added(panels), refinement.left(panels)
    assert len(added) >= 9 and len(left) >= len(added)
    for page, rows in (("README.md", added), ("docs/miniatures.md", [*added, *left])):
        lines = (ROOT / page).read_text().splitlines()
        assert [row for row in rows if f"| {' | '.join(row)} |" not in lines] == []
