"""Exports a run's student: python -m rpd_jax.export --run=DIR [-o policy/] [--checkpoint=ITERATION]

Writes the policy as a jax.export program, an ONNX graph, and weights with a script that runs them with numpy alone,
checks that all three give the same actions, and measures them beside the teacher.
"""

from rpd_jax.command.start import start

if __name__ == "__main__":
    start()

import os

# As in train.py.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

from absl import flags

from rpd_jax.command.line import run_command

_RUN = flags.DEFINE_string("run", None, "The run's directory.", required=True)
_OUTPUT = flags.DEFINE_string("output", "policy", "The folder to write.", short_name="o")
_CHECKPOINT = flags.DEFINE_integer("checkpoint", None, "The checkpoint's iteration; the newest one if not given.")
_LATENCY = flags.DEFINE_bool("latency", True, "Measure size and latency, the teacher's too.")


def main() -> None:
    import shlex
    from pathlib import Path

    from rich.table import Table

    from rpd_jax.evaluate.trained_student import load_student
    from rpd_jax.export import latency
    from rpd_jax.export.policy import export_policy
    from rpd_jax.export.readme import write_readme
    from rpd_jax.run.console import plain_console

    folder, console = Path(_OUTPUT.value), plain_console(soft_wrap=True)
    student = load_student(_RUN.value, _CHECKPOINT.value)
    differences = export_policy(student, folder)
    console.print(
        f"Same actions: ONNX within {differences['onnx']:.0e} of JAX, numpy within {differences['numpy']:.0e}."
    )
    rows = latency.measure(student, folder) if _LATENCY.value else []
    if rows:
        table = Table(*latency.COLUMNS, title=latency.machine(), title_justify="left")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    write_readme(folder, _RUN.value, rows)
    console.print(f"Written: {folder}. Try it: {shlex.join(['python', str(folder / 'run_numpy.py')])}")


if __name__ == "__main__":
    run_command(main)
