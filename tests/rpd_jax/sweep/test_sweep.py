"""Sweeps: what they consist of, what is started again, and real jobs through submitit's local executor."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rpd_jax.errors import UserError
from rpd_jax.report.runs import find_runs
from rpd_jax.run.directory import open_run
from rpd_jax.run.metrics import MetricsLog
from rpd_jax.sweep.grid import Job, chosen, job_config, load_sweep, training
from rpd_jax.sweep.hours import estimate
from rpd_jax.sweep.job_process import write_record
from rpd_jax.sweep.launch import launch_local, launch_slurm, visible_gpus
from rpd_jax.sweep.status import FAILED, FINISHED, MISSING, QUEUED, RUNNING, STOPPED, read_status
from rpd_jax.training_run.fields import TRAINING

ROOT = Path(__file__).resolve().parents[3]
PAPER = ROOT / "configs" / "paper"


@pytest.mark.parametrize(
    ("name", "paper", "cpu"),
    # tasks x rewards x algorithms x seeds (Table I: teachers x tasks).
    [
        ("table1", 2 * 8, 8),
        ("fig3", 5 * 5, 5 * 3),
        ("fig3_state", 5 * 2 * 5, 5 * 2 * 3),
        ("fig4", 6 * 2 * 2 * 5, 2 * 2 * 3),
        ("fig5", 2 * 2 * 2 * 5, 2 * 3),
        ("refinement", (9 * 2 + 4) * 5, (9 * 2 + 4) * 3),
    ],
)
def test_paper_s_grids(name, paper, cpu):
    for scale, number in (("paper", paper), ("cpu", cpu)):
        jobs = load_sweep(PAPER / f"{name}.py", scale)
        assert len({job.name for job in jobs}) == len(jobs) == number


def test_every_training_job_of_the_paper_has_a_config_that_resolves():
    from rpd_jax import settings

    jobs = [job for name in ("fig3", "fig4", "fig5", "fig7") for job in load_sweep(PAPER / f"{name}.py", "paper")]
    for job in {job.config: job for job in jobs}.values():
        config = settings.resolve(job_config(job))
        assert (config.total_steps, config.env.num_envs, config.profile) == (30_000_000, 128, "paper")
    assert {job.config for job in jobs} >= {"pick_cube_dense", "roll_ball_sparse", "poke_cube_dense"}


@pytest.mark.parametrize("name", ["fig3_state", "refinement"])
def test_sweeps_that_are_not_the_paper_s_have_one_size(name):
    from rpd_jax import settings

    small, large = (load_sweep(PAPER / f"{name}.py", scale) for scale in ("cpu", "paper"))
    assert [job for job in large if job.settings["seed"] < 3] == small
    for job in {job.config: job for job in large}.values():
        config = settings.resolve(job_config(job))
        assert (config.profile, config.env.num_envs, config.env.image_size) == ("refine", 16, 128)
        assert config.teacher.checkpoint.startswith("octo-nano")


def test_only_what_matches_is_taken_in_the_order_of_the_patterns():
    jobs = load_sweep(PAPER / "refinement.py", "cpu")
    assert chosen(jobs, []) == jobs
    names = [job.name for job in chosen(jobs, ["stack*-seed[01]", "*-rpd_mse-seed0"])]
    assert names[:4] == [
        f"stack_cube_sparse-{rest}" for rest in ("rpd_mse-seed0", "dagger-seed0", "rpd_mse-seed1", "dagger-seed1")
    ]
    assert len(names) == len(set(names)) == 4 + 12
    with pytest.raises(UserError, match=r"--only=stack_cube-\* matches no job of the sweep: did you mean 'stack_cube_"):
        chosen(jobs, ["push*", "stack_cube-*"])


def test_refinement_and_its_control_share_their_stages():
    from rpd_jax import settings

    jobs = load_sweep(PAPER / "refinement.py", "cpu")
    configs = [settings.resolve(job_config(job)) for job in jobs if job.config == "pick_cube_sparse"]
    assert {config.algorithm for config in configs} == {"rpd_mse", "dagger"}
    for config in configs:
        assert (config.refine, config.profile) == ("state", "refine")
        del config.algorithm, config.seed
    assert all(config == configs[0] for config in configs)


def test_a_run_takes_the_first_stages_of_one_that_has_them(tmp_path):
    """The control finds what the teacher labelled for the other algorithm, on the same task and seed."""
    jobs = load_sweep(PAPER / "refinement.py", "cpu")
    refined, control = chosen(jobs, ["pick_cube_sparse-*-seed1"])
    assert [job.settings["algorithm"] for job in (refined, control)] == ["rpd_mse", "dagger"]
    assert jobs.index(control) > jobs.index(refined) + 1  # which has labelled by then, also where two run at a time
    (tmp_path / refined.name / "label").mkdir(parents=True)
    assert not any("first_stages" in flag for flag in control.command(tmp_path))
    (tmp_path / refined.name / "label" / "results.json").write_text("{}")
    assert f"--first_stages={tmp_path / refined.name}" in control.command(tmp_path)
    for job in jobs:
        assert job is control or not any("first_stages" in flag for flag in job.command(tmp_path))


def test_settings_reach_the_command_and_mistakes_name_the_nearest_field(tmp_path):
    (job, *_) = load_sweep(PAPER / "fig3.py", "cpu", ["total_steps=4096", "env.restart_workers=true"])
    command = job.command(tmp_path)
    assert command[:2] == ["train.py", "--config=configs/push_cube_sparse.py"]
    assert "--config.total_steps=4096" in command and "--config.algorithm=rpd_mse" in command
    assert command[-1] == f"--workdir={tmp_path}/push_cube_sparse-rpd_mse-seed0"
    config = job_config(job)
    assert (config.total_steps, config.env.restart_workers, config.algorithm) == (4096, True, "rpd_mse")
    with pytest.raises(UserError, match=r"did you mean 'env.num_envs'"):
        load_sweep(PAPER / "fig3.py", "cpu", ["num_envs=3"])
    for value in ("many", "1e6", "(1,"):
        with pytest.raises(UserError, match=rf"total_steps={re.escape(value)} is not a value of type int: mend --set"):
            job_config(load_sweep(PAPER / "fig3.py", "cpu", [f"total_steps={value}"])[0])
    with pytest.raises(UserError, match=r"did you mean configs/paper/fig3.py"):
        load_sweep("fig33.py", "cpu")


def test_states_of_jobs(tmp_path):
    jobs = training(["push_cube_sparse"], ["ppo"], seeds=5)
    results, running, dead, failed, _ = jobs
    (tmp_path / results.name).mkdir()
    student = {"success": 0.5, "success_low": 0.4, "success_high": 0.6}
    (tmp_path / results.name / "results.json").write_text(json.dumps({"student": student}))
    write_record(tmp_path, failed, state="failed", error="error: no disk")
    code = "print('ready', flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    sleeper = subprocess.Popen([sys.executable, "-c", code, running.name], **pipes)
    assert sleeper.stdout.readline() == b"ready\n"
    host = os.uname().nodename
    write_record(tmp_path, running, state="running", host=host, pid=sleeper.pid)
    write_record(tmp_path, dead, state="running", host=host, pid=os.getpid())  # the number went to another process
    states = [status.state for status in read_status(jobs, tmp_path)]
    sleeper.communicate(b"\n")
    assert states == [FINISHED, RUNNING, STOPPED, FAILED, MISSING]
    statuses = read_status(jobs, tmp_path)
    assert statuses[1].state == STOPPED and statuses[3].detail == "error: no disk"
    assert statuses[0].detail == "success 50% (40% to 60%)"


HOLD = """
import sys
from rpd_jax.run.lock import hold
with hold(sys.argv[1]):
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_a_job_of_another_machine_runs_while_it_holds_its_run_or_writes(tmp_path):
    jobs = training(["push_cube_sparse"], ["ppo"], seeds=4)
    _, locked, writing, damaged = jobs
    for job in jobs:
        write_record(tmp_path, job, state="running", host="another-container", pid=1)
    assert [status.state for status in read_status(jobs, tmp_path)] == [RUNNING] * 4, "they have just been started"
    (tmp_path / "records" / f"{damaged.name}.json").write_text("")  # after a power failure
    for path in (tmp_path / "records").iterdir():
        os.utime(path, (time.time() - 1000,) * 2)
    (tmp_path / writing.name / "label").mkdir(parents=True)
    (tmp_path / writing.name / "label" / "metrics.jsonl").write_text("")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    holder = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / locked.name], **pipes)
    assert holder.stdout.readline() == b"ready\n"
    statuses = read_status(jobs, tmp_path)
    holder.communicate(b"")
    assert [status.state for status in statuses] == [STOPPED, RUNNING, RUNNING, MISSING]
    assert statuses[1].detail == "(on another-container; stopped if silent for 15 minutes)"
    assert [status.state for status in read_status(jobs, tmp_path)] == [STOPPED, STOPPED, RUNNING, MISSING]


