"""Where an OpenVLA teacher's time goes: `python -m openvla_bridge.profile --architecture=tiny --threads=1`.

First table: images per second by batch size, and milliseconds per image in preprocessing, vision, prefill and decoding;
the share of the device's measured matmul rate, and the share of its memory bandwidth with which decoding reads the
weights. Below them, loops over single images for comparison: prepared by Pillow ("Pillow"), and with logits at every
position too ("published"). All lines take turns, and are compared with the largest batch.
Second table: what it takes to carry a batch to a worker and to hear back, beside a memcpy of the same bytes.
"""

from rpd_jax.run.stop import listen

if __name__ == "__main__":
    listen()

import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from absl import flags
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from openvla_bridge.errors import BridgeError
from openvla_bridge.model.checkpoint import DTYPES, create_model, randomize
from openvla_bridge.model.model_config import ModelConfig, openvla_7b
from openvla_bridge.model.one_by_one import pil_preprocess, predict_as_published, predict_with_pil
from openvla_bridge.model.policy import OpenVLAPolicy, default_image_settings
from openvla_bridge.model.text import FixedIds
from openvla_bridge.ring import RingLayout
from openvla_bridge.worker_process import SLOTS, WorkerProcess
from rpd_jax.command.flag_kinds import define_numbers
from rpd_jax.command.line import run_command
from rpd_jax.errors import UserError

INSTRUCTION = "push the cube away from the robot base"
_PROMPT_TOKENS = 22
_STATISTICS = {"random": {"action": {"q01": [-1.0] * 7, "q99": [1.0] * 7}}}


@dataclasses.dataclass
class Row:
    """One line of the first table: milliseconds per image; what is not measured is None.

    `cpu_ms` is the processor time of all: on a crowded machine it tells more than the clock. `times_batch` is the time
    per image over that of the largest batch, the median of rounds in which all lines took turns. The shares are of what
    the device reaches.
    """

    path: str
    batch: int
    preprocess_ms: float
    vision_ms: float | None = None
    prefill_ms: float | None = None
    decode_ms: float | None = None
    total_ms: float | None = None
    cpu_ms: float | None = None
    times_batch: float | None = None
    matmul_share: float | None = None
    bandwidth_share: float | None = None


def tiny_config() -> ModelConfig:
    """The 7B's structure with 4.5 million parameters."""
    config = openvla_7b()
    dino, siglip = config.backbones
    return dataclasses.replace(
        config,
        backbones=(
            dataclasses.replace(dino, width=48, depth=4, heads=3),
            dataclasses.replace(siglip, width=32, depth=3, heads=2),
        ),
        text={
            **config.text,
            "hidden_size": 64,
            "intermediate_size": 176,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        },
    )


ARCHITECTURES: dict[str, Callable[[], ModelConfig]] = {"tiny": tiny_config, "openvla-7b": openvla_7b}


def random_policy(architecture: str, device: str, precision: str) -> OpenVLAPolicy:
    """Returns a policy of a known size with random weights, and fixed token ids for any instruction."""
    config = dataclasses.replace(ARCHITECTURES[architecture](), norm_stats=_STATISTICS)
    model = randomize(create_model(config, device, DTYPES[precision]))
    return OpenVLAPolicy(model, default_image_settings(), FixedIds([1, *range(300, 300 + _PROMPT_TOKENS - 2)]))


def median_ms(device: torch.device, call: Callable[[], Any], repeats: int) -> float:
    """Median time of `call` on the clock, after one warm-up call, in milliseconds."""
    ((clock, _),) = measure_in_turns(device, [call], repeats)
    return statistics.median(clock)


def measure_in_turns(
    device: torch.device, calls: Sequence[Callable[[], Any]], repeats: int
) -> list[tuple[list[float], list[float]]]:
    """Times of each call, on the clock and of the processor, in milliseconds, after a warm-up.

    The calls take turns, so that other work on the machine meets all of them.
    """
    times = [([], []) for _ in calls]
    for turn in range(repeats + 1):
        for call, (clock, processor) in zip(calls, times, strict=True):
            _synchronize(device)
            start = time.perf_counter(), time.process_time()
            call()
            _synchronize(device)
            if turn:
                clock.append(1e3 * (time.perf_counter() - start[0]))
                processor.append(1e3 * (time.process_time() - start[1]))
    return times


