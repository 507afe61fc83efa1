"""Compares what `record.py` wrote with what we make of the same checkpoints; runs in our environment, see README.md."""

import argparse
import hashlib
import json
from pathlib import Path

import flax
import jax.numpy as jnp
import numpy as np

from octo_teacher.model.action_heads import SamplingNoise
from octo_teacher.octo_model import OctoModel
from tests.original_octo.record import INSTRUCTIONS


def compare_ids(recorded: dict, checkpoint: Path) -> str:
    """One row of a table: how many instructions have the same ids and mask."""
    theirs = recorded["checkpoints"][checkpoint.name]
    ours = OctoModel.load_pretrained(checkpoint).text_processor.encode(list(INSTRUCTIONS))
    equal = sum(
        all(list(ours[name][row]) == theirs[name][row] for name in ("input_ids", "attention_mask"))
        for row in range(len(INSTRUCTIONS))
    )
    return (
        f"| {checkpoint.name} | {recorded['transformers']} | {theirs['class']} | {', '.join(theirs['returned'])} | "
        f"{equal} of {len(INSTRUCTIONS)} |"
    )


def compare_weights(recorded: dict, checkpoint: Path) -> str:
    """One row of a table: how many parameters are bit for bit ours."""
    theirs = recorded["checkpoints"][checkpoint.name]
    ours = flax.traverse_util.flatten_dict(OctoModel.load_pretrained(checkpoint).params, sep="/")
    equal = sum(
        theirs.get(name) == hashlib.sha256(np.asarray(value).tobytes()).hexdigest() for name, value in ours.items()
    )
    return f"| {checkpoint.name} | Orbax {recorded['orbax']} | {equal} of {len(set(theirs) | set(ours))} |"


def compare_model(recorded: dict, checkpoint: Path) -> str:
    """One row of a table: the largest differences of readout tokens, and of actions with the same noise."""
    model = OctoModel.load_pretrained(checkpoint)
    batch = len(recorded["frames"])
    observations = {"image_primary": recorded["frames"], "timestep_pad_mask": np.ones((batch, 1), bool)}
    tasks = model.create_tasks(texts=list(INSTRUCTIONS[:batch]))
    readout = model.run_transformer(observations, tasks, observations["timestep_pad_mask"])["readout_action"]
    statistics = model.dataset_statistics
    statistics = (statistics if "action" in statistics else next(iter(statistics.values())))["action"]
    noise = SamplingNoise(jnp.asarray(recorded["initial_noise"]), jnp.asarray(recorded["step_noise"]))
    actions = model.sample_actions(observations, tasks, statistics, noise=noise)
    tokens = float(np.abs(readout.tokens - recorded["readout"]).max())
    difference = float(np.abs(actions - recorded["actions"]).max())
    ids = np.array_equal(tasks["language_instruction"]["input_ids"], recorded["input_ids"])
    return (
        f"| {checkpoint.name} | ids {'equal' if ids else 'DIFFER'} | tokens {tokens:.1e} | actions {difference:.1e} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ids", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("checkpoints", type=Path, nargs="+")
    arguments = parser.parse_args()
    for checkpoint in arguments.checkpoints:
        if arguments.ids:
            print(compare_ids(json.loads(arguments.ids.read_text()), checkpoint))
        if arguments.weights:
            print(compare_weights(json.loads(arguments.weights.read_text()), checkpoint))
        if arguments.model:
            print(compare_model(dict(np.load(arguments.model)), checkpoint))


if __name__ == "__main__":
    main()
