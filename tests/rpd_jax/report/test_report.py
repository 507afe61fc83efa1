"""The report's numbers and page, on run directories small enough to work the numbers out by hand."""

import json
import re
import subprocess
import sys
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest

from configs import default
from rpd_jax import settings
from rpd_jax.acting.video import write_video
from rpd_jax.command.line import run_command
from rpd_jax.errors import UserError
from rpd_jax.report import refinement, statistics
from rpd_jax.report.figures import plot_run
from rpd_jax.report.keep import keep
from rpd_jax.report.page import write_report
from rpd_jax.report.runs import find_runs, group
from rpd_jax.report.stage_curves import _curve, stages_of
from rpd_jax.run.directory import open_run
from rpd_jax.run.metrics import MetricsLog
from rpd_jax.training_run.fields import TRAINING

ROOT = Path(__file__).resolve().parents[3]


def make_run(workdir, algorithm="rpd_mse", seed=0, success=(0.0, 0.5, 1.0), finished=True, teacher=None, **overrides):
    """A run of 100 steps per iteration that evaluates after each, in the trainer's own format."""
    config = default.get_config()
    config.algorithm, config.refine, config.seed = algorithm, "pixels", seed
    config.total_steps = 100 * len(success)
    config.env.num_envs, config.ppo.rollout_steps = 10, 10
    for name, value in overrides.items():
        config.update_from_flattened_dict({name.replace("__", "."): value})
    open_run(workdir, settings.resolve(config), TRAINING)
    log = MetricsLog(workdir, 0)
    for iteration, rate in enumerate(success):
        seconds = {"time/simulate+render": 3.0, "time/update": 1.0, "time/rest": 0.0, "time/total": 4.0}
        if iteration == 0:
            seconds["time/total"] = 99.0  # holds compilation, must not count
        evaluation = {"success": rate, "return": 2 * rate, "episodes": 10.0}
        numbers = {f"eval/{name}": value for name, value in evaluation.items()} | {"rollout/success": rate / 2}
        log.write(iteration, 100 * (iteration + 1), numbers | seconds)
    log.close()
    if finished:
        final = {"success": success[-1], "success_low": 0.0, "success_high": 1.0, "episodes": 10.0}
        (workdir / "results.json").write_text(json.dumps({"student": final, "teacher": teacher}))
    if teacher is not None:
        (workdir / "teacher.json").write_text(json.dumps({"success": teacher, "return": teacher}))
    return workdir


def test_curves_hold_mean_and_spread_over_seeds(tmp_path):
    paths = [
        make_run(tmp_path / str(seed), seed=seed, success=curve) for seed, curve in enumerate([(0, 0.6), (0.2, 1)])
    ]
    make_run(tmp_path / "2", seed=2, success=(0.4,), finished=False)
    steps, mean, spread = statistics.mean_curve(find_runs([*paths, tmp_path / "2"]), "eval/success")
    np.testing.assert_array_equal(steps, [100, 200])
    # The third run has not come to step 200.
    np.testing.assert_allclose(mean, [0.2, 0.8])
    np.testing.assert_allclose(spread, [0.2, np.sqrt(2) * 0.2])
    _, smooth, _ = statistics.mean_curve(find_runs(paths[:1]), "eval/success", window=2)
    np.testing.assert_allclose(smooth, [0.0, 0.3])


def test_steps_to_success_are_those_of_the_first_evaluation_that_reached_it(tmp_path):
    (run,) = find_runs([make_run(tmp_path / "run", success=(0.1, 0.5, 0.4, 0.9))])
    found = [statistics.steps_to_success(run, threshold) for threshold in (0.1, 0.45, 0.6, 0.95)]
    assert found == [100, 200, 400, float("inf")]


