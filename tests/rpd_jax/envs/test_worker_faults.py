import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import psutil
import pytest

from rpd_jax.acting.episodes import run_episodes
from rpd_jax.envs.cpu_env import CpuVectorEnv, WorkerError
from rpd_jax.errors import UserError

TASK = {"env_id": "PushCube-v1", "image_size": 8, "reward_mode": "sparse", "mesh_detail": 0.07, "camera": {}}


def _workers(env) -> list[psutil.Process]:
    return [psutil.Process(pid) for pid in env.worker_pids]


def _gone(processes, seconds=10.0) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return not alive


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


def test_a_simulator_that_cannot_be_imported_is_told_at_once(tmp_path):
    """Not after an attempt for each worker, one after the other: on a machine of many cores that took minutes."""
    broken = tmp_path / "sapien"
    broken.mkdir()
    attempts = tmp_path / "attempts"
    told = f"print(sys.orig_argv, file=open({str(attempts)!r}, 'a'))"
    (broken / "__init__.py").write_text(f"import sys\n{told}\nraise ImportError('no such library')")
    script = f"""
        from rpd_jax.envs.cpu_env import CpuVectorEnv
        CpuVectorEnv({TASK!r}, 4, max_episode_steps=50, workers=4)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "WorkerError" in done.stderr and "no such library" in done.stderr
    assert attempts.read_text().count("rpd_jax.envs.nursery") == 1


def test_a_hanging_worker_is_named_after_the_timeout_and_ended():
    with CpuVectorEnv(TASK, 1, max_episode_steps=50) as env:
        workers = _workers(env)
        env.step_timeout = env.start_timeout = 1.0  # whatever the start may take, this is none
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


def test_a_failed_worker_is_replaced_if_that_is_wanted(caplog):
    """Its environments begin their episodes again, the other's go on, and nothing is earned or ended."""
    task = {**TASK, "max_episode_steps": 3}  # each environment's second episode begins at the third step
    actions = np.full((3, 7), 0.3, np.float32)
    with CpuVectorEnv(task, 3, max_episode_steps=3, workers=2, restart_workers=True) as env:
        env.reset(0)
        second_episode = [env.step(actions) for _ in range(3)][-1]
        assert second_episode.truncated.all()
        env.step(actions)
        other_worker = _workers(env)[1]
        _workers(env)[0].send_signal(signal.SIGKILL)
        step = env.step(actions)
        assert step.valid.tolist() == [False, False, True]
        assert "Environment worker 0 (environments 0-1) was killed by SIGKILL" in caplog.text
        np.testing.assert_array_equal(step.rgb[:2], second_episode.rgb[:2])
        np.testing.assert_array_equal(step.state[:2], second_episode.state[:2])
        assert not (step.reward[:2].any() or step.terminated.any() or step.truncated.any())
        assert step.episode.length[2] == 2
        assert _workers(env)[1] == other_worker

        step = env.step(actions)
        assert step.valid.all() and step.truncated.tolist() == [False, False, True]
        assert step.episode.length.tolist() == [1, 1, 3]

        other_worker.send_signal(signal.SIGKILL)
        np.testing.assert_array_equal(env.reset(0)[:2], env.reset(0)[:2])
        assert "Environment worker 1 (environment 2) was killed by SIGKILL" in caplog.text
        workers = _workers(env)
        env.step_timeout = 1e-4
        # Worker 1 fails for the second time without having done a step in between.
        with pytest.raises(
            WorkerError, match=r"worker 1 .* did not answer within 0.0001 s(.|\n)*It was here:(.|\n)*File"
        ):
            env.step(actions)
        assert _gone(workers)


def test_evaluated_episodes_are_the_same_with_and_without_a_replaced_worker():
    task = {**TASK, "reward_mode": "normalized_dense", "max_episode_steps": 3}
    results = []
    with CpuVectorEnv(task, 2, max_episode_steps=3, workers=2, restart_workers=True) as env:
        for killed_at in (None, 5):
            calls = []

            def kill_a_worker(calls=calls, killed_at=killed_at):
                calls.append(None)
                if len(calls) == killed_at:
                    _workers(env)[1].send_signal(signal.SIGKILL)

            episodes = run_episodes(env, lambda *_: np.zeros((2, 7)), 6, 0, 0, kill_a_worker)
            results.append((sorted(episodes.episode_return), len(calls)))
    assert results[0][0] == results[1][0] and len(set(results[0][0])) == 6
    assert results[1][1] == results[0][1] + 2  # the lost step and the one before it


@pytest.mark.parametrize(("survived", "finishes"), [(2, False), (4, True)])
def test_an_episode_that_no_worker_survives_ends_the_evaluation(survived, finishes):
    """Episodes of three steps, and workers that fail after two steps or four: those lose one of every two."""
    failures = []

    def kill_who_has_done_so_many_steps():
        assert len(failures) < 8, "it goes on for ever"
        if env._workers[1].steps == survived:
            failures.append(env._workers[1].process.pid)
            _workers(env)[1].send_signal(signal.SIGKILL)

    task = {**TASK, "max_episode_steps": 3}
    with CpuVectorEnv(task, 2, max_episode_steps=3, workers=2, restart_workers=True) as env:
        arguments = (env, lambda *_: np.zeros((2, 7)), 12, 0, 0, kill_who_has_done_so_many_steps)
        if finishes:
            assert len(run_episodes(*arguments).success) == 12
        else:
            with pytest.raises(UserError, match="Environment 1 lost the same episode 5 times, since its worker failed"):
                run_episodes(*arguments)
    assert len(failures) == 5


def test_a_worker_that_never_gives_the_gil_back_ends_with_its_parent():
    script = """
        import ctypes, sys
        from rpd_jax.envs.cpu_worker import die_with_parent
        die_with_parent(int(sys.argv[1]))
        print("hanging", flush=True)
        ctypes.PyDLL(None).sleep(600)
    """
    read_end, lifeline = os.pipe()
    command = [sys.executable, "-c", textwrap.dedent(script), str(read_end)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, pass_fds=[read_end]) as process:
        os.close(read_end)
        process.stdout.readline()
        os.close(lifeline)
        assert _gone([psutil.Process(process.pid)])


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "sys.exit()"])
def test_no_end_of_the_parent_leaves_anything_behind(end, assert_leaves_nothing):
    script = f"""
        from rpd_jax.envs.cpu_env import CpuVectorEnv
        env = CpuVectorEnv({TASK!r}, 1, max_episode_steps=50, workers=1)
        env.reset(0)
        workers = env.worker_pids
    """
    assert_leaves_nothing(script, f"env.step_async([[0.0] * 7])\n{end}", "rpd_jax.envs", seconds=10)


def test_workers_do_not_import_jax():
    script = """
        import sys
        import rpd_jax.envs.camera_task, rpd_jax.envs.nursery, rpd_jax.workers.memory
        assert not {"jax", "jaxlib", "flax"} & set(sys.modules), "imports JAX"
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=300)


def test_a_machine_without_vulkan_is_told_what_to_install(monkeypatch):
    for name in ("VK_DRIVER_FILES", "VK_ICD_FILENAMES"):
        monkeypatch.setenv(name, "/nowhere.json")
    with pytest.raises(UserError, match="No usable Vulkan device") as raised:
        CpuVectorEnv(TASK, 1, max_episode_steps=50)
    assert "Mesa >= 24.3" in str(raised.value) and "`make setup`" in str(raised.value)
