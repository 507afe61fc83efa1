"""Runs of a sweep: python -m rpd_jax.sweep configs/paper/fig3.py [--scale=cpu] [--launcher=local|slurm] [--dry_run]

Starts what is missing, was stopped or failed; what has results.json is left alone. The same command shows how far
everything is, and goes on. --dry_run only shows. Look at the runs with python -m rpd_jax.report runs/fig3-cpu.
"""

from rpd_jax.command.start import start

if __name__ == "__main__":
    start()

from absl import flags

from rpd_jax.command.line import run_command

_SCALE = flags.DEFINE_enum("scale", "paper", ["paper", "cpu"], "The paper's runs, or miniatures of the same shape.")
_LAUNCHER = flags.DEFINE_enum("launcher", "local", ["local", "slurm"], "Where the jobs run.")
_OUTPUT = flags.DEFINE_string("output", None, "The sweep's folder; by default runs/<name>-<scale>.", short_name="o")
_JOBS = flags.DEFINE_integer("jobs", None, "Jobs at a time; by default one per GPU, or one.", lower_bound=1)
_HOURS = flags.DEFINE_float("hours", 48.0, "Time limit of a job, hours.", lower_bound=0.01)
_SLURM = flags.DEFINE_list("slurm", [], "sbatch's parameters: partition=gpu,gpus_per_node=1,cpus_per_task=16.")
_SET = flags.DEFINE_multi_string("set", [], "A setting of all training runs, part.field=value; may be repeated.")
_ONLY = flags.DEFINE_list("only", [], "Only jobs whose names match: *-rpd_mse-seed0,stack_cube*; in this order.")
_RATES = flags.DEFINE_list("rates", [], "Runs like these, from whose rates the hours are estimated.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Show the jobs and start none.")


def main(paths: list[str]) -> None:
    import shlex
    import sys
    from pathlib import Path

    from rpd_jax.errors import UserError
    from rpd_jax.report.runs import find_runs
    from rpd_jax.run.console import plain_console
    from rpd_jax.sweep.grid import chosen, load_sweep
    from rpd_jax.sweep.hours import estimate
    from rpd_jax.sweep.launch import launch_local, launch_slurm, visible_gpus
    from rpd_jax.sweep.status import FINISHED, TO_START, read_status, status_table

    if len(paths) != 1:
        raise UserError(f"One sweep at a time: {' '.join(paths)} was given.")
    console = plain_console(soft_wrap=True)
    jobs = chosen(load_sweep(paths[0], _SCALE.value, _SET.value), _ONLY.value)
    folder = Path(_OUTPUT.value or f"runs/{Path(paths[0]).stem}-{_SCALE.value}").absolute()
    statuses = read_status(jobs, folder)
    console.print(status_table(statuses, f"{paths[0]}, scale {_SCALE.value}: {folder}"))
    to_start = [status.job for status in statuses if status.state in TO_START]

    own = [folder / job.name for job in jobs if (folder / job.name / "metrics.jsonl").exists()]
    rates = [*_RATES.value, *own]
    expected = estimate(to_start, find_runs(rates) if rates else [])
    console.print(_estimate_sentence(expected, to_start))
    if _DRY_RUN.value:
        for job in to_start:
            console.print(shlex.join(["python", *job.command(folder)]))
        return
    if not to_start:
        return

    gpus = visible_gpus()
    parallel = _JOBS.value or max(1, len(gpus))
    if _LAUNCHER.value == "slurm":
        parameters = dict(item.partition("=")[::2] for item in _SLURM.value)
        array = launch_slurm(to_start, folder, parallel, _HOURS.value, parameters)
        console.print(f"Submitted {len(to_start)} jobs as array {array}; the same command shows their state.")
        return

    console.print(f"Starting {len(to_start)} jobs, {parallel} at a time; logs: {folder / 'logs'}")

    def report(job, error):
        console.print(f"{job.name}: {'failed: ' + error if error else 'finished'}")

    launch_local(to_start, folder, parallel, _HOURS.value, gpus, report)
    statuses = read_status(jobs, folder)
    console.print(status_table(statuses, f"{paths[0]}, scale {_SCALE.value}: {folder}"))
    if any(status.state != FINISHED for status in statuses):
        sys.exit(1)


def _estimate_sentence(expected, jobs) -> str:
    known = len(jobs) - len(expected.unknown)
    if not jobs:
        return "Nothing is left to start."
    if not known:
        return f"{len(jobs)} jobs to start; hours: unknown, no run like them was measured (--rates=RUNS)."
    rest = f", and {len(expected.unknown)} jobs of unknown rate" if expected.unknown else ""
    return f"{len(jobs)} jobs to start: about {expected.hours:.1f} hours for {known} of them, at measured rates{rest}."


if __name__ == "__main__":
    run_command(main, positional="SWEEP")
