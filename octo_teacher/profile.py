r"""Where an Octo teacher's time goes: `python -m octo_teacher.profile --architecture=octo-small-1.5 --batch=1,8`.

For every batch size, precision and number of samples: compile time, time per call, frames per second, FLOPs, share of
the device's measured matmul rate, and memory; then the same time split into image stem, T5 with the language prefix,
transformer and head. `--plain` adds the straightforward path, which the fast one is measured against: T5 for every row,
goal images convolved, the full sequence through flax's own attention, all rows of the last layer, and every sample a
row of its own.
`--count` only counts what a call has to do on a CUDA device.
`--label 6400` labels that many frames in one call and prints the most memory it took; `--threads 1` keeps XLA to one
thread of the CPU.
"""

import os

from rpd_jax.command.start import start
from rpd_jax.run.compiled import FOLDER

if __name__ == "__main__":
    os.environ.setdefault(FOLDER, "")  # it tells how long compiling takes
    start()

import dataclasses
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from octo_teacher.model.architectures import SIZES, architecture
from octo_teacher.model.octo_module import create_module, param_shapes
from octo_teacher.model.token_groups import TokenGroup
from octo_teacher.octo_model import OctoModel, trace_sample_actions
from octo_teacher.teacher import PRECISIONS, OctoTeacher
from rpd_jax.action_convention import ACTION_DIM
from rpd_jax.arithmetic import Work, count_traced, matmul_rate, timings
from rpd_jax.command.flag_kinds import define_numbers
from rpd_jax.command.line import run_command
from rpd_jax.kernels import Kernel, kernel_table, measure_kernels
from rpd_jax.run.console import plain_console

INSTRUCTION = "push the cube away from the robot base"


@dataclasses.dataclass
class Row:
    """One line of the table; times in milliseconds, memory in bytes, parts None where they were not measured.

    `cpu_ms` is the processor time of a call: on a crowded machine it tells more than the time on the clock.
    """

    path: str
    precision: str
    batch: int
    samples: int
    compile_s: float
    call_ms: float
    cpu_ms: float
    frames_per_s: float
    gflop: float
    matmul_share: float
    memory_bytes: int
    stem_ms: float | None = None
    t5_once_ms: float | None = None
    transformer_ms: float | None = None
    head_ms: float | None = None
    kernels: list[Kernel] | None = None


class FixedIds:
    """Token ids for any text, where no tokenizer is at hand: time does not depend on them."""

    def __init__(self, tokens: int):
        self.tokens = tokens

    def encode(self, texts: list[str]) -> dict[str, np.ndarray]:
        """Returns {"input_ids", "attention_mask"} int64 [B, tokens]."""
        ids = np.arange(self.tokens) % 30 + 1
        return {
            "input_ids": np.tile(ids, (len(texts), 1)),
            "attention_mask": np.ones((len(texts), self.tokens), np.int64),
        }


def random_model(name: str) -> OctoModel:
    """Returns a published architecture with random weights, and fixed token ids for any text."""
    config, batch = architecture(name)
    module = create_module(config)
    random = np.random.default_rng(0)
    # Drawn in numpy: compiling the network's own initialisers takes far longer than anything measured here.
    params = jax.tree.map(
        lambda leaf: jnp.asarray(random.standard_normal(leaf.shape, np.float32) * 0.02), param_shapes(module, batch)
    )
    tokens = batch["task"]["language_instruction"]["input_ids"].shape[1]
    return OctoModel(
        module=module,
        config=config,
        text_processor=FixedIds(tokens),
        params=params,
        example_batch=batch,
        dataset_statistics={"random": {"action": {"mean": [0.0] * ACTION_DIM, "std": [1.0] * ACTION_DIM}}},
    )