def test_interquartile_mean_and_stratified_bootstrap():
    # Middle half of 0 ... 7 is 2 ... 5.
    assert statistics.interquartile_mean(np.arange(8.0)) == 3.5
    # Each task's runs are drawn within the task: without spread inside the tasks there is none in the mean.
    constant = statistics.aggregate({"a": [0.0, 0.0, 0.0], "b": [1.0, 1.0, 1.0]})
    assert (constant["iqm"], constant["low"], constant["high"]) == (0.5, 0.5, 0.5)
    # Of two seeds 0 and 1 a resampled mean is 0, 0.5 or 1, with 1/4 at either end: more than the 2.5% left out.
    wide = statistics.aggregate({"a": [0.0, 1.0]})
    assert (wide["iqm"], wide["low"], wide["high"]) == (0.5, 0.0, 1.0)
    # What rliable 1.2.0's get_interval_estimates says of aggregate_iqm, with 5000 resamples.
    scores = {"a": [0.91, 0.86, 0.80], "b": [0.4, 0.62, 0.5], "c": [0.1, 0.0, 0.05]}
    found = statistics.aggregate(scores)
    assert [found[name] for name in ("iqm", "low", "high")] == pytest.approx([0.484, 0.42, 0.552], abs=0.005)
    single = statistics.aggregate({"a": [0.3, 0.5], "b": [0.7]})
    assert single["runs"] == 3 and np.isnan(single["low"])


def test_final_success_is_of_finished_runs(tmp_path):
    curves = {"a": (0.4, True), "b": (0.8, True), "c": (0.0, False)}
    for seed, (name, (success, finished)) in enumerate(curves.items()):
        make_run(tmp_path / name, seed=seed, success=(success,), finished=finished)
    (panel,) = group(find_runs([tmp_path]))
    (series,) = panel.series
    final = statistics.final_success(series)
    # Wilson's interval of 12 of 20 episodes is 0.387 to 0.781; resampled means of the two seeds are 0.4, 0.6 and 0.8.
    assert (final["mean"], final["low"], final["high"]) == pytest.approx((0.6, 0.387, 0.8), abs=1e-3)
    (alone,) = group(find_runs([tmp_path / "a"]))[0].series
    final = statistics.final_success(alone)
    assert (final["low"], final["high"]) == pytest.approx((0.168, 0.687), abs=1e-3)  # Wilson, 4 of 10


def test_runs_are_grouped_by_task_and_by_what_differs(tmp_path):
    make_run(tmp_path / "a", seed=0)
    make_run(tmp_path / "b", seed=1)
    make_run(tmp_path / "c", distill__coef=1.0, distill__coef_final=0.1)
    make_run(tmp_path / "d", "ppo", env__workers=1)
    make_run(tmp_path / "e", "ppo", env__workers=2, seed=1)
    make_run(tmp_path / "f", env__task="PullCube-v1")
    pull, push = group(find_runs([tmp_path]))
    assert (pull.title, push.title) == ("PullCube-v1, sparse", "PushCube-v1, sparse")
    names = {series.name: len(series.runs) for series in push.series}
    assert names == {"rpd_mse (distill.coef=10.0)": 2, "rpd_mse (distill.coef=1.0)": 1, "ppo": 2}


def test_cameras_have_panels_and_teachers_of_their_own(tmp_path):
    make_run(tmp_path / "unmoved", teacher=0.9)
    make_run(tmp_path / "left", teacher=0.2, env__camera__eye_offset=(0.0, -0.2, 0.0))
    (alone,) = group(find_runs([tmp_path / "left"]))
    assert alone.title == "PushCube-v1, sparse, moved camera"
    make_run(tmp_path / "left1", seed=1, teacher=0.4, env__camera__eye_offset=(0.0, -0.2, 0.0))
    make_run(tmp_path / "right", teacher=0.6, env__camera__eye_offset=(0.0, 0.2, 0.0), env__camera__fov=1.0)
    panels = group(find_runs([tmp_path]))
    assert {panel.title: list(panel.teachers("success").values()) for panel in panels} == {
        "PushCube-v1, sparse": [0.9],
        "PushCube-v1, sparse, moved camera (eye_offset=(0.0, -0.2, 0.0))": [pytest.approx(0.3)],
        "PushCube-v1, sparse, moved camera (eye_offset=(0.0, 0.2, 0.0), fov=1.0)": [0.6],
    }
    write_report(find_runs([tmp_path]), tmp_path / "report", videos=0)
    assert len(list((tmp_path / "report").glob("success-*.png"))) == 3


