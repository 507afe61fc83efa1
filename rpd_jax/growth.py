r"""How the cost of an iteration grows with a run's settings, as a table and a plot.

    python -m rpd_jax.growth --config=configs/push_cube_sparse.py [-o growth/] [--quick] [--rows=env.num_envs] ...

Changes one setting at a time, the others as the config has them, and measures each in a process of its own: seconds of
a few iterations (`rpd_jax.profile`), divided by the frames that they collected, and the most memory that the process
and its environments' workers had together (the sum of their peaks). "order" is the power of the setting with which the
time of an iteration, and the memory, grew since the row before: 1 is linear, 0 is no growth. A setting that the machine
has no room for is a row without numbers. Iterations are of --rollout_steps steps of each environment.
"""

from rpd_jax.command.start import start

if __name__ == "__main__":
    start()

import itertools
import json
import math
import signal
import subprocess
import sys
from pathlib import Path

from absl import flags
from rich import box
from rich.console import Console
from rich.table import Table

from rpd_jax.command.flag_kinds import define_numbers
from rpd_jax.command.line import run_command
from rpd_jax.errors import UserError
from rpd_jax.markdown import markdown_table
from rpd_jax.run.console import plain_console
from rpd_jax.run.whole_file import check_can_write, write_json, write_whole

# Each setting with its values, and with those of --quick.
ROWS = {
    "env.num_envs": ((4, 8, 16, 32, 64, 128), (2, 4)),
    "env.image_size": ((64, 96, 128, 192, 256), (40, 64)),
    "env.workers": ((1, 2), (1, 2)),
    "distill.averaged": ((1, 2, 4, 10), (1, 4)),
    "distill.replay": ((0, 10_000, 30_000, 100_000), (0, 512)),
}
# Settings that go with another one; as many replayed frames in a minibatch as in the cpu profile.
_TOGETHER = {
    "env.image_size": lambda size: {"student.image_size": size},
    "distill.replay": lambda rows: {"distill.replay_batch": 128 * bool(rows), "distill.replay_coef": float(bool(rows))},
}
_QUICK = {"env.num_envs": 2, "env.image_size": 40, "student.image_size": 40, "env.workers": 1, "ppo.num_minibatches": 2}
_QUICK |= {"distill.replay": 512, "distill.replay_batch": 16, "distill.replay_coef": 1.0}
# What sentences hold that say that a machine has no room for a setting; the last one's, that a worker was killed.
_NO_ROOM = ("error: Memory ran out", "error: The frames that a device keeps take", "(if memory ran out, lower env.")
_STAGES = ("simulate+render", "student acts", "label", "update")
_COLUMNS = (*_STAGES, "total", "ms/frame", "order", "peak MiB", "order")

_CONFIG = flags.DEFINE_string("config", "configs/push_cube_sparse.py", "The settings: a file of configs/.")
_OUTPUT = flags.DEFINE_string("output", "growth", "Folder for growth.json and growth.png.", short_name="o")
_ROWS = flags.DEFINE_list("rows", list(ROWS), "Settings to change.")
_QUICK_MODE = flags.DEFINE_bool("quick", False, "Two small values of each setting, two environments of 40 px.")
_ITERATIONS = flags.DEFINE_integer("iterations", 2, "Iterations to measure, after one that compiles.", lower_bound=1)
_STEPS = flags.DEFINE_integer("rollout_steps", 32, "Steps of each environment in an iteration.", lower_bound=1)
_SECONDS = flags.DEFINE_float("seconds", 3600.0, "Limit for measuring one value.", lower_bound=1.0)
define_numbers("values", (0,), "Instead of the values of the one setting in --rows.", least=0)


def changes(name: str, value: float, quick: bool) -> dict[str, float]:
    """The settings that a value of one of `ROWS` goes with, itself among them."""
    return (_QUICK if quick else {}) | {name: value} | _TOGETHER.get(name, lambda _: {})(value)


