"""Numbers of a report: curves over seeds, intervals, interquartile means, steps to a success rate."""

from collections.abc import Mapping, Sequence

import numpy as np

from rpd_jax.acting.episodes import wilson_interval
from rpd_jax.report.runs import Run, Series

_RESAMPLES = 5_000


def mean_curve(runs: Sequence[Run], name: str, window: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and standard deviation over seeds of a logged number.

    Args:
        runs: of one series.
        name: in metrics.jsonl.
        window: each run's values are averaged over so many of its logged values first, looking back.

    Returns:
        steps [K], where any run logged it; mean [K] over the runs that have come so far, linear between their own
        steps; standard deviation [K] (unbiased; NaN where there is only one run).
    """
    columns = [run.column(name) for run in runs]
    columns = [(steps, _running_mean(values, window)) for steps, values in columns if len(steps)]
    if not columns:
        return np.zeros(0), np.zeros(0), np.zeros(0)
    grid = np.unique(np.concatenate([steps for steps, _ in columns]))
    curves = np.stack([np.interp(grid, *column, left=np.nan, right=np.nan) for column in columns])
    mean, count = np.nanmean(curves, axis=0), np.sum(np.isfinite(curves), axis=0)
    squares = np.nansum(np.square(curves - mean), axis=0)
    return grid, mean, np.sqrt(np.where(count > 1, squares / np.maximum(count - 1, 1), np.nan))


def steps_to_success(run: Run, threshold: float) -> float:
    """The first evaluation's step with at least this success; infinity if there is none."""
    steps, success = run.column("eval/success")
    reached = steps[success >= threshold]
    return float(reached[0]) if len(reached) else float("inf")


def final_success(series: Series) -> dict[str, float] | None:
    """`pooled_success` of the finished runs of a series."""
    return pooled_success([run.results["student"] for run in series.runs if run.results is not None])


def pooled_success(summaries: Sequence[Mapping[str, float]]) -> dict[str, float] | None:
    """Success over seeds: "mean" with 95% bounds "low" and "high"; None if there is no seed.

    The bounds are the wider ones of two intervals: the percentile bootstrap over seeds, and Wilson's over all episodes,
    since a few seeds that agree do not tell how many more episodes would have differed.

    Args:
        summaries: "success" and "episodes" of each seed.
    """
    if not summaries:
        return None
    scores = [summary["success"] for summary in summaries]
    episodes = sum(round(summary["episodes"]) for summary in summaries)
    successes = sum(round(summary["success"] * summary["episodes"]) for summary in summaries)
    low, high = wilson_interval(successes, episodes)
    if len(scores) > 1:
        over_seeds = bootstrap_interval([scores], np.mean)
        low, high = min(low, over_seeds[0]), max(high, over_seeds[1])
    return {"mean": float(np.mean(scores)), "low": low, "high": high}


def interquartile_mean(scores: np.ndarray, axis: int = -1) -> np.ndarray:
    """Mean of the middle half of the scores along an axis (Agarwal et al. 2021)."""
    from scipy import stats  # here, and below: a run's own curve needs none of it, and it takes a second to load

    return stats.trim_mean(scores, 0.25, axis=axis)


def aggregate(scores: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Interquartile mean over all runs of all tasks: "iqm" with 95% bounds "low" and "high", "runs" and "tasks".

    The bounds come from the stratified bootstrap (Agarwal et al. 2021): runs are drawn anew within each task. They are
    NaN where a task has only one run. rliable 1.2, the authors' package, gives the same numbers (a test holds some),
    but cannot be imported beside pandas 3, and needs four packages that nothing else here does.

    Args:
        scores: task -> one score per seed.
    """
    samples = [list(values) for values in scores.values()]
    pooled, low, high = np.concatenate(samples), float("nan"), float("nan")
    if min(map(len, samples)) > 1:
        low, high = bootstrap_interval(samples, interquartile_mean)
    iqm = float(interquartile_mean(pooled))
    return {"iqm": iqm, "low": low, "high": high, "runs": len(pooled), "tasks": len(samples)}


def bootstrap_interval(samples: Sequence[Sequence[float]], statistic) -> tuple[float, float]:
    """95% percentile bootstrap of statistic(pooled samples, axis=...); values are drawn anew within each sample."""
    if all(len(set(sample)) == 1 for sample in samples):  # scipy refuses samples without spread
        return (float(statistic(np.concatenate(samples))),) * 2
    from scipy import stats

    result = stats.bootstrap(
        [np.asarray(sample, float) for sample in samples],
        lambda *resampled, axis: statistic(np.concatenate(resampled, axis=axis), axis=axis),
        n_resamples=_RESAMPLES,
        vectorized=True,
        paired=False,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def seconds_per_stage(runs: Sequence[Run]) -> dict[str, float]:
    """Mean seconds per iteration of each stage, first iterations left out (they hold the compilation); {} if none."""
    rows = [row for run in runs for row in (run.rows[1:] or run.rows)]
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if name.startswith("time/")]
    return {name.removeprefix("time/"): float(np.mean([row.get(name, 0.0) for row in rows])) for name in names}


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    return np.array([values[max(0, i + 1 - window) : i + 1].mean() for i in range(len(values))])