def test_jobs_of_a_slurm_that_cannot_be_asked_are_not_started_twice(tmp_path, monkeypatch):
    (job,) = training(["push_cube_sparse"], ["ppo"], seeds=1)
    write_record(tmp_path, job, state="queued", slurm_job="7_0")
    monkeypatch.setenv("PATH", str(tmp_path))  # no squeue
    assert read_status([job], tmp_path)[0].state == QUEUED
    squeue = tmp_path / "squeue"  # one that knows job 7
    squeue.write_text("#!/bin/sh\necho '7_0 RUNNING'\n")
    squeue.chmod(0o755)
    assert read_status([job], tmp_path)[0].state == RUNNING
    squeue.write_text("#!/bin/sh\necho '8_0 RUNNING'\n")
    assert read_status([job], tmp_path)[0].state == STOPPED


def test_hours_come_from_runs_of_the_same_kind(tmp_path):
    from rpd_jax import settings

    jobs = training(["push_cube_sparse"], ["ppo", "rpd_mse", "ppd"], seeds=2, settings={"profile": "cpu"})
    for algorithm, seconds in (("ppo", 10.0), ("rpd_mse", 30.0)):
        job = next(job for job in jobs if job.settings["algorithm"] == algorithm)
        open_run(tmp_path / algorithm, settings.resolve(job_config(job)), TRAINING)
        log = MetricsLog(tmp_path / algorithm, 0)
        for iteration, total in enumerate((99.0, seconds, seconds)):  # the first one compiles
            log.write(iteration, 0, {"time/total": total})
        log.close()
    runs = find_runs([tmp_path])
    # 32,768 steps are 32 iterations; ppd was not measured and counts as the slowest.
    assert estimate(jobs, runs).hours == pytest.approx(2 * 32 * (10 + 30 + 30) / 3600)
    assert estimate(jobs, []).unknown == jobs
    assert len(estimate(load_sweep(PAPER / "fig3.py", "paper"), runs).unknown) == 25