def test_the_page_holds_everything_and_needs_no_network(tmp_path):
    runs = tmp_path / "runs"
    for seed in range(2):
        make_run(runs / f"rpd{seed}", seed=seed, success=(0.0, 0.6, 0.9 + seed / 10), teacher=0.71)
        make_run(runs / f"ppo{seed}", "ppo", seed=seed, success=(0.0, 0.0, 0.1), finished=seed == 0)
    write_video(runs / "rpd0" / "videos" / "student.mp4", [np.zeros((3, 16, 16, 3), np.uint8)])
    page = write_report(find_runs([runs]), tmp_path / "report", [0.5], command="again & again").read_text()
    sources = re.findall(r'(?:src|href|url)\s*=?\s*["(]([^")]*)', page)
    assert len(sources) == 5  # curves of success and return, interval, time, one video
    assert all(source.startswith(("data:image/png;base64,", "data:video/mp4;base64,")) for source in sources)
    text = re.sub(r"<[^>]*>", " ", page)
    text = " ".join(text.split())
    assert "rpd_mse 95.0% 76% to 100% 71% 2 of 2 2" in text  # mean, interval, teacher, finished seeds, minutes
    assert "ppo 10.0% 2% to 40% 71% 1 of 2" in text
    assert "rpd_mse 200 (2 of 2)" in text and "ppo - (0 of 2)" in text
    assert "rpd_mse 4.0 25" in text  # seconds per iteration without the first, steps per second
    assert "again &amp; again brings the page up to date" in text
    tables = (tmp_path / "report" / "success.md").read_text()
    assert (
        "| rpd_mse | 95.0% | 76% to 100% | 71% | 2 of 2 | 2 |\n| ppo | 10.0% | 2% to 40% | 71% | 1 of 2 | 2 |" in tables
    )
    assert "| environment steps until a success of | 50% |" in tables and "| rpd_mse | 200 (2 of 2) |" in tables
    for name in ("success-PushCube-v1-sparse", "return-PushCube-v1-sparse", "time", "final"):
        assert imageio.imread(tmp_path / "report" / f"{name}.png").shape[1] > 500


def test_the_teacher_of_a_run_of_several_stages_is_shown(tmp_path):
    """It was filmed in the first of them; not where it looked through another camera than the student."""
    for name, view in (("shared", "student"), ("own", "own")):
        run = make_run(tmp_path / name, refine="state", teacher__view=view)
        for place in (run, run / "label"):
            write_video(place / "videos" / "student.mp4", [np.zeros((3, 16, 16, 3), np.uint8)])
        write_video(run / "label" / "videos" / "teacher.mp4", [np.zeros((3, 16, 16, 3), np.uint8)])
    shown = [
        write_report(find_runs([tmp_path / name]), tmp_path / "report").read_text().count("data:video/mp4")
        for name in ("shared", "own")
    ]
    assert shown == [2, 1]


@pytest.mark.parametrize("small_disk", ["4m"], indirect=True)
def test_a_full_disk_leaves_the_page_that_was_there(small_disk, fill):
    make_run(small_disk / "run", teacher=0.5)
    command = [sys.executable, "-m", "rpd_jax.report", str(small_disk / "run"), f"--output={small_disk / 'report'}"]

    def report():
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)

    assert report().returncode == 0
    before = {path.name: path.read_bytes() for path in (small_disk / "report").iterdir()}
    filler = fill(small_disk)
    full = report()
    assert full.returncode == 2 and "Traceback" not in full.stderr
    assert re.match(
        r"error: .*/report/time\.png could not be written \(No space left on device\): make room there", full.stderr
    )
    assert {path.name: path.read_bytes() for path in (small_disk / "report").iterdir()} == before
    filler.unlink()
    assert report().returncode == 0


def pixels_of(colour, path):
    return int(np.all(imageio.imread(path)[..., :3] == colour, axis=-1).sum())


def test_settings_with_signs_of_formulas_and_tables_are_shown_as_they_are(tmp_path):
    for name in ("$^$", "a|b"):
        make_run(tmp_path / name, teacher__checkpoint=name)
    runs = find_runs([tmp_path])
    (panel,) = group(runs)
    names = {series.name for series in panel.series}
    assert names == {"rpd_mse (teacher.checkpoint=$^$)", "rpd_mse (teacher.checkpoint=a|b)"}
    write_report(runs, tmp_path / "report")
    rows = [line for line in (tmp_path / "report" / "success.md").read_text().splitlines() if "checkpoint" in line]
    assert any("$^$" in row for row in rows) and any("a\\|b" in row for row in rows)


def test_a_run_s_own_curve_shows_student_and_teacher(tmp_path):
    student, teacher = (0, 114, 178), (89, 89, 89)  # #0072B2 and matplotlib's 0.35
    plot_run(make_run(tmp_path / "a"), tmp_path / "a.png")
    plot_run(make_run(tmp_path / "b", teacher=0.5), tmp_path / "b.png")
    assert pixels_of(student, tmp_path / "a.png") > 500 and pixels_of(student, tmp_path / "b.png") > 500
    # A few pixels of black text have the teacher's grey.
    assert pixels_of(teacher, tmp_path / "a.png") < 100 and pixels_of(teacher, tmp_path / "b.png") > 500


