"""The walks of docs/extending.md, done as it says: packages in folders of their own, known by their entry points."""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from rpd_jax import registry

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "extending.md").read_text()
# So that a walk takes seconds: a few frames, steps and episodes instead of a whole run.
SMALL_RUN = {
    "total_steps": 32,
    "env.num_envs": 2,
    "refine": "pixels",
    "env.workers": 1,
    "env.image_size": 16,
    "env.mesh_detail": 0.07,
    "student.observation": "state",
    "ppo.rollout_steps": 8,
    "ppo.num_minibatches": 2,
    "ppo.update_epochs": 1,
    "distill.replay": 32,
    "distill.replay_batch": 4,
    "distill.averaged": 1,
    "eval.every": 2,
    "eval.episodes": 2,
    "eval.final_episodes": 2,
    "eval.video_episodes": 1,
    "teacher.eval_episodes": 0,
}
SMALL_FINE_TUNING = {
    "steps": 2,
    "optimizer.warmup_steps": 1,
    "batch_size": 2,
    "held_out": 0.5,
    "validate_every": 2,
    "save_every": 2,
}
SMALLER = {
    "train.py": [f"--config.{name}={value}" for name, value in SMALL_RUN.items()],
    "rpd_jax.evaluate": ["--episodes=2", "--num_envs=2", "--image_size=32", "--mesh_detail=0.07"],
    "octo_teacher.demos": [],
    "finetune_octo.py": [f"--config.{name}={value}" for name, value in SMALL_FINE_TUNING.items()],
    "rpd_jax.envs.soak": ["--steps=60", "--num_envs=2", "--image_size=16", "--mesh_detail=0.07"],
}


class Walk:
    """A section of the page: its files in a folder, its entry points as an installation would leave them."""

    def __init__(self, heading, folder):
        section = re.split(r"^### ", PAGE.split(f"### {heading}\n")[1], flags=re.MULTILINE)[0]
        self.folder = folder
        for name, text in re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```', section, re.MULTILINE | re.DOTALL):
            (folder / name).write_text(text)
        project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
        metadata = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
        metadata.mkdir()
        header = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
        (metadata / "METADATA").write_text(header)
        lines = []
        for group, entries in project["entry-points"].items():
            lines += [f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())]
        (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")
        (commands,) = re.findall(r"^```sh\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
        self.commands = [shlex.split(line) for line in commands.replace("\\\n", " ").splitlines()]

    def run(self, number, *more):
        """Runs a command of the section, made smaller."""
        python, *words = self.commands[number]
        assert python == "python"
        program = words[1] if words[0] == "-m" else words[0]
        words = [self.placed(word) for word in words]
        if program.endswith(".py"):
            more = [f"--workdir={self.folder / 'run'}", *more]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(self.folder)])}
        return subprocess.run(
            [sys.executable, *words, *SMALLER[program], *more],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=500,
        )

    def placed(self, word):
        """A word of a command that names a file or folder of the walk's, with the whole path of it."""
        name, equals, value = word.rpartition("=")
        return f"{name}{equals}{self.folder / value}" if value and (self.folder / value).exists() else word


def assert_trained(outcome):
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.strip().splitlines()[-1].startswith("Done. Success: student")


@pytest.mark.slow
def test_a_task(tmp_path):
    walk = Walk("A task", tmp_path)
    soaked = walk.run(0)
    assert soaked.returncode == 0, soaked.stderr
    assert "NarrowPushCube-v1" in soaked.stdout
    assert_trained(walk.run(1, "--config.algorithm=ppo"))


@pytest.mark.slow
def test_a_teacher(tmp_path):
    walk = Walk("A teacher", tmp_path)
    measured = walk.run(0)
    assert measured.returncode == 0, measured.stderr
    assert "PushCube-v1: 0.0% of 2 episodes" in measured.stdout
    assert_trained(walk.run(1))
    refused = walk.run(1, "--config.teacher.checkpoint=loud", f"--workdir={tmp_path / 'other'}")
    assert refused.returncode == 2
    assert refused.stderr.strip().splitlines()[-1].endswith("is the noise: give a number.")


@pytest.mark.slow
def test_a_loss(tmp_path):
    walk = Walk("A loss", tmp_path)
    assert_trained(walk.run(0))
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert 0.0 < last["train/distill_loss"] < 1.0
    # Also where the package is not installed.
    report = [sys.executable, "-m", "rpd_jax.report", str(tmp_path / "run"), "-o", str(tmp_path / "report")]
    shown = subprocess.run(report, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert shown.returncode == 0, shown.stderr
    assert "rpd_huber" in (tmp_path / "report" / "report.html").read_text()


@pytest.mark.slow
def test_a_demo_format(tmp_path):
    walk = Walk("A demo format", tmp_path)
    (tmp_path / "demos").mkdir()
    rng = np.random.default_rng(0)
    for number, length in enumerate((5, 4, 0)):
        frames = rng.integers(0, 256, (length, 16, 16, 3), np.uint8)
        actions = rng.uniform(-1, 1, (length, 7)).astype(np.float32)
        np.savez(tmp_path / "demos" / f"{number}.npz", frames=frames, actions=actions)
    inspected = walk.run(0)
    assert inspected.returncode == 0, inspected.stderr
    assert "as recorded: pd_ee_delta_pose" in inspected.stdout
    assert "leaves out 1 of 3 episodes, which have no step (2.npz)" in " ".join(inspected.stdout.split())
    tuned = walk.run(1, f"--config.cache={tmp_path / 'cache'}")
    assert tuned.returncode == 0, tuned.stderr
    assert (tmp_path / "run" / "model" / "2").is_dir()


def test_every_walk_is_tested():
    headings = re.findall(r"^### (.+)$", PAGE, re.MULTILINE)
    tested = {name.removeprefix("test_").replace("_", " ").capitalize() for name in globals() if "test_a_" in name}
    assert set(headings) == tested


def test_what_nobody_offers_or_cannot_be_loaded_is_one_sentence(tmp_path):
    walk = Walk("A teacher", tmp_path)
    (tmp_path / "still_teacher.py").write_text("import a_package_that_is_not_there\n")
    broken = walk.run(1)
    assert broken.returncode == 2
    sentence = broken.stderr.strip().splitlines()[-1]
    assert "'still' of rpd_jax.teachers cannot be loaded from still-teacher" in sentence
    assert "a_package_that_is_not_there" in sentence and "Traceback" not in broken.stderr
    unknown = walk.run(1, "--config.teacher.name=stil")
    assert unknown.returncode == 2
    known = sorted({*registry.names("rpd_jax.teachers"), "still"})
    assert f"teacher.name='stil' is not one of {', '.join(known)}: did you mean 'still'?" in unknown.stderr


def test_what_an_older_installation_left_hides_nothing(tmp_path):
    """An .egg-info of before there were entry points, in the folder where a command is started."""
    (tmp_path / "package").mkdir()
    Walk("A teacher", tmp_path / "package")
    left = tmp_path / "still_teacher.egg-info"
    left.mkdir()
    (left / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: still-teacher\nVersion: 0.0\n")
    script = "from rpd_jax import registry; print(registry.names('rpd_jax.teachers'))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (tmp_path, tmp_path / "package", ROOT)))}
    told = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=100)
    assert told.stdout.strip() == str(tuple(sorted({*registry.names("rpd_jax.teachers"), "still"}))), told.stderr