def test_hours_of_runs_of_several_stages_are_those_of_all_of_them(tmp_path):
    from rpd_jax import settings

    (job,) = training(["push_cube_sparse"], ["rpd_mse"], seeds=1, settings={"refine": "state", "total_steps": 16_384})
    run = tmp_path / "run"
    open_run(run, settings.resolve(job_config(job)), TRAINING)
    log = MetricsLog(run, 0)
    for iteration, total in enumerate((99.0, 30.0, 30.0)):
        log.write(iteration, 0, {"time/total": total})
    log.close()
    # While it runs, nobody knows what its earlier stages took.
    assert estimate([job], find_runs([run])).unknown == [job]
    summary = {"success": 1.0, "success_low": 0.9, "success_high": 1.0, "episodes": 112.0}
    minutes = {"label": 4.0, "refine": 10.0, "distil": 7.0}
    stages = {name: {"student": summary, "steps": 1024, "minutes": value} for name, value in minutes.items()}
    (run / "results.json").write_text(json.dumps({"student": summary, "minutes": 7.0, "stages": stages}))
    # 16,384 steps are 16 iterations.
    assert estimate([job], find_runs([run])).hours == pytest.approx((16 * 30 + 14 * 60) / 3600)


def test_without_slurm_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    jobs = training(["push_cube_sparse"], ["ppo"], seeds=1)
    with pytest.raises(UserError, match=r"Slurm did not take the jobs .* use --launcher=local"):
        launch_slurm(jobs, tmp_path, 1, 1.0, {})


# Stands for a training: saves and ends at SIGTERM, continues when it is started again.
SCRIPT = """
import pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1].split("=")[1])
if (folder / "saved").exists():
    (folder / "results.json").write_text("{}")
    sys.exit()
def save(*_):
    (folder / "saved").write_text("")
    sys.exit(130)
signal.signal(signal.SIGTERM, save)
folder.mkdir(exist_ok=True)
time.sleep(300)
"""


@pytest.mark.slow
def test_a_job_at_its_time_limit_saves_is_queued_again_and_continues(tmp_path):
    job = Job("long", ("-c", SCRIPT), (), "workdir")
    ended = []
    launch_local([job], tmp_path, parallel=1, hours=30 / 3600, on_end=lambda job, error: ended.append(error))
    assert ended == [""]
    assert (tmp_path / "long" / "saved").exists()
    assert read_status([job], tmp_path)[0].state == FINISHED


