"""Which kernels a compiled program spends the device's time on, from JAX's profiler."""

import dataclasses
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.table import Table


@dataclasses.dataclass(frozen=True)
class Kernel:
    """What one kernel takes of a call.

    Attributes:
        name: the kernel's on a GPU, the operation's of the compiled program on a CPU.
        source: where the operation is from in the traced program, as `jit(update)/while/body/dot_general`; "" for a
            kernel of a library, whose name is its own.
        calls: a call of the program.
        ms: of all of them together, without what they call themselves.
    """

    name: str
    source: str
    calls: float
    ms: float


def measure_kernels(compiled: jax.stages.Compiled, arguments: Sequence[Any], repeats: int = 3) -> list[Kernel]:
    """The kernels of `compiled(*arguments)`, which has run before, those that take most first.

    On a CPU the times of threads that compute at once are added up.
    """
    seconds, calls = Counter(), Counter()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(repeats):
                jax.block_until_ready(compiled(*arguments))
        for path in Path(folder).rglob("*.xplane.pb"):
            for name, own in _events(jax.profiler.ProfileData.from_file(str(path))):
                seconds[name] += 1e-9 * own
                calls[name] += 1
    sources = _sources(compiled.as_text())
    return [
        Kernel(name, sources.get(_kernel_name(name), ""), calls[name] / repeats, 1e3 * took / repeats)
        for name, took in seconds.most_common()
    ]


def kernel_table(title: str, kernels: list[Kernel], most: int) -> Table:
    """The `most` kernels that take most, and the others together."""
    together = sum(kernel.ms for kernel in kernels)
    table = Table(title=f"{title}: {together:.2f} ms in kernels", title_justify="left")
    for column in ("kernel", "calls", "ms", "%", "of"):
        table.add_column(column, justify="left" if column in ("kernel", "of") else "right", overflow="fold")
    rest = kernels[most:]
    rows = kernels[:most]
    if rest:
        others = Kernel(f"{len(rest)} others", "", sum(kernel.calls for kernel in rest), sum(k.ms for k in rest))
        rows = [*rows, others]
    for kernel in rows:
        share = kernel.ms / together if together else 0.0
        table.add_row(kernel.name[:60], f"{kernel.calls:.0f}", f"{kernel.ms:.3f}", f"{share:.0%}", kernel.source)
    return table


def _events(profile: Any) -> Iterator[tuple[str, float]]:
    """(name, nanoseconds of its own) of everything that ran on a device."""
    for plane in profile.planes:
        on_gpu = plane.name.startswith("/device:GPU")
        for line in plane.lines:
            if on_gpu and line.name.startswith("Stream"):
                yield from _own_times((event.name, event.start_ns, event.duration_ns) for event in line.events)
            elif not on_gpu:
                yield from _own_times(
                    (event.name, event.start_ns, event.duration_ns)
                    for event in line.events
                    if "hlo_op" in {name for name, _ in event.stats}
                )


def _own_times(events: Iterable[tuple[str, float, float]]) -> Iterator[tuple[str, float]]:
    """(name, duration without that of the events inside it), of (name, start, duration) of one thread or stream."""
    open_events: list[list[Any]] = []  # name, end, time of its own
    for name, start, duration in sorted(events, key=lambda event: (event[1], -event[2])):
        while open_events and open_events[-1][1] <= start:
            done = open_events.pop()
            yield done[0], done[2]
        if open_events:
            open_events[-1][2] -= duration
        open_events.append([name, start + duration, duration])
    for name, _, own in open_events:
        yield name, own


def _sources(hlo: str) -> dict[str, str]:
    """Where each operation of a compiled program's text is from, by the name of its kernel."""
    found = re.findall(r"%([\w.\-]+) = [^\n]*?metadata=\{[^}\n]*?op_name=\"([^\"]*)\"", hlo)
    return {_kernel_name(name): source for name, source in found}


def _kernel_name(operation: str) -> str:
    return re.sub(r"[.\-]", "_", operation)