@torch.inference_mode()
def profile_stages(
    policy: OpenVLAPolicy, batch: int, image_size: int, repeats: int, peaks: tuple[float, float] | None
) -> Row:
    """Measures the stages of one batch size."""
    device, model, steps = policy.device, policy.model, policy.action_dim
    frames = _random_frames(batch, image_size)
    ids, lengths = policy.encode(INSTRUCTION)
    pixels = policy.preprocess(frames).to(policy.dtype)
    patches = model.embed_images(pixels)

    def prefill() -> Any:
        return model.prefill(patches, ids, lengths, steps - 1)

    def measure(call: Callable[[], Any]) -> float:
        return median_ms(device, call, repeats)

    preprocess_ms = measure(lambda: policy.preprocess(frames).to(policy.dtype))
    vision_ms = measure(lambda: model.embed_images(pixels))
    prefill_ms = measure(prefill)
    decode_ms = max(1e-3, measure(lambda: model.generate(prefill(), steps, equal_lengths=True)) - prefill_ms)
    row = Row("batch", batch, *(ms / batch for ms in (preprocess_ms, vision_ms, prefill_ms, decode_ms)))
    if peaks is not None:
        with FlopCounterMode(display=False) as counter:
            policy.predict_tokens(frames, INSTRUCTION)
        stages_ms = preprocess_ms + vision_ms + prefill_ms + decode_ms
        row.matmul_share = counter.get_total_flops() / (stages_ms * 1e-3) / peaks[0]
        read = sum(parameter.nbytes for parameter in model.language_model.parameters())
        row.bandwidth_share = (steps - 1) * read / (decode_ms * 1e-3) / peaks[1]
    return row


def measure_peaks(device: torch.device, dtype: torch.dtype, repeats: int) -> tuple[float, float]:
    """The device's FLOP/s in one large matrix product, and bytes/s in reading a large array."""
    size = 8192 if device.type == "cuda" else 1024
    x = torch.ones(size, size, device=device, dtype=dtype)
    flops = 2 * size**3 / (1e-3 * median_ms(device, lambda: x @ x, repeats))
    vector = torch.ones(1 << (28 if device.type == "cuda" else 25), device=device)
    return flops, vector.nbytes / (1e-3 * median_ms(device, vector.sum, repeats))


def profile_transport(frames: int, image_size: int, repeats: int, python: str | None = None) -> dict[str, float]:
    """What it takes to carry frames uint8 [frames, image_size, image_size, 3] to a worker and to hear back.

    The same bytes are copied within this process for comparison, in turns. "_ms" is the best time on the clock, since
    other work on the machine only adds to it; "_cpu_ms" is the mean processor time of both processes.
    """
    source = _random_frames(frames, image_size).numpy()
    target = np.empty_like(source)
    worker = WorkerProcess("worker", python=python, request_timeout=60.0)
    try:
        worker.greet()
        worker.attach(RingLayout(SLOTS, frames, image_size, image_size, 1, 7))

        def carry() -> None:
            worker.submit_echo(source)
            while worker.collect() is None:
                pass

        for _ in range(SLOTS):  # touches each slot's memory
            carry()
        times = []
        worker_cpu = _processor_seconds(worker.process.pid)
        for _ in range(repeats):
            start = time.perf_counter(), time.process_time()
            carry()
            middle = time.perf_counter(), time.process_time()
            np.copyto(target, source)
            end = time.perf_counter(), time.process_time()
            times.append((middle[0] - start[0], end[0] - middle[0], middle[1] - start[1], end[1] - middle[1]))
        worker_cpu = _processor_seconds(worker.process.pid) - worker_cpu
    finally:
        worker.close()
    carried, copied, carried_cpu, copied_cpu = zip(*times, strict=True)
    return {
        "frames": frames,
        "megabytes": source.nbytes / 1e6,
        "transport_ms": 1e3 * min(carried),
        "memcpy_ms": 1e3 * min(copied),
        "transport_cpu_ms": 1e3 * (statistics.mean(carried_cpu) + worker_cpu / repeats),
        "memcpy_cpu_ms": 1e3 * statistics.mean(copied_cpu),
    }


def _processor_seconds(pid: int) -> float:
    """Processor time that all threads of a process have had, to the nanosecond."""
    files = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return 1e-9 * sum(int(file.read_text().split()[0]) for file in files)


def profile(
    policy: OpenVLAPolicy, batches: list[int], image_size: int, repeats: int, pil: bool, shares: bool
) -> list[Row]:
    """Returns the rows of the first table."""
    peaks = measure_peaks(policy.device, policy.dtype, repeats) if shares else None
    rows = [profile_stages(policy, batch, image_size, repeats, peaks) for batch in batches]
    frames = _random_frames(max(batches), image_size)
    calls = [partial(_predict_in_batches, policy, frames, batch) for batch in batches]
    if pil:
        settings, images = policy.preprocess.settings, frames.numpy()
        preprocess_ms = median_ms(
            policy.device, lambda: [pil_preprocess(settings, image).to(policy.device) for image in images], repeats
        )
        for path, predict in (("Pillow", predict_with_pil), ("published", predict_as_published)):
            rows.append(Row(path, 1, preprocess_ms / len(images)))
            calls.append(partial(_predict_one_by_one, policy, images, predict))
    times = measure_in_turns(policy.device, calls, repeats)
    largest, _ = times[batches.index(max(batches))]
    for row, (clock, processor) in zip(rows, times, strict=True):
        row.total_ms = statistics.median(clock) / len(frames)
        row.cpu_ms = statistics.median(processor) / len(frames)
        row.times_batch = statistics.median(ours / theirs for ours, theirs in zip(clock, largest, strict=True))
    return rows


