"""Command line: `python -m octo_teacher.demos record|render|inspect`."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rpd_jax.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m octo_teacher.demos", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    record = commands.add_parser("record", help="record demonstrations of a scripted expert")
    record.add_argument("--task", required=True, help="for example PushCube-v1")
    record.add_argument("--episodes", type=int, required=True, help="episodes that the file shall hold in the end")
    _add_drawing(record)
    record.add_argument("--seed", type=int, default=0, help="seed of the first episode (default 0)")
    record.add_argument("--noise", type=float, default=0.0, help="greatest action noise of an episode (default 0)")

    render = commands.add_parser("render", help="draw ManiSkill's demos through the human camera, or from elsewhere")
    render.add_argument("input", type=Path, help="h5 file with env_states, its json beside it")
    render.add_argument("--episodes", type=int, default=None, help="episodes that the file shall hold (default: all)")
    _add_drawing(render)
    metres = {"type": float, "nargs": 3, "default": (0.0, 0.0, 0.0), "metavar": ("X", "Y", "Z")}
    render.add_argument("--eye-offset", **metres, help="metres added to the camera's position")
    render.add_argument("--target-offset", **metres, help="metres added to the point that the camera looks at")
    render.add_argument("--fov", type=float, default=None, help="vertical field of view, radians (default: the task's)")

    inspect = commands.add_parser("inspect", help="print and plot what demos hold")
    inspect.add_argument("path", type=Path, help="h5 file, or folder of an RLDS or LeRobot dataset")
    inspect.add_argument("--camera", default="", help="name of the camera in the demos")
    inspect.add_argument("--plot", type=Path, default=None, help="PNG to write (default: beside the demos)")

    options = parser.parse_args(arguments)
    try:
        if options.command == "record":
            _record(options)
        elif options.command == "render":
            _render(options)
        else:
            from octo_teacher.demos.inspect import inspect_file

            inspect_file(options.path, options.plot, options.camera)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped; the same command continues.", file=sys.stderr)
        return 130
    return 0


def _add_drawing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", type=Path, required=True, help="h5 file; extended if it exists")
    parser.add_argument("--image-size", type=int, default=128, help="frame width and height, pixels (default 128)")
    parser.add_argument("--mesh-detail", type=float, default=1.0, help="fraction of the robot's triangles (default 1)")
    parser.add_argument("--keep-failures", action="store_true", help="store episodes without success too")
    parser.add_argument("--workers", type=int, default=None, help="processes (default: one per core)")


def _record(options: argparse.Namespace) -> None:
    from octo_teacher.demos.record import Recording, record

    recording = Recording(**_fields(options))
    with _progress(recording.task, recording.episodes) as show:
        demos = record(recording, lambda stored, tried, episode: show(stored, tried))
    _print_size(demos)


def _render(options: argparse.Namespace) -> None:
    from octo_teacher.demos.render import Rendering, render

    fields = _fields(options)
    rendering = Rendering(
        **{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    )
    with _progress(rendering.input.name, None) as show:
        counts = iter(range(1, sys.maxsize))
        demos = render(rendering, lambda stored, wanted: show(stored, next(counts), wanted))
    _print_size(demos)


def _fields(options: argparse.Namespace) -> dict:
    return {name: value for name, value in vars(options).items() if name != "command"}


def _print_size(demos) -> None:
    steps = sum(entry["elapsed_steps"] for entry in demos.entries)
    print(f"{demos.path}: {len(demos)} episodes, {steps} steps, {demos.path.stat().st_size / 1e6:.1f} MB")


@contextmanager
def _progress(title: str, total: int | None) -> Iterator:
    """Yields show(stored episodes, episodes done in this call, total if it is known only now)."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("[progress.description]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        bar = progress.add_task(title, total=total, rate="starting workers")

        def show(stored: int, done: int, total: int | None = None) -> None:
            elapsed = progress.tasks[bar].elapsed or 1e-9
            total = {} if total is None else {"total": total}
            progress.update(bar, completed=stored, rate=f"{done / elapsed:.1f} episodes/s", **total)

        yield show


if __name__ == "__main__":
    sys.exit(main())