def measure(config: str, settings: dict[str, float], iterations: int, limit: float) -> dict[str, float] | None:
    """Seconds of each stage for one iteration, frames, and peak MiB, of a config with `settings`; None without room.

    Raises:
        UserError: the settings are refused, or it takes more than `limit` seconds.
    """
    changed = [f"--config.{name}={value}" for name, value in settings.items()]
    command = [sys.executable, "-m", "rpd_jax.profile", f"--config={config}", f"--iterations={iterations}", "--json"]
    try:
        outcome = subprocess.run([*command, *changed], capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired as error:
        sentence = f"Measuring {', '.join(changed)} took more than {limit:.0f} s"
        raise UserError(f"{sentence}: raise --seconds, or lower --rollout_steps or --values.") from error
    if outcome.returncode == 0:
        return json.loads(outcome.stdout.splitlines()[-1])
    last = (outcome.stderr.strip().splitlines() or [""])[-1]
    # Linux ends the process that needs too much.
    if outcome.returncode == -signal.SIGKILL or any(words in outcome.stderr for words in _NO_ROOM):
        return None
    failed = f"{' '.join([*command[1:], *changed])} ended with status {outcome.returncode}: {last or 'no output'}"
    raise UserError(last.removeprefix("error: ") if last.startswith("error: ") else failed)


def orders(rows: list[dict], of: str) -> list[float]:
    """The power of the setting with which `of` grew from the row before; NaN for the first, and from or to nothing.

    Args:
        rows: with the setting's "value"; those without numbers hold no `of`.
        of: what grew.
    """
    found = [math.nan]
    for before, row in itertools.pairwise(rows):
        first, value, had, has = before["value"], row["value"], before.get(of, 0.0), row.get(of, 0.0)
        found.append(math.log(has / had) / math.log(value / first) if min(first, had, has) > 0 else math.nan)
    return found


def grown(name: str, values: list[float], console: Console) -> list[dict]:
    """Measures every value of one setting."""
    rows = []
    for value in values:
        settings = {"ppo.rollout_steps": _STEPS.value} | changes(name, value, _QUICK_MODE.value)
        numbers = measure(_CONFIG.value, settings, _ITERATIONS.value, _SECONDS.value)
        rows.append({"value": value, **(numbers or {})})
        console.print(f"{name}={value}: " + (f"{numbers['seconds']:.2f} s" if numbers else "no room"))
    return rows


def main() -> None:
    unknown = [name for name in _ROWS.value if name not in ROWS]
    if unknown:
        raise UserError(f"--rows={','.join(unknown)}: a setting that grows is one of {', '.join(ROWS)}.")
    chosen = flags.FLAGS.values if flags.FLAGS["values"].present else None
    if chosen is not None and len(_ROWS.value) != 1:
        raise UserError(f"--values are those of one setting, and --rows={','.join(_ROWS.value)} names more: give one.")
    console = plain_console(width=120)
    output = Path(_OUTPUT.value)
    check_can_write(output)
    found = {}
    for name in _ROWS.value:
        found[name] = grown(name, chosen or list(ROWS[name][_QUICK_MODE.value]), console)
        write_json(output / "growth.json", found)
    for name, rows in found.items():
        table = Table(name, *_COLUMNS, title=f"{name}: seconds of an iteration", box=box.SIMPLE)
        for cells in _cells(rows):
            table.add_row(*cells)
        console.print(table)
    write_whole(output / "growth.md", tables(found))
    plot(found, output / "growth.png")
    written = ", ".join(str(output / f"growth.{ending}") for ending in ("json", "md", "png"))
    console.print(f"Written: {written}")


def tables(found: dict[str, list[dict]]) -> str:
    """Markdown: a table of each setting, its rows as `grown` gives them."""
    return "\n\n".join(markdown_table((f"`{name}`", *_COLUMNS), _cells(rows)) for name, rows in found.items()) + "\n"


def _cells(rows: list[dict]) -> list[tuple[str, ...]]:
    """What `_COLUMNS` say of each row, its value before it."""
    cells = []
    for row, *powers in zip(rows, orders(rows, "seconds"), orders(rows, "peak_mib"), strict=True):
        value = f"{row['value']:g}"
        if "seconds" not in row:
            cells.append((value, *[""] * len(_STAGES), "no room", *[""] * 4))
            continue
        stages = [f"{row['stages'][stage]:.2f}" for stage in _STAGES]
        cost = f"{row['seconds'] / row['frames'] * 1e3:.1f}"
        time_order, memory_order = ("" if math.isnan(power) else f"{power:.2f}" for power in powers)
        total, memory = f"{row['seconds']:.2f}", f"{row['peak_mib']:.0f}"
        cells.append((value, *stages, total, cost, time_order, memory, memory_order))
    return cells


def plot(found: dict[str, list[dict]], path: Path) -> None:
    """Draws a column for each setting: seconds of an iteration by stage above, peak memory below."""
    from rpd_jax.report.figures import PALETTE, plt, replacing

    figure, grid = plt.subplots(2, len(found), figsize=(3.2 * len(found), 5.4), layout="constrained", squeeze=False)
    for column, (name, rows) in zip(grid.T, found.items(), strict=True):
        rows = [row for row in rows if "seconds" in row]
        values = [row["value"] for row in rows]
        for stage, colour in zip(_STAGES, PALETTE, strict=False):
            column[0].plot(values, [row["stages"][stage] for row in rows], color=colour, marker="o", label=stage)
        column[0].plot(values, [row["seconds"] for row in rows], color="0.35", linestyle="--", label="total")
        column[1].plot(values, [row["peak_mib"] / 1024 for row in rows], color="0.35", marker="o")
        column[0].set_title(name, fontsize=10)
        for axes in column:
            axes.set_ylim(bottom=0.0)
            axes.set_xlim(left=0.0)
            axes.locator_params(axis="x", nbins=5)
    grid[0, 0].set_ylabel("s / iteration")
    grid[1, 0].set_ylabel("peak GiB, all processes")
    grid[0, 0].legend(fontsize=7)
    with replacing(path) as scratch:
        figure.savefig(scratch, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    run_command(main)