def test_the_error_of_a_job_is_that_of_its_last_attempt(tmp_path):
    told = []
    for code in ("print('error: no disk'); exit(2)", "print('Segmentation fault'); exit(2)", "exit(2)"):
        job = Job("job", ("-c", code), (), "workdir")
        launch_local([job], tmp_path, 1, 0.1, on_end=lambda job, error: told.append(error))
    assert told == ["error: no disk", "Segmentation fault", "no output"]
    assert (tmp_path / "logs" / "job.log").read_text() == "error: no disk\nSegmentation fault\n"


# Leaves what it sees.
SEES = """
import os, pathlib, sys
folder = pathlib.Path(sys.argv[1].split("=")[1])
folder.mkdir()
(folder / "sees").write_text(os.environ["CUDA_VISIBLE_DEVICES"])
(folder / "results.json").write_text("{}")
"""


def test_jobs_share_the_gpus_that_the_user_chose(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-8932f937,-1,2")
    assert visible_gpus() == ["3", "GPU-8932f937"]
    jobs = [Job(name, ("-c", SEES), (), "workdir") for name in "ab"]
    launch_local(jobs, tmp_path, 2, 0.1, visible_gpus())
    assert [(tmp_path / name / "sees").read_text() for name in "ab"] == ["3", "GPU-8932f937"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []
    launch_local([Job("c", ("-c", SEES), (), "workdir")], tmp_path, 1, 0.1, visible_gpus())
    assert (tmp_path / "c" / "sees").read_text() == ""


@pytest.mark.slow
def test_a_job_that_somebody_else_stopped_is_told_as_such(tmp_path):
    job = Job("long", ("-c", SCRIPT.replace("time.sleep(300)", "save()")), (), "workdir")  # as if SIGTERM had come
    told = []
    launch_local([job], tmp_path, 1, 0.1, on_end=lambda job, error: told.append(error))
    assert told == ["it was stopped; the same command continues it"]
    assert read_status([job], tmp_path)[0].state == STOPPED


@pytest.mark.slow
def test_ctrl_c_lets_the_jobs_save_and_ends_quietly(tmp_path):
    (tmp_path / "file.py").write_text(
        f"from rpd_jax.sweep.grid import Job\n\n\ndef get_sweep(scale):\n"
        f"    return [Job(name, ('-c', {SCRIPT!r}), (), 'workdir') for name in 'ab']\n"
    )
    folder = tmp_path / "sweep"
    process = subprocess.Popen(
        [sys.executable, "-m", "rpd_jax.sweep", str(tmp_path / "file.py"), "--jobs=2", f"-o={folder}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 200
    while not all((folder / name).is_dir() for name in "ab"):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: everything in it gets the signal
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 130 and "Traceback" not in errors
    assert all((folder / name / "saved").exists() for name in "ab")
    jobs = load_sweep(str(tmp_path / "file.py"), "cpu")
    assert [status.state for status in read_status(jobs, folder)] == [STOPPED, STOPPED]


@pytest.mark.slow
def test_a_real_sweep_starts_only_what_is_missing_or_failed(tmp_path):
    tiny = {
        "student.observation": "state",
        "total_steps": 16,
        "env.num_envs": 2,
        "env.workers": 1,
        "env.image_size": 16,
        "env.mesh_detail": 0.07,
        "ppo.rollout_steps": 8,
        "ppo.update_epochs": 1,
        "ppo.num_minibatches": 1,
        "eval.every": 1,
        "eval.final_episodes": 2,
        "checkpoint.every": 1,
        "teacher.checkpoint": "/no/such",
    }
    file = tmp_path / "tiny.py"
    file.write_text(
        "from rpd_jax.sweep.grid import training\n\n\ndef get_sweep(scale):\n"
        f"    return training(['push_cube_sparse'], ['ppo', 'rpd_mse'], 1, {tiny})\n"
    )
    command = [sys.executable, "-m", "rpd_jax.sweep", str(file), "--scale=cpu", "--jobs=2", f"-o={tmp_path / 'sweep'}"]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=580)
    assert first.returncode == 1, first.stderr
    assert "push_cube_sparse-ppo-seed0: finished" in first.stdout
    assert "teacher.checkpoint='/no/such' is not a folder" in first.stdout
    assert "1 finished, 1 failed" in first.stdout
    (run,) = find_runs([tmp_path / "sweep"])  # the other one never began
    assert run.step == 16 and run.results is not None
    second = subprocess.run([*command, "--dry_run"], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert second.returncode == 0, second.stderr
    started = [line for line in second.stdout.splitlines() if line.startswith("python train.py")]
    assert len(started) == 1 and "--config.algorithm=rpd_mse" in started[0]
