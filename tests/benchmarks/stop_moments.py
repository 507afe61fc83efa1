r"""Stops each command at many moments after its start, and tells how it ended.

    PYTHONPATH=tests python tests/benchmarks/stop_moments.py --run runs/NAME --demos demos/NAME.h5 [--every 0.2]

SIGINT and SIGTERM in turn, in the first ten seconds. Each must end within two seconds, or save and end, with status 130
and no trace (status 0: it was done before). The table has one row per command; what went wrong is printed at once.
"""

import argparse
import signal
import sys
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from stopping import finetune, stop_after, train

_SECONDS_TO_END = 2.0


def commands(folder: Path, run: Path, demos: Path) -> dict[str, list[str]]:
    """Name -> command, in a folder of its own."""
    module = [sys.executable, "-m"]
    return {
        "train.py": train(folder / "run", total_steps=10**6),
        "finetune_octo.py": finetune(folder / "run", demos.absolute()),
        "evaluate": [*module, "rpd_jax.evaluate", "--teacher=octo-nano", f"--output={folder / 'table'}"],
        "export": [*module, "rpd_jax.export", f"--run={run.absolute()}", f"--output={folder / 'policy'}"],
        "report": [*module, "rpd_jax.report", str(run.absolute()), f"--output={folder / 'report'}"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="a run of train.py, to export and report")
    parser.add_argument("--demos", type=Path, required=True, help="to fine-tune on")
    parser.add_argument("--every", type=float, default=0.2, help="seconds between the moments (default: 0.2)")
    parser.add_argument("--until", type=float, default=10.0, help="seconds, the last moment (default: 10)")
    parser.add_argument("--only", nargs="+", help="names of the commands, for example report evaluate (default: all)")
    args = parser.parse_args()
    table = Table("command", "moments", "stopped at once", "saved first", "done before", "wrong", "longest end, s")
    with tempfile.TemporaryDirectory() as folder:
        for name in args.only or commands(Path(folder), args.run, args.demos):
            outcomes = []
            for index, moment in enumerate(np.arange(0.0, args.until + 1e-9, args.every)):
                own = Path(folder) / f"{name}-{index}"
                own.mkdir()
                number = (signal.SIGINT, signal.SIGTERM)[index % 2]
                outcome = stop_after(commands(own, args.run, args.demos)[name], moment, number)
                outcomes.append(outcome)
                if not outcome.is_clean or (not _saved(outcome) and outcome.seconds > _SECONDS_TO_END):
                    print(f"{name} after {moment:.1f} s, {number.name}: {outcome}", flush=True)
            wrong = sum(not outcome.is_clean for outcome in outcomes)
            done, saved = (sum(test(o) for o in outcomes) for test in (lambda o: o.status == 0, _saved))
            longest = max(outcome.seconds for outcome in outcomes if not _saved(outcome))
            at_once = len(outcomes) - wrong - done - saved
            table.add_row(name, *map(str, (len(outcomes), at_once, saved, done, wrong)), f"{longest:.1f}")
    Console().print(table)


def _saved(outcome) -> bool:
    return "saved after" in outcome.output


if __name__ == "__main__":
    main()
