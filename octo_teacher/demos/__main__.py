"""Demos: python -m octo_teacher.demos record --task=PushCube-v1 --episodes=400 -o demos/push_cube.h5

    record               demonstrations of a scripted expert, for finetune_octo.py
    render FILE          draws ManiSkill's demos (with env_states) through the task's camera, or from elsewhere
    inspect PATH         prints and plots what an h5 file, or the folder of an RLDS or LeRobot dataset, holds

record and render extend --output if it exists; a call that was stopped continues with the same command.
"""

from rpd_jax.command.start import start

if __name__ == "__main__":
    start()

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from absl import flags

from rpd_jax.command.flag_kinds import define_numbers
from rpd_jax.command.line import run_command
from rpd_jax.errors import UserError

# What each command needs, and what it takes besides; the words after the command, other than flags.
_DRAWING = ("image_size", "mesh_detail", "keep_failures", "workers")
_NEEDED = {"record": ("task", "episodes", "output"), "render": ("output",), "inspect": ()}
_TAKEN = {
    "record": (*_DRAWING, "seed", "noise"),
    "render": (*_DRAWING, "episodes", "eye_offset", "target_offset", "fov"),
    "inspect": ("camera", "plot"),
}
_WORDS = {"record": (), "render": ("an h5 file",), "inspect": ("an h5 file, or a folder",)}
_FLAGS = sorted({name for names in (*_NEEDED.values(), *_TAKEN.values()) for name in names})


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the flags of all three commands."""
    kinds = (flags.DEFINE_string, flags.DEFINE_integer, flags.DEFINE_float)
    string, integer, number = (partial(define, flag_values=values) for define in kinds)
    string("task", None, "record: the task, for example PushCube-v1.")
    integer("episodes", None, "record, render: episodes that the file shall hold in the end; render: by default all.")
    string("output", None, "record, render: the h5 file.", short_name="o")
    integer("seed", 0, "record: seed of the first episode.")
    number("noise", 0.0, "record: greatest action noise of an episode.")
    integer("image_size", 128, "record, render: width and height of the frames, pixels.", lower_bound=1)
    text = "record, render: fraction of the robot's triangles."
    number("mesh_detail", 1.0, text, lower_bound=0.001, upper_bound=1.0)
    flags.DEFINE_bool("keep_failures", False, "record, render: store episodes without success too.", values)
    integer("workers", None, "record, render: processes; by default one per core.", lower_bound=1)
    for name, what in (("eye_offset", "the camera's position"), ("target_offset", "the point that it looks at")):
        text = f"render: metres added to {what}, such as 0.0,0.2,0.0."
        define_numbers(name, (0.0, 0.0, 0.0), text, kind=float, least=None, length=3, values=values)
    number("fov", None, "render: vertical field of view, radians; by default the task's.")
    string("camera", "", "inspect: name of the camera in the demos.")
    string("plot", None, "inspect: the PNG to write; by default beside the demos.")


def joined_offsets(argv: Sequence[str]) -> list[str]:
    """A command line in which --eye-offset 0.2 0 0, three words after the flag, is --eye_offset=0.2,0,0."""
    words, joined = list(argv), []
    while words:
        word = words.pop(0)
        if word.lstrip("-").replace("-", "_") in ("eye_offset", "target_offset") and all(map(_is_number, words[:3])):
            word, words = f"{word}={','.join(words[:3])}", words[3:]
        joined.append(word)
    return joined


def run(words: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> None:
    """Runs the command that `chosen` finds; raises UserError where that does, and for what the command refuses."""
    command, paths, options = chosen(words, values)
    try:
        {"record": _record, "render": _render, "inspect": _inspect}[command](*paths, **options)
    except KeyboardInterrupt:
        if command != "inspect":
            print("Stopped; the same command continues.", file=sys.stderr)
        raise


def chosen(words: Sequence[str], values: flags.FlagValues) -> tuple[str, list[Path], dict[str, Any]]:
    """What a command line asks for.

    Args:
        words: the command and its file; what is no flag.
        values: parsed flags of `define_flags`.

    Returns:
        The command, its file if it takes one, and its options by name.

    Raises:
        UserError: no such command, a file too many or too few, a flag that it needs or that has no effect on it.
    """
    command, *paths = words
    if command not in _NEEDED:
        raise UserError(f"{command!r} is not a command: the commands are {', '.join(_NEEDED)}.")
    if len(paths) != len(_WORDS[command]):
        wanted = _WORDS[command][0] if _WORDS[command] else "no file: the one to write is --output"
        raise UserError(f"{command} takes {wanted} ({shlex.join(paths) or 'none'} was given).")
    known = _NEEDED[command] + _TAKEN[command]
    for name in _FLAGS:
        if values[name].present and name not in known:
            raise UserError(f"--{name} has no effect on {command}: leave it out.")
    for name in _NEEDED[command]:
        if values[name].value is None:
            raise UserError(f"--{name} is missing, which {command} needs: see --help.")
    return command, [Path(path) for path in paths], {name: values[name].value for name in known}


def _record(output: str, **options) -> None:
    from octo_teacher.demos.record import Recording, record

    recording = Recording(output=Path(output), **options)
    with _progress(recording.task, recording.episodes) as show:
        demos = record(recording, lambda stored, tried, episode: show(stored, tried))
    _print_size(demos)


def _render(file: Path, output: str, eye_offset: Sequence[float], target_offset: Sequence[float], **options) -> None:
    from octo_teacher.demos.render import Rendering, render

    offsets = {"eye_offset": tuple(eye_offset), "target_offset": tuple(target_offset)}
    rendering = Rendering(file, Path(output), **offsets, **options)
    with _progress(rendering.input.name, None) as show:
        counts = iter(range(1, sys.maxsize))
        demos = render(rendering, lambda stored, wanted: show(stored, next(counts), wanted))
    _print_size(demos)


def _inspect(path: Path, plot: str | None, camera: str) -> None:
    from octo_teacher.demos.inspect import inspect_file

    inspect_file(path, None if plot is None else Path(plot), camera)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _print_size(demos) -> None:
    steps = sum(entry["elapsed_steps"] for entry in demos.entries)
    print(f"{demos.path}: {len(demos)} episodes, {steps} steps, {demos.path.stat().st_size / 1e6:.1f} MB")


@contextmanager
def _progress(title: str, total: int | None) -> Iterator:
    """Yields show(stored episodes, episodes done in this call, total if it is known only now)."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", "progress.description", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}", markup=False),
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
    define_flags()
    sys.argv[:] = joined_offsets(sys.argv)
    run_command(run, positional="The command (record, render or inspect)")
