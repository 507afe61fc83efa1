"""How long an OpenVLA policy takes for each stage of a batch, and the way of a batch to a worker and back."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from openvla_bridge.model.checkpoint import DTYPES, create_model, randomize
from openvla_bridge.model.model_config import ModelConfig
from openvla_bridge.model.one_by_one import pil_preprocess, predict_as_published, predict_with_pil
from openvla_bridge.model.policy import OpenVLAPolicy, default_image_settings
from openvla_bridge.model.text import FixedIds
from openvla_bridge.ring import RingLayout
from openvla_bridge.worker_process import SLOTS, WorkerProcess

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


def random_policy(config: ModelConfig, device: str, precision: str) -> OpenVLAPolicy:
    """Returns a policy of a size with random weights, and fixed token ids for any instruction."""
    config = dataclasses.replace(config, norm_stats=_STATISTICS)
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
