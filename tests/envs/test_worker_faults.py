import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import psutil
import pytest

from rpd_jax.envs.cpu_env import CpuVectorEnv, WorkerError
from rpd_jax.errors import UserError

TASK = {"env_id": "PushCube-v1", "image_size": 8, "reward_mode": "sparse", "mesh_detail": 0.07, "camera": {}}


def _workers(env) -> list[psutil.Process]:
    return [psutil.Process(pid) for pid in env.worker_pids]


def _gone(processes, seconds=10.0) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return not alive


def _shared_memory() -> set[str]:
    return {path.name for path in pathlib.Path("/dev/shm").iterdir()} if os.path.isdir("/dev/shm") else set()


def test_a_killed_worker_is_named_and_the_others_end():
    with CpuVectorEnv(TASK, 3, max_episode_steps=50, workers=2) as env:
        env.reset(0)
        workers = _workers(env)
        workers[0].send_signal(signal.SIGKILL)
        with pytest.raises(WorkerError, match=r"Environment worker 0 \(environments 0-1\) was killed by SIGKILL"):
            env.step(np.zeros((3, 7), np.float32))
        assert _gone(workers)
        with pytest.raises(UserError, match="closed"):
            env.reset(0)


def test_a_hanging_worker_is_named_after_the_timeout_and_ended():
    with CpuVectorEnv(TASK, 1, max_episode_steps=50) as env:
        workers = _workers(env)
        env.step_timeout = 1.0
        workers[0].send_signal(signal.SIGSTOP)
        with pytest.raises(
            WorkerError, match=r"worker 0 \(environment 0\) did not answer within 1 s.*env.step_timeout"
        ):
            env.reset(0)
        assert _gone(workers)


def test_an_exception_is_told_with_its_environment_and_the_end_of_its_traceback():
    with pytest.raises(WorkerError) as raised:
        CpuVectorEnv({**TASK, "colour": "red"}, 2, max_episode_steps=50, workers=1)
    first, *trace = str(raised.value).splitlines()
    assert first.startswith(
        "Environment worker 0 (environments 0-1) raised TypeError in environment 0: make_task_env()"
    )
    assert "cpu_worker.py" in "".join(trace) and trace[-1].startswith("TypeError")


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "sys.exit()"])
def test_no_end_of_the_parent_leaves_anything_behind(end):
    script = f"""
        import os, signal, sys
        from rpd_jax.envs.cpu_env import CpuVectorEnv
        env = CpuVectorEnv({TASK!r}, 1, max_episode_steps=50, workers=1)
        env.reset(0)
        print(*env.worker_pids, flush=True)
        env.step_async([[0.0] * 7])
        {end}
    """
    before = _shared_memory()
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=300)
    pid = int(run.stdout)
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the worker outlived its parent"
        time.sleep(0.1)
    assert _shared_memory() <= before


def test_workers_do_not_import_jax():
    script = """
        import sys
        import rpd_jax.envs.camera_task, rpd_jax.envs.cpu_worker, rpd_jax.envs.shared_arrays
        assert not {"jax", "jaxlib", "flax"} & set(sys.modules), "imports JAX"
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=300)


def test_a_machine_without_vulkan_is_told_what_to_install():
    script = f"""
        from rpd_jax.envs.cpu_env import CpuVectorEnv
        from rpd_jax.errors import UserError
        try:
            CpuVectorEnv({TASK!r}, 1, max_episode_steps=50)
        except UserError as error:
            print(error)
    """
    nowhere = {"VK_DRIVER_FILES": "/nowhere.json", "VK_ICD_FILENAMES": "/nowhere.json"}
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**os.environ, **nowhere},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert "No usable Vulkan device" in run.stdout and "Mesa >= 24.3" in run.stdout and "`make setup`" in run.stdout
