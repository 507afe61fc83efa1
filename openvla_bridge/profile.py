"""Where an OpenVLA teacher's time goes: `python -m openvla_bridge.profile --architecture=tiny --threads=1`.

First table: images per second by batch size, and milliseconds per image in preprocessing, vision, prefill and decoding;
the share of the device's measured matmul rate, and the share of its memory bandwidth with which decoding reads the
weights. Below them, loops over single images for comparison: prepared by Pillow ("Pillow"), and with logits at every
position too ("published"). All lines take turns, and are compared with the largest batch.
Second table: what it takes to carry a batch to a worker and to hear back, beside a memcpy of the same bytes.
"""

from rpd_jax.command.start import start

if __name__ == "__main__":
    start()

import dataclasses
import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from absl import flags
from rich.console import Console
from rich.table import Table

from openvla_bridge.errors import BridgeError
from openvla_bridge.model.model_config import ModelConfig, openvla_7b
from openvla_bridge.model.precision import PRECISIONS
from rpd_jax.command.flag_kinds import define_numbers
from rpd_jax.command.line import run_command
from rpd_jax.errors import UserError

if TYPE_CHECKING:  # it needs what the extra [openvla] installs, and --help does not
    from openvla_bridge.stage_times import Row


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


def _print_tables(rows: "list[Row]", transport: dict[str, float], title: str) -> None:
    console = Console(width=132, markup=False, emoji=False)
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
    flags.DEFINE_string("device", None, "As torch names it; by default cuda where there is one.", values)
    flags.DEFINE_enum("precision", "float32", sorted(PRECISIONS), "Of the weights.", values)
    flags.DEFINE_integer("threads", None, "CPU threads.", 1, flag_values=values)
    flags.DEFINE_integer("image_size", 256, "Side of the camera's frames, pixels.", 1, flag_values=values)
    flags.DEFINE_integer("repeats", 5, "Timed calls; the median counts.", 1, flag_values=values)
    flags.DEFINE_integer("transport_frames", 64, "Frames of the transport's measurement.", 1, flag_values=values)
    flags.DEFINE_bool("no_pil", False, "Leave out the loops over single images with Pillow.", values)
    flags.DEFINE_bool("json", False, "Print JSON instead of tables.", values)
    flags.mark_flags_as_mutual_exclusive(["checkpoint", "architecture"], True, values)


def run(values: flags.FlagValues) -> None:
    """Measures what the flags of `define_flags` ask for; raises UserError for a checkpoint that cannot be loaded."""
    import torch

    from openvla_bridge.model.policy import OpenVLAPolicy
    from openvla_bridge.stage_times import profile, profile_transport, random_policy

    device = values.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if values.threads:
        torch.set_num_threads(values.threads)
    try:
        if values.checkpoint:
            say = lambda text: print(text, file=sys.stderr)  # noqa: E731
            policy = OpenVLAPolicy.load(values.checkpoint, device, values.precision, say, unnorm_key=values.dataset)
        else:
            policy = random_policy(ARCHITECTURES[values.architecture](), device, values.precision)
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
