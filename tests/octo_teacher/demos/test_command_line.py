"""`python -m octo_teacher.demos`: every spelling of a command line, and what is wrong with one."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import understood

from octo_teacher.demos.record import Recording
from octo_teacher.demos.render import Rendering
from rpd_jax.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
PAGES = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("configs/*.py")]
PAGES += ROOT.glob("octo_teacher/pretrained/*/README.md")


def documented():
    """The command lines of the documentation, `...` and shell variables aside."""
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        for line in re.findall(r"python -m octo_teacher\.demos (\w+ [^`\n]*)", text):
            line = re.sub(r"\$(name|\{name\})", "PushCube", line)
            yield shlex.split(re.sub(r"\$\w+", "3", line).split(";")[0].split(" > ")[0])


def test_the_documented_command_lines_are_understood():
    lines = [line for line in documented() if line[1].startswith("-") or Path(line[1]).suffix]
    assert len(lines) >= 4 and {line[0] for line in lines} >= {"record", "inspect"}
    for words in lines:
        command, _, options = understood(*words)
        assert command == words[0]
        if command == "record":
            assert options["task"] == "PushCube-v1" and options["output"].endswith(".h5") and options["noise"] > 0
            assert options["mesh_detail"] == 0.15


OLD = ["--image-size", "64", "--mesh-detail", "0.15", "--keep-failures", "--workers", "2", "-o", "demos.h5"]
NEW = ["--image_size=64", "--mesh_detail=0.15", "--keep_failures", "--workers=2", "--output=demos.h5"]


@pytest.mark.parametrize("common", [OLD, NEW], ids=["old", "new"])
def test_old_and_new_spellings_mean_the_same(common):
    drawing = {"image_size": 64, "mesh_detail": 0.15, "keep_failures": True, "workers": 2, "output": "demos.h5"}
    wanted = {"task": "PushCube-v1", "episodes": 40, "seed": 7, "noise": 0.6}
    words = ["record", "--task", "PushCube-v1", "--episodes", "40", "--seed", "7", "--noise", "0.6"]
    assert understood(*words, *common) == ("record", [], drawing | wanted)
    offsets = {"eye_offset": [0.0, -0.2, 0.1], "target_offset": [0.0, 0.0, 0.0], "fov": 0.9, "episodes": None}
    for spelled in (
        ["--eye-offset", "0.0", "-0.2", "0.1", "--fov", "0.9"],
        ["--eye_offset=0.0,-0.2,0.1", "--fov=0.9"],
        ["--eye_offset=(0.0, -0.2, 0.1)", "--fov=0.9"],
    ):
        assert understood("render", "in.h5", *spelled, *common) == ("render", [Path("in.h5")], drawing | offsets)
    found = understood("inspect", "demos/a.h5", "--camera", "front", "--plot", "a.png")
    assert found == ("inspect", [Path("demos/a.h5")], {"camera": "front", "plot": "a.png"})


def test_what_is_left_out_is_what_recording_and_rendering_take_by_default():
    _, _, options = understood("record", "--task=PushCube-v1", "--episodes=1", "-o", "demos.h5")
    assert Recording(**options) == Recording("PushCube-v1", 1, "demos.h5")
    _, (file,), options = understood("render", "in.h5", "-o", "demos.h5")
    offsets = {name: tuple(options.pop(name)) for name in ("eye_offset", "target_offset")}
    assert Rendering(file, **offsets, **options) == Rendering(Path("in.h5"), "demos.h5")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["recrd"], "'recrd' is not a command: the commands are record, render, inspect."),
        (["record", "--episodes=3", "-o", "a.h5"], "--task is missing, which record needs"),
        (["record", "--task=PushCube-v1", "-o", "a.h5"], "--episodes is missing, which record needs"),
        (["render", "in.h5"], "--output is missing, which render needs"),
        (["render", "-o", "a.h5"], r"render takes an h5 file \(none was given\)"),
        (["inspect", "a b.h5", "c.h5"], r"inspect takes an h5 file, or a folder \('a b.h5' c.h5 was given\)"),
        (["record", "x.h5", "--task=PushCube-v1"], "record takes no file: the one to write is --output"),
        (["inspect", "a.h5", "--episodes=3"], "--episodes has no effect on inspect: leave it out."),
        (["render", "in.h5", "-o", "a.h5", "--noise", "0.1"], "--noise has no effect on render: leave it out."),
    ],
)
def test_mistakes_are_named(words, sentence):
    with pytest.raises(UserError, match=sentence):
        understood(*words)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "The command (record, render or inspect) is missing: see --help."),
        (["record", "--epsodes=3"], "there is no flag --epsodes: did you mean --episodes?"),
        (["render", "in.h5", "--eye-offset", "0.2", "0", "-o", "a.h5"], "3 numbers, separated by commas"),
        (["inspect", "nowhere.h5"], "nowhere.json is missing"),
    ],
)
def test_the_command_ends_with_one_sentence(words, sentence):
    command = [sys.executable, "-m", "octo_teacher.demos", *words]
    outcome = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert outcome.returncode == 2
    (line,) = outcome.stderr.splitlines()
    assert line.startswith("error: ") and sentence in line, line
