"""PyTorch is installed with CUDA where there is a GPU, and without where there is none, as far as that is to be had."""

import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "setup" / "torch.sh"
# Stands for an environment's Python: its pip writes what it is asked.
PYTHON = """#!/bin/bash
case "$3" in
  config) cat "$MACHINE/config" ;;
  show) echo "Version: $(cat "$MACHINE/installed")" ;;
  *) echo "${@:3}" >> "$MACHINE/asked"; [[ "$*" != *"--index-url"* || ! -e "$MACHINE/offline" ]] ;;
esac
"""
FROM_PYPI = "install --quiet --disable-pip-version-check torch==2.13.0"
WITHOUT_CUDA = (
    "install --quiet --disable-pip-version-check --index-url https://download.pytorch.org/whl/cpu "
    "--retries 1 --timeout 30 torch==2.13.0"
)
REMOVAL = "uninstall --quiet --yes torch"


def set_up(
    machine: Path, has=(), installed="", config="", **variables
) -> tuple[list[str], subprocess.CompletedProcess]:
    """What pip was asked on a machine that has these files, and how it ended."""
    for name, text in {"python": PYTHON, "config": config, "installed": installed, **dict.fromkeys(has, "")}.items():
        (machine / name).write_text(text)
        (machine / name).chmod(0o755)
    environment = {"PATH": f"{machine}:/usr/bin:/bin", "MACHINE": str(machine), **variables}
    command = ["bash", SCRIPT, machine / "python", "torch==2.13.0"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    asked = machine / "asked"
    return asked.read_text().splitlines() if asked.exists() else [], run


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        ({}, [WITHOUT_CUDA]),
        ({"config": "global.extra-index-url='https://wheels.example'"}, [WITHOUT_CUDA]),
        ({"config": "global.index-url='https://mirror.example'"}, [FROM_PYPI]),
        ({"PIP_INDEX_URL": "https://mirror.example"}, [FROM_PYPI]),
        ({"TORCH_CUDA": "1"}, [FROM_PYPI]),
        ({"has": ["nvidia-smi"]}, [FROM_PYPI]),
        ({"has": ["nvidia-smi"], "installed": "2.13.0+cpu"}, [REMOVAL, FROM_PYPI]),
        ({"has": ["nvidia-smi"], "installed": "2.13.0+cu130"}, [FROM_PYPI]),
        ({"has": ["nvidia-smi"], "TORCH_CUDA": "0"}, [WITHOUT_CUDA]),
    ],
)
def test_the_gpu_or_the_user_decides_the_build(tmp_path, machine, expected):
    asked, run = set_up(tmp_path, **machine)
    assert (asked, run.returncode, run.stderr) == (expected, 0, "")


def test_where_the_build_without_cuda_is_not_to_be_had_pip_s_index_decides(tmp_path):
    asked, run = set_up(tmp_path, ["offline"], TORCH_CUDA="0")
    assert asked == [WITHOUT_CUDA, FROM_PYPI] and run.returncode == 0
    assert run.stderr.startswith(
        "torch==2.13.0 without CUDA could not be had from https://download.pytorch.org/whl/cpu:"
    )


def test_another_value_is_refused(tmp_path):
    asked, run = set_up(tmp_path, TORCH_CUDA="yes")
    assert asked == [] and run.returncode == 1 and run.stderr.startswith("TORCH_CUDA=yes is neither 1 ")