def test_a_run_that_is_going_on_can_be_read(tmp_path):
    workdir = make_run(tmp_path / "run", finished=False)
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 3, "st')  # the line that is being written
    (run,) = find_runs([workdir])
    assert (run.step, run.latest["success"]) == (300, 1.0)
    (workdir / "metrics.jsonl").write_text("")
    page = write_report(find_runs([workdir]), tmp_path / "report").read_text()
    assert "0 of 300 steps" in page


def test_what_is_no_run_is_named(tmp_path, capsys):
    with pytest.raises(UserError, match="holds no run"):
        find_runs([tmp_path])
    make_run(tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be read as a run"):
        find_runs([tmp_path])
    with pytest.raises(SystemExit):
        run_command(lambda paths: None, ["report"], positional="RUNS")
    assert "RUNS is missing" in capsys.readouterr().err


def test_steps_and_minutes_of_a_run_are_those_of_all_its_stages(tmp_path):
    workdir = make_run(tmp_path / "run", refine="state", success=(0.1, 0.5))
    rows = [json.loads(line) | {"step": 1000 + 100 * n} for n, line in enumerate((workdir / "metrics.jsonl").open(), 1)]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (plain,) = find_runs([workdir])
    assert plain.minutes == pytest.approx(sum(row["time/total"] for row in rows) / 60)
    assert plain.total_steps == 1000 + plain.config["total_steps"] // 100 * 100
    finished = (workdir / "results.json").rename(tmp_path / "results.json")
    for stage in ("label", "refine"):
        make_run(workdir / stage, success=(0.1, 0.5), finished=False)  # 99 s and 4 s
    (going_on,) = find_runs([workdir])
    assert going_on.minutes == pytest.approx(plain.minutes + 2 * (99 + 4) / 60)
    finished.rename(workdir / "results.json")
    results = json.loads((workdir / "results.json").read_text())
    minutes = {"label": 2.0, "refine": 3.5, "distil": 4.0}
    results["stages"] = {
        name: {"student": results["student"], "steps": 100, "minutes": value} for name, value in minutes.items()
    }
    (workdir / "results.json").write_text(json.dumps(results))
    (run,) = find_runs([workdir])
    assert run.minutes == 9.5
    del results["stages"]["refine"]["steps"]
    (workdir / "results.json").write_text(json.dumps(results))
    with pytest.raises(UserError, match=r"results.json: stages.refine.*steps.*restore it"):
        find_runs([workdir])


def finish_stages(run, stages, teacher=None):
    """Writes what a finished run of several stages says: name -> (successes of 10 episodes, steps, minutes)."""
    path = run / "results.json"
    results = json.loads(path.read_text())
    results["stages"] = {
        name: {"student": {"success": count / 10, "episodes": 10.0}, "steps": steps, "minutes": minutes}
        for name, (count, steps, minutes) in stages.items()
    }
    path.write_text(json.dumps(results))
    if teacher is not None:
        (run / "teacher.json").write_text(json.dumps({"success": teacher, "return": teacher, "episodes": 10.0}))


def test_a_report_of_what_was_kept_is_the_same(tmp_path):
    """Two seeds, kept one after the other as from two machines; the first has stages and sampled success."""
    for seed in (0, 1):
        run = make_run(tmp_path / f"runs{seed}" / f"refined{seed}", refine="state", seed=seed, success=(1 / 3, 0.9))
        for stage, success in (("label", (0.0, 0.2)), ("refine", (0.5, 0.9))):
            make_run(run / stage, success=success, seed=seed)
        finish_stages(run, {"label": (2, 200, 1.0), "refine": (9, 200, 3.0), "distil": (9, 200, 2.0)}, teacher=0.3)
        (run / "checkpoints").mkdir()
        keep(find_runs([tmp_path / f"runs{seed}"]), tmp_path / "kept")
    original, kept = (find_runs(paths) for paths in ([tmp_path / "runs0", tmp_path / "runs1"], [tmp_path / "kept"]))
    assert [run.config for run in kept] == [run.config for run in original]
    write_report(original, tmp_path / "report")
    write_report(kept, tmp_path / "again")
    assert (tmp_path / "again" / "success.md").read_text() == (tmp_path / "report" / "success.md").read_text()
    for picture in (tmp_path / "report").glob("*.png"):
        again, first = (imageio.imread(path).astype(int) for path in (tmp_path / "again" / picture.name, picture))
        assert np.abs(again - first).mean() < 0.05  # numbers are rounded
    place = tmp_path / "kept" / "refined0"
    files = {str(path.relative_to(place)) for path in place.rglob("*.json*")}
    assert "label/metrics.jsonl" in files and not (tmp_path / "kept" / "refined0" / "checkpoints").exists()
    make_run(tmp_path / "other" / "refined0")
    with pytest.raises(UserError, match="Two runs are called refined0"):
        keep(find_runs([tmp_path / "runs0", tmp_path / "other"]), tmp_path / "kept")
    with pytest.raises(UserError, match=r"refined0 is what --keep=.*kept would copy, and it is there: choose another"):
        keep(find_runs([tmp_path / "kept"]), tmp_path / "kept")


def test_tables_say_what_refinement_added_and_what_each_stage_left(tmp_path):
    """Two seeds and a control on one task, one seed on another, of which a run has not finished."""
    for seed, success in ((0, 0.9), (1, 1.0)):
        run = make_run(tmp_path / f"refined{seed}", refine="state", seed=seed, success=(0.1, success))
        stages = {"label": (2, 1000, 1.0), "refine": (10, 20_000, 3.0), "distil": (9 + seed, 3000, 2.0 + 2 * seed)}
        finish_stages(run, stages, teacher=0.3)
    control = make_run(tmp_path / "control", "dagger", refine="state", success=(0.2, 0.4))
    finish_stages(control, {"label": (2, 1000, 1.0), "distil": (4, 3000, 1.5)}, teacher=0.9)
    other = make_run(tmp_path / "other", "ppo", refine="state", success=(0.0,), env__task="PickCube-v1")
    finish_stages(other, {"refine": (5, 4000, 1.0), "distil": (0, 500, 0.5)})
    moved = {"refine": "state", "env__camera__fov": 1.0}
    for name, algorithm, teacher in (("moved", "rpd_mse", None), ("moved_control", "dagger", 0.0)):
        stages = {"label": (2, 1000, 1.0), "distil": (9, 3000, 1.0)}
        finish_stages(make_run(tmp_path / name, algorithm, success=(0.9,), **moved), stages, teacher)
    make_run(tmp_path / "going_on", refine="state", finished=False, env__task="PickCube-v1")
    panels = group(find_runs([tmp_path]))
    assert refinement.added(panels) == [
        # Another algorithm's run is going on. No control, and no teacher measured; 0 of 10 by Wilson.
        ("PickCube-v1, sparse, ppo", "1", "-", "-", "0% (0% to 28%)", "2"),
        # 6 of 20; 4 of 10; 19 of 20, where the seeds are nearer to each other than episodes are.
        ("PushCube-v1, sparse", "2", "30% (15% to 52%)", "40% (17% to 69%)", "95% (76% to 100%)", "7, 2"),
        # The refined run's teacher looked through a camera of its own.
        ("PushCube-v1, sparse, moved camera", "1", "0% (0% to 28%)", "90% (60% to 98%)", "90% (60% to 98%)", "2, 2"),
    ]
    assert refinement.left(panels) == [
        (
            "PickCube-v1, sparse, ppo, seed 0",
            "-",
            "50% (24% to 76%), 4,000 undrawn",
            "0% (0% to 28%), 500 drawn",
            "1.0, 0.5",
        ),
        (
            "PushCube-v1, sparse, seed 0",
            "20% (6% to 51%), 1,000 drawn",
            "100% (72% to 100%), 20,000 undrawn",
            "90% (60% to 98%), 3,000 drawn",
            "1.0, 3.0, 2.0",
        ),
        (
            "PushCube-v1, sparse, seed 1",
            "20% (6% to 51%), 1,000 drawn",
            "100% (72% to 100%), 20,000 undrawn",
            "100% (72% to 100%), 3,000 drawn",
            "1.0, 3.0, 4.0",
        ),
        (
            "PushCube-v1, sparse, moved camera, seed 0",
            "20% (6% to 51%), 1,000 drawn",
            "-",
            "90% (60% to 98%), 3,000 drawn",
            "1.0, 1.0",
        ),
    ]
    page = write_report(find_runs([tmp_path]), tmp_path / "report").read_text()
    written = (tmp_path / "report" / "success.md").read_text()
    for table in (refinement.added(panels), refinement.left(panels)):
        for cell in (cell for row in table for cell in row):
            assert f" {cell} |" in written and f"<td>{cell}</td>" in page
    height, width = imageio.imread(tmp_path / "report" / "stages.png").shape[:2]
    assert width > height  # three tasks, two of them side by side


def test_algorithms_that_refine_one_task_are_no_seeds_of_each_other(tmp_path):
    """Two of them, each with the imitation that is its control."""
    stages = {"label": (2, 1000, 1.0), "refine": (5, 2000, 2.0), "distil": (5, 500, 1.0)}
    for name, algorithm, success in (
        ("mse0", "rpd_mse", 0.9),
        ("mse1", "rpd_mse", 0.9),
        ("ppd", "ppd", 0.2),
        ("dagger", "dagger", 0.4),
        ("dagger_ppd", "dagger_ppd", 0.1),
    ):
        more = {"distill__num_samples": 4, "distill__std_floor": 0.1} if "ppd" in algorithm else {}
        seed = int(name == "mse1")
        run = make_run(tmp_path / name, algorithm, seed, (success,), refine="state", teacher=0.3, **more)
        finish_stages(run, stages)
    panels = group(find_runs([tmp_path]))
    assert [row[:4] for row in refinement.added(panels)] == [
        ("PushCube-v1, sparse, rpd_mse", "2", "-", "40% (17% to 69%)"),
        ("PushCube-v1, sparse, ppd", "1", "-", "10% (2% to 40%)"),
    ]
    assert [row[4] for row in refinement.added(panels)] == ["90% (70% to 97%)", "20% (6% to 51%)"]
    assert [row[0] for row in refinement.left(panels)] == [
        "PushCube-v1, sparse, rpd_mse, seed 0",
        "PushCube-v1, sparse, rpd_mse, seed 1",
        "PushCube-v1, sparse, ppd, seed 0",
    ]
    write_report(find_runs([tmp_path]), tmp_path / "report", videos=0)
    write_report(find_runs([tmp_path / "ppd"]), tmp_path / "alone", videos=0)
    height, width = imageio.imread(tmp_path / "report" / "stages-PushCube-v1-sparse.png").shape[:2]
    other_height, other_width = imageio.imread(tmp_path / "alone" / "stages-PushCube-v1-sparse.png").shape[:2]
    assert width / height > 1.5 > other_width / other_height, "a picture of each algorithm, side by side"


def test_stages_are_drawn_over_minutes_beside_imitation_alone(tmp_path):
    """Two seeds of a run of three stages, a control, and a run of one stage that is not part of the picture."""
    for seed in (0, 1):
        run = make_run(tmp_path / f"refined{seed}", refine="state", seed=seed, teacher=0.3)
        for stage, success in (("label", (0.0, 0.2)), ("refine", (0.5, 0.9, 0.95))):
            make_run(run / stage, success=success, seed=seed)
    make_run(tmp_path / "control", "dagger", refine="state", success=(0.2, 0.3))
    make_run(tmp_path / "pixels", success=(0.1, 0.2))
    make_run(tmp_path / "begun" / "label")
    (tmp_path / "begun" / "config.json").write_text((tmp_path / "begun" / "label" / "config.json").read_text())
    runs = find_runs([tmp_path])  # stages are parts of their runs, also of one that has no rows of its own yet
    assert len(runs) == 4
    (panel,) = group(runs)
    (found,) = panel.staged()
    refined = found.runs
    assert [run.path.name for run in refined] == ["refined0", "refined1"]
    assert [run.path.name for run in found.controls] == ["control"]
    assert list(stages_of(refined[0].path)) == ["label", "refine", "distil"]
    assert list(stages_of(found.controls[0].path)) == ["distil"]
    page = write_report(runs, tmp_path / "report").read_text()
    (picture,) = (tmp_path / "report").glob("stages-*.png")
    assert "stage after stage, PushCube-v1, sparse" in page and picture.stat().st_size > 5000
    # Minutes go on from stage to stage, and evaluations are where their iterations ended.
    at, success, end = _curve(refined[0].path / "refine", 2.0)
    seconds = np.cumsum([99.0, 4.0, 4.0])
    np.testing.assert_allclose(at, 2.0 + seconds / 60)
    assert success == [50.0, 90.0, 95.0] and end == at[-1]
