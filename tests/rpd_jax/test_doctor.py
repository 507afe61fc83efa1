"""The doctor: what it says of this machine, and of broken ones (made by what each check is given)."""

import http.server
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rpd_jax import doctor

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_this_machine_can_train(tmp_path):
    command = [sys.executable, "-m", "rpd_jax.doctor", f"--workdir={tmp_path}", "--hub_seconds=0.1"]
    outcome = subprocess.run(
        [*command, "--render_seconds=500"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=580,
        env={**os.environ, "COLUMNS": "200"},  # a wide terminal, so that no cell is wrapped
    )
    assert outcome.returncode == 0, outcome.stdout
    assert "drew one frame of PushCube" in outcome.stdout
    assert outcome.stdout.strip().endswith("Training can start: make train")


def examine(**environment):
    """Runs the doctor, which has no time to draw."""
    command = [sys.executable, "-m", "rpd_jax.doctor", "--hub_seconds=0.1", "--render_seconds=1"]
    environment = {**os.environ, "COLUMNS": "200", **environment}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=environment)


def test_a_jax_that_cannot_be_imported_is_told(tmp_path):
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "__init__.py").write_text("raise ImportError('jaxlib is of another version')")
    broken = examine(PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert broken.returncode == 1 and broken.stderr == ""
    assert "jaxlib is of another version" in broken.stdout and "mend JAX, rendering" in broken.stdout


@pytest.mark.skipif(bool(shutil.which("nvidia-smi")), reason="there may be a GPU")
def test_a_gpu_that_nothing_is_installed_for_is_told(tmp_path):
    (tmp_path / "nvidia-smi").touch(mode=0o755)
    told = examine(PATH=f"{tmp_path}:{os.environ['PATH']}", COLUMNS="400").stdout
    assert told.count("It does not use the NVIDIA GPU there is: ") == 2  # JAX and PyTorch
    assert "--editable '.[cuda12]'" in told and f"setup/torch.sh {sys.executable} torch==" in told


def test_a_platform_that_is_not_here_is_told():
    told = examine(JAX_PLATFORMS="tpu_of_another_machine")
    assert told.returncode == 1 and told.stderr == ""
    assert "Leave JAX_PLATFORMS=tpu_of_another_machine out" in told.stdout and "shared memory" in told.stdout


@pytest.mark.skipif(bool(shutil.which("nvidia-smi")), reason="there may be a GPU")
def test_training_for_a_gpu_that_is_not_here_ends_in_one_sentence(tmp_path):
    command = [sys.executable, "train.py", "--config=configs/push_cube_sparse.py", f"--workdir={tmp_path / 'run'}"]
    environment = {**os.environ, "JAX_PLATFORMS": "cuda"}
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=environment)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert "error: JAX does not start (it finds no device; JAX_PLATFORMS='cuda'): leave" in ended.stderr
    assert not (tmp_path / "run").exists()


def test_rendering_that_hangs_crashes_or_fails_is_told(capfd):
    hangs = doctor.check_rendering(0.5, "import time; time.sleep(60)")
    assert (hangs.state, hangs.found) == (doctor.BAD, "no frame within 0 s")
    crashes = doctor.check_rendering(60.0, "import os; os.abort()")
    assert crashes.state == doctor.BAD and "status -6" in crashes.found
    fails = doctor.check_rendering(60.0, "raise RuntimeError('failed to find a rendering device')")
    assert fails.found == "RuntimeError: failed to find a rendering device" and "make setup" in fails.mend
    assert "Traceback" not in capfd.readouterr().err


def test_disk_and_shared_memory(tmp_path, monkeypatch):
    assert doctor.check_disk(str(tmp_path / "not" / "there" / "yet")).state == doctor.GOOD
    monkeypatch.setattr(doctor, "_DISK_GIB", 1e9)
    assert doctor.check_disk(str(tmp_path)).mend.startswith("Make room")
    assert doctor.check_shared_memory().state == doctor.GOOD
    assert doctor.check_shared_memory(-1).state == doctor.BAD


def test_hub(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    address = f"http://127.0.0.1:{server.server_port}/"
    threading.Thread(target=server.handle_request, daemon=True).start()
    assert doctor.check_hub(20.0, address).state == doctor.GOOD
    server.server_close()
    unreachable = doctor.check_hub(20.0, address)
    assert unreachable.state == doctor.NOTE and "FOLDER" in unreachable.mend
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert doctor.check_hub(20.0, address).found == "switched off by HF_HUB_OFFLINE"