def _predict_in_batches(policy, frames, batch):
    for part in frames.split(batch):
        policy.unnormalize(policy.predict_tokens(part, INSTRUCTION))


def _predict_one_by_one(policy, images, predict):
    for image in images:
        policy.unnormalize(predict(policy, image, INSTRUCTION))


def _random_frames(count: int, size: int) -> torch.Tensor:
    frames = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return torch.from_numpy(frames)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _print_tables(rows: list[Row], transport: dict[str, float], title: str) -> None:
    console = Console(width=132)
    largest = max(row.batch for row in rows)
    columns = ("path", "batch", "images/s", "preprocess", "vision", "prefill", "decode", "all ms/image", "CPU ms")
    columns += (f"x batch {largest}", "% matmul", "% bandwidth")
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        parts = (row.preprocess_ms, row.vision_ms, row.prefill_ms, row.decode_ms, row.total_ms, row.cpu_ms)
        numbers = ("-" if part is None else f"{part:.2f}" for part in (*parts, row.times_batch))
        shares = ("-" if part is None else f"{part:.1%}" for part in (row.matmul_share, row.bandwidth_share))
        table.add_row(row.path, str(row.batch), f"{1e3 / row.total_ms:.1f}", *numbers, *shares)
    console.print(table)
    table = Table("", "to a worker and back, ms", "memcpy, ms", "ratio", title_justify="left")
    table.title = f"Transport of {transport['frames']} frames, {transport['megabytes']:.1f} MB"
    for name, kind in (("clock", "ms"), ("processor", "cpu_ms")):
        carried, copied = transport[f"transport_{kind}"], transport[f"memcpy_{kind}"]
        table.add_row(name, f"{carried:.2f}", f"{copied:.2f}", f"{carried / copied:.2f}")
    console.print(table)


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the flags of this command."""
    flags.DEFINE_string("checkpoint", None, "A checkpoint folder, or hf://owner/name.", values)
    names = sorted(ARCHITECTURES)
    flags.DEFINE_enum("architecture", None, names, "Random weights of a known size.", values)
    flags.DEFINE_string("dataset", None, "Whose statistics un-normalise, if the checkpoint has several.", values)
    define_numbers("batch", (1, 8, 32), "Batch sizes.", values=values)
    flags.DEFINE_string("device", "cuda" if torch.cuda.is_available() else "cpu", "As torch names it.", values)
    flags.DEFINE_enum("precision", "float32", sorted(DTYPES), "Of the weights.", values)
    flags.DEFINE_integer("threads", None, "CPU threads.", 1, flag_values=values)
    flags.DEFINE_integer("image_size", 256, "Side of the camera's frames, pixels.", 1, flag_values=values)
    flags.DEFINE_integer("repeats", 5, "Timed calls; the median counts.", 1, flag_values=values)
    flags.DEFINE_integer("transport_frames", 64, "Frames of the transport's measurement.", 1, flag_values=values)
    flags.DEFINE_bool("no_pil", False, "Leave out the loops over single images with Pillow.", values)
    flags.DEFINE_bool("json", False, "Print JSON instead of tables.", values)
    flags.mark_flags_as_mutual_exclusive(["checkpoint", "architecture"], True, values)


def run(values: flags.FlagValues) -> None:
    """Measures what the flags of `define_flags` ask for; raises UserError for a checkpoint that cannot be loaded."""
    if values.threads:
        torch.set_num_threads(values.threads)
    try:
        if values.checkpoint:
            say = lambda text: print(text, file=sys.stderr)  # noqa: E731
            policy = OpenVLAPolicy.load(values.checkpoint, values.device, values.precision, values.dataset, say)
        else:
            policy = random_policy(values.architecture, values.device, values.precision)
        rows = profile(policy, values.batch, values.image_size, values.repeats, not values.no_pil, shares=True)
        transport = profile_transport(values.transport_frames, values.image_size, max(values.repeats, 20))
    except BridgeError as error:
        raise UserError(str(error)) from error
    name = torch.cuda.get_device_name(policy.device) if policy.device.type == "cuda" else "CPU"
    source = values.checkpoint or values.architecture
    title = f"{source}, {values.precision}, {name}, {torch.get_num_threads()} thread(s)"
    if values.json:
        print(json.dumps({"title": title, "rows": [dataclasses.asdict(row) for row in rows], "transport": transport}))
    else:
        _print_tables(rows, transport, title)


def main() -> None:
    run(flags.FLAGS)


if __name__ == "__main__":
    define_flags()
    run_command(main)
