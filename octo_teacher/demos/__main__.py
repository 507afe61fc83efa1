"""Command line: `python -m octo_teacher.demos record|inspect`."""

import argparse
import sys
from pathlib import Path

from rpd_jax.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m octo_teacher.demos", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    record = commands.add_parser("record", help="record demonstrations of a scripted expert")
    record.add_argument("--task", required=True, help="for example PushCube-v1")
    record.add_argument("--episodes", type=int, required=True, help="episodes that the file shall hold in the end")
    record.add_argument("-o", "--output", type=Path, required=True, help="h5 file; extended if it exists")
    record.add_argument("--seed", type=int, default=0, help="seed of the first episode (default 0)")
    record.add_argument("--image-size", type=int, default=128, help="frame width and height, pixels (default 128)")
    record.add_argument("--mesh-detail", type=float, default=1.0, help="fraction of the robot's triangles (default 1)")
    record.add_argument("--noise", type=float, default=0.0, help="greatest action noise of an episode (default 0)")
    record.add_argument("--keep-failures", action="store_true", help="store episodes without success too")
    record.add_argument("--workers", type=int, default=None, help="processes (default: one per core)")

    inspect = commands.add_parser("inspect", help="print and plot what a demo file holds")
    inspect.add_argument("file", type=Path)
    inspect.add_argument("--plot", type=Path, default=None, help="PNG to write (default: beside the file)")

    options = parser.parse_args(arguments)
    try:
        if options.command == "record":
            _record(options)
        else:
            from octo_teacher.demos.inspect import inspect_file

            inspect_file(options.file, options.plot)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped; the same command continues.", file=sys.stderr)
        return 130
    return 0


def _record(options: argparse.Namespace) -> None:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from octo_teacher.demos.record import Recording, record

    recording = Recording(**{name: value for name, value in vars(options).items() if name != "command"})
    columns = (
        TextColumn("[progress.description]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        bar = progress.add_task(recording.task, total=recording.episodes, rate="starting workers")

        def show(stored: int, tried: int, episode) -> None:
            elapsed = progress.tasks[bar].elapsed or 1e-9
            progress.update(bar, completed=stored, rate=f"{tried / elapsed:.1f} episodes/s")

        demos = record(recording, show)
    steps = sum(entry["elapsed_steps"] for entry in demos.entries)
    print(f"{demos.path}: {len(demos)} episodes, {steps} steps, {demos.path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    sys.exit(main())