def median_ms(call: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Median time on the clock, and of the processor, of `call` after one warm-up call, milliseconds."""
    clock, processor = zip(*timings(call, repeats), strict=True)
    return 1e3 * statistics.median(clock), 1e3 * statistics.median(processor)


def compile_and_measure(
    traced: jax.stages.Traced, args: tuple[Any, ...], repeats: int
) -> tuple[jax.stages.Compiled, tuple[Any, ...]]:
    """Compiles and calls a program.

    Returns:
        The program, and seconds to compile, milliseconds per call (clock, processor), FLOPs, bytes that a call holds.
    """
    start = time.perf_counter()
    compiled = traced.lower().compile()
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    used = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes if memory else 0
    flops = count_traced(traced.jaxpr, jax.default_backend()).flops
    return compiled, (seconds, *median_ms(lambda: compiled(*args), repeats), flops, used)


def profile_fast(
    model: OctoModel,
    precision: str,
    batch: int,
    samples: int,
    peak: float,
    repeats: int,
    dataset: str | None,
    kernels: bool = False,
) -> Row:
    """Measures `OctoTeacher` on random frames, and its parts; with `kernels` also what the device does in a call."""
    teacher = OctoTeacher(model, precision=precision, chunk_size=batch, dataset=dataset)
    traced, args = teacher.trace(random_frames(teacher, batch), INSTRUCTION, jax.random.key(0), samples)
    compiled, (seconds, call_ms, cpu_ms, flops, used) = compile_and_measure(traced, args, repeats)
    row = _row("fast", precision, batch, samples, seconds, call_ms, cpu_ms, flops, used, peak)
    row.kernels = measure_kernels(compiled, args) if kernels else None
    parts = measure_parts(teacher, batch, samples, repeats)
    row.stem_ms, row.t5_once_ms, row.head_ms = parts["stem"], parts["t5"], parts["head"]
    row.transformer_ms = max(0.0, call_ms - parts["stem"] - parts["head"])
    return row


def profile_plain(model: OctoModel, batch: int, samples: int, peak: float, repeats: int) -> Row:
    """Measures the straightforward path; samples are rows of their own."""
    model, rows = straightforward(model), batch * samples
    camera = OctoTeacher(model, dataset=_any_dataset(model)).camera
    shape = model.example_batch["observation"][camera].shape[2:]
    frames = np.random.default_rng(0).integers(0, 256, (rows, 1, *shape), dtype=np.uint8)
    observations = {camera: jnp.asarray(frames), "timestep_pad_mask": jnp.ones((rows, 1), bool)}
    traced, args = trace_sample_actions(model, observations, model.create_tasks(texts=[INSTRUCTION] * rows))
    _, (seconds, call_ms, cpu_ms, flops, used) = compile_and_measure(traced, args, repeats)
    return _row("plain", "float32", batch, samples, seconds, call_ms, cpu_ms, flops, used, peak)


def straightforward(model: OctoModel) -> OctoModel:
    """Returns the same model, its transformer written without thought of speed; see `Transformer`."""
    transformer = model.module.octo_transformer
    kwargs = (*transformer.transformer_kwargs, ("straightforward", True))
    return model.replace(module=model.module.clone(octo_transformer=transformer.clone(transformer_kwargs=kwargs)))


def measure_parts(teacher: OctoTeacher, batch: int, samples: int, repeats: int) -> dict[str, float]:
    """Milliseconds of the image stem, of T5 with the language prefix (once per instruction), and of the head."""
    module, params = teacher.module, {"params": teacher.params}
    transformer, head = module.octo_transformer, module.heads["action"]
    rgb = random_frames(teacher, batch)[:, None]
    tasks = teacher.tasks(INSTRUCTION)

    def stem(params: Any, rgb: jax.Array) -> Any:
        def run(m: Any) -> list[Any]:
            observations = {teacher.camera: rgb}
            tokenizers = m.octo_transformer.observation_tokenizers.values()
            groups = [tokenizer(observations, tasks, train=False) for tokenizer in tokenizers]
            return [group.tokens for group in groups if group is not None]

        return module.apply(params, method=run)

    groups = jax.eval_shape(
        lambda params, rgb: module.apply(
            params,
            {teacher.camera: rgb},
            tasks,
            jnp.ones((1, 1), bool),
            method=lambda m, *args: m.octo_transformer(*args),
        ),
        params,
        rgb[:1],
    )
    size = groups[head.readout_key].tokens.shape[-2]
    tokens = jnp.zeros((batch, 1, size, transformer.token_embedding_size), transformer.dtype)
    outputs = {head.readout_key: TokenGroup(tokens, jnp.ones(tokens.shape[:-1], bool))}

    def sample(params: Any, outputs: Any, key: jax.Array) -> jax.Array:
        return module.apply(
            params,
            method=lambda m: m.heads["action"].predict_action(outputs, rng=key, sample_shape=(samples,)),
        )

    stem, sample = jax.jit(stem), jax.jit(sample)
    encode = jax.jit(lambda params, tasks: module.apply(params, tasks, method="encode_prefix"))
    return {
        "stem": median_ms(lambda: stem(params, rgb), repeats)[0],
        "t5": median_ms(lambda: encode(params, tasks), repeats)[0],
        "head": median_ms(lambda: sample(params, outputs, jax.random.key(0)), repeats)[0],
    }


def random_frames(teacher: OctoTeacher, batch: int) -> jax.Array:
    """Returns uint8 [batch, H, W, 3] of the model's own size."""
    frames = np.random.default_rng(0).integers(0, 256, (batch, *teacher.image_size, 3), dtype=np.uint8)
    return jnp.asarray(frames)


@dataclasses.dataclass
class Labelling:
    """What labelling many frames in one call took; memory in bytes.

    `peak_bytes` is the most that the device held, frames and weights included; on a CPU, that the process held.
    """

    precision: str
    samples: int
    frames: int
    chunk: int
    seconds: float
    frames_bytes: int
    weights_bytes: int
    before_bytes: int
    peak_bytes: int


def profile_labelling(model: OctoModel, precision: str, frames: int, samples: int) -> Labelling:
    """Labels random frames in one call of `OctoTeacher.act`, with the chunk size it chooses itself."""
    teacher = OctoTeacher(model, precision=precision, dataset=_any_dataset(model))
    chunk = random_frames(teacher, teacher.chunk_size)
    seconds = median_ms(lambda: teacher.act(chunk, INSTRUCTION, jax.random.key(0), samples), 1)[0] / 1e3
    print(f"{frames} frames: about {seconds * frames / len(chunk):.0f} s", file=sys.stderr, flush=True)
    rgb = jax.block_until_ready(jnp.tile(chunk, (-(-frames // len(chunk)), 1, 1, 1))[:frames])
    before = _held_bytes()
    start = time.perf_counter()
    jax.block_until_ready(teacher.act(rgb, INSTRUCTION, jax.random.key(0), samples))
    seconds = time.perf_counter() - start
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(teacher.params))
    return Labelling(
        precision, samples, frames, len(chunk), seconds, rgb.nbytes, weights, before, max(before, _peak_bytes())
    )


@dataclasses.dataclass
class Counted:
    """What one call has to do on a CUDA device; see `arithmetic.Work`."""

    precision: str
    batch: int
    samples: int
    work: Work


def count_labels(model: OctoModel, precision: str, batch: int, samples: int) -> Counted:
    """Counts a call of `OctoTeacher` without running it."""
    teacher = OctoTeacher(model, precision=precision, chunk_size=batch, dataset=_any_dataset(model))
    traced, _ = teacher.trace(random_frames(teacher, batch), INSTRUCTION, jax.random.key(0), samples)
    return Counted(precision, batch, samples, count_traced(traced.jaxpr, "cuda"))


def format_counted(counted: Counted) -> str:
    """Returns one line about it."""
    work = counted.work
    return (
        f"{counted.batch} frames, {counted.samples} samples each, {counted.precision}: {work.flops / 1e9:.1f} GFLOP in "
        f"products, {work.bytes / 1e9:.2f} GB read and written, largest array {work.largest / 1e6:.1f} MB"
    )


def format_labelling(labelling: Labelling) -> str:
    """Returns one line about it."""
    gib = 2**-30
    return (
        f"{labelling.frames} frames, {labelling.samples} samples each, {labelling.precision}, chunks of "
        f"{labelling.chunk}: {labelling.seconds:.1f} s, {labelling.frames / labelling.seconds:.1f} frames/s; memory at "
        f"most {labelling.peak_bytes * gib:.2f} GiB (before: {labelling.before_bytes * gib:.2f}, of that frames "
        f"{labelling.frames_bytes * gib:.2f}, weights {labelling.weights_bytes * gib:.2f})"
    )


def _held_bytes() -> int:
    stats = jax.devices()[0].memory_stats()
    if stats:
        return stats["bytes_in_use"]
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _peak_bytes() -> int:
    stats = jax.devices()[0].memory_stats()
    return stats["peak_bytes_in_use"] if stats else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def profile(
    model: OctoModel,
    batches: list[int],
    precisions: list[str],
    samples: list[int],
    *,
    plain: bool = False,
    repeats: int = 5,
    dataset: str | None = None,
    kernels: bool = False,
) -> Iterator[Row]:
    """Yields one row after the other: `OctoTeacher` for every combination, and the plain path in float32."""
    peaks = {precision: matmul_rate(PRECISIONS[precision], repeats) / 1e9 for precision in {*precisions, "float32"}}
    dataset = dataset or _any_dataset(model)
    for batch in batches:
        for count in samples:
            for precision in precisions:
                yield profile_fast(model, precision, batch, count, peaks[precision], repeats, dataset, kernels)
            if plain:
                yield profile_plain(model, batch, count, peaks["float32"], repeats)


def _any_dataset(model: OctoModel) -> str | None:
    statistics = model.dataset_statistics or {}
    return None if "action" in statistics else next(iter(statistics), None)


def _row(
    path: str,
    precision: str,
    batch: int,
    samples: int,
    seconds: float,
    call_ms: float,
    cpu_ms: float,
    flops: float,
    used: int,
    peak: float,
) -> Row:
    rate = flops / call_ms / 1e6
    frames = 1e3 * batch / call_ms
    return Row(path, precision, batch, samples, seconds, call_ms, cpu_ms, frames, flops / 1e9, rate / peak, used)


HEADER = (
    f"{'path':<6}{'precision':<10}{'batch':>6}{'samples':>8}{'compile s':>11}{'ms/call':>10}{'CPU ms':>10}"
    f"{'frames/s':>10}{'GFLOP':>9}{'% matmul':>10}{'MiB':>8}{'stem ms':>9}{'T5 once':>9}{'transf.':>9}{'head':>8}"
)


def format_row(row: Row) -> str:
    """Returns the row as a line under HEADER."""
    parts = [row.stem_ms, row.t5_once_ms, row.transformer_ms, row.head_ms]
    widths = (9, 9, 9, 8)
    return (
        f"{row.path:<6}{row.precision:<10}{row.batch:>6}{row.samples:>8}{row.compile_s:>11.1f}{row.call_ms:>10.1f}{row.cpu_ms:>10.1f}"
        f"{row.frames_per_s:>10.1f}{row.gflop:>9.1f}{100 * row.matmul_share:>10.1f}{row.memory_bytes / 2**20:>8.0f}"
        + "".join(
            f"{'-' if part is None else f'{part:.1f}':>{width}}" for part, width in zip(parts, widths, strict=True)
        )
    )


_FORMATS: dict[type, Callable[[Any], str]] = {
    Row: format_row,
    Labelling: format_labelling,
    Counted: format_counted,
}


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the flags of this command."""
    flags.DEFINE_string("checkpoint", None, "A checkpoint folder, or hf://owner/name.", values)
    names = sorted(SIZES)
    flags.DEFINE_enum("architecture", None, names, "Random weights of a published size.", values)
    define_numbers("batch", (1, 8), "Batch sizes.", values=values)
    flags.DEFINE_list("precision", ["float32"], "float32, bfloat16 or both.", values)
    known = ", ".join(PRECISIONS)
    flags.register_validator("precision", lambda given: set(given) <= {*PRECISIONS}, f"must be of {known}", values)
    define_numbers("samples", (1,), "Samples per frame.", values=values)
    flags.DEFINE_bool("plain", False, "Measure the straightforward path too.", values)
    flags.DEFINE_integer("repeats", 5, "Timed calls; the median counts.", 1, flag_values=values)
    flags.DEFINE_integer("kernels", 0, "So many of the device's kernels that take most.", 0, flag_values=values)
    flags.DEFINE_integer("label", None, "Only label so many frames in one call.", 1, flag_values=values)
    flags.DEFINE_bool("count", False, "Count what a call has to do on a CUDA device, and run nothing.", values)
    flags.DEFINE_integer("threads", None, "1 keeps XLA to one thread of the CPU.", 1, 1, flag_values=values)
    flags.DEFINE_bool("json", False, "Print JSON instead of a table.", values)
    flags.DEFINE_string("trace", None, "Folder for a JAX profiler trace of all this, for TensorBoard.", values)
    flags.mark_flags_as_mutual_exclusive(["checkpoint", "architecture"], True, values)


def run(values: flags.FlagValues) -> None:
    """Measures what the flags of `define_flags` ask for; raises UserError for a checkpoint that cannot be loaded."""
    if values.threads:
        os.environ["NPROC"] = "1"  # the size of all of XLA's pools, read when the first device is asked for
    source = values.checkpoint or values.architecture
    model = OctoModel.load_pretrained(source) if values.checkpoint else random_model(source)
    device = jax.devices()[0]
    print(f"{device.device_kind}, {source}", file=sys.stderr)
    rows = []
    if not (values.json or values.label or values.count):
        print(HEADER)
    with jax.profiler.trace(values.trace) if values.trace else nullcontext():
        for row in _measured(model, values):
            rows.append(row)
            line = _FORMATS[type(row)](row)
            print(line, file=sys.stderr if values.json else sys.stdout, flush=True)
            if isinstance(row, Row) and row.kernels is not None and not values.json:
                title = f"{row.precision}, {row.batch} frames, {row.samples} samples"
                plain_console(width=140).print(kernel_table(title, row.kernels, values.kernels))
    if values.json:
        print(json.dumps({"device": device.device_kind, "rows": [dataclasses.asdict(row) for row in rows]}, indent=1))
    if values.trace:
        print(f"Trace written: tensorboard --logdir {values.trace}", file=sys.stderr)


def _measured(model: OctoModel, values: flags.FlagValues) -> Iterator[Any]:
    if values.count:
        return (
            count_labels(model, precision, batch, samples)
            for batch in values.batch
            for precision in values.precision
            for samples in values.samples
        )
    if not values.label:
        precisions, repeats = values.precision, values.repeats
        return profile(
            model,
            values.batch,
            precisions,
            values.samples,
            plain=values.plain,
            repeats=repeats,
            kernels=values.kernels > 0,
        )
    return (
        profile_labelling(model, precision, values.label, samples)
        for precision in values.precision
        for samples in values.samples
    )


def main() -> None:
    run(flags.FLAGS)


if __name__ == "__main__":
    define_flags()
    run_command(main)
