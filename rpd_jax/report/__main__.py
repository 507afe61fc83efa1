"""Runs side by side: python -m rpd_jax.report RUNS... [-o report/] [--thresholds=0.5,0.8] [--videos=1]

RUNS are run directories, or directories of them. Writes report.html, which holds everything and needs no network, its
pictures as PNGs, and its tables of success as success.md. Runs may still be going on: the same command brings all up to
date. --keep=FOLDER copies what a report needs of the runs: a report of that folder is the same but for its videos.
"""

from rpd_jax.command.start import start

if __name__ == "__main__":
    start()

from absl import flags

from rpd_jax.command.line import run_command

_OUTPUT = flags.DEFINE_string("output", "report", "The folder to write.", short_name="o")
_THRESHOLDS = flags.DEFINE_list("thresholds", ["0.25", "0.5", "0.75", "0.9"], "Success rates, for the steps to them.")
_VIDEOS = flags.DEFINE_integer("videos", 1, "Runs of each algorithm and task whose videos are shown.", lower_bound=0)
_KEEP = flags.DEFINE_string("keep", None, "A folder for what a report needs of the runs, to be made from it again.")
_TITLE = flags.DEFINE_string("title", "Training runs", "The page's title.")


def main(paths: list[str]) -> None:
    import shlex
    import sys
    from pathlib import Path

    from rpd_jax.errors import UserError
    from rpd_jax.report.keep import keep
    from rpd_jax.report.page import write_report
    from rpd_jax.report.runs import find_runs

    try:
        thresholds = [float(text) for text in _THRESHOLDS.value]
    except ValueError as error:
        raise UserError(f"--thresholds={','.join(_THRESHOLDS.value)} are not numbers: give e.g. 0.5,0.8.") from error
    runs = find_runs(paths)
    if _KEEP.value:
        keep(runs, Path(_KEEP.value))
    command = shlex.join(["python", "-m", "rpd_jax.report", *sys.argv[1:]])
    page = write_report(runs, Path(_OUTPUT.value), thresholds, _VIDEOS.value, _TITLE.value, command)
    print(f"{len(runs)} runs: {page} ({page.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    run_command(main, positional="RUNS")
