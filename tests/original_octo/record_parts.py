"""What the original computes of the cases in part_cases.py; runs in its environment, see README.md."""

import argparse
import functools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from part_cases import (
    DIMENSIONS,
    ENCODERS,
    HEAD,
    HEADS,
    TOKENIZERS,
    UNET,
    drawn,
    head_inputs,
    images,
    tokenizer_inputs,
    weight,
)


def shapes_of(module: Any, *args: Any, **kwargs: Any) -> dict[str, list[int]]:
    """Shapes of a module's parameters by name."""
    import flax
    import jax

    tree = jax.eval_shape(functools.partial(module.init, **kwargs), jax.random.PRNGKey(0), *args)["params"]
    return {name: list(leaf.shape) for name, leaf in flax.traverse_util.flatten_dict(tree, sep="/").items()}


def filled(shapes: dict[str, list[int]]) -> dict:
    """The parameters of these shapes."""
    import flax

    flat = {name: weight(name, tuple(shape)) for name, shape in shapes.items()}
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def record_encoders() -> dict[str, np.ndarray]:
    """Features of every encoder."""
    from octo.utils.spec import ModuleSpec

    results = {}
    for name, (entry, shape, numbers) in ENCODERS.items():
        encoder = ModuleSpec.instantiate(entry)()
        args = (images(name, *shape), False, drawn(name, shape[0], numbers) if numbers else None)
        results[f"encoder/{name}"] = encoder.apply({"params": filled(shapes_of(encoder, *args))}, *args)
    return results


def record_tokenizers() -> dict[str, np.ndarray]:
    """Tokens and masks of every tokenizer."""
    from octo.utils.spec import ModuleSpec

    results = {}
    for name, entry in TOKENIZERS.items():
        tokenizer = ModuleSpec.instantiate(entry)()
        args = tokenizer_inputs()
        shapes = shapes_of(tokenizer, *args, train=False) if "encoder" in entry["kwargs"] else {}
        group = tokenizer.apply({"params": filled(shapes)}, *args, train=False)
        results |= {f"tokenizer/{name}/tokens": group.tokens, f"tokenizer/{name}/mask": group.mask}
    return results


def record_head(name: str) -> dict[str, np.ndarray]:
    """Noise prediction of a window of two, or the loss and sampled actions of a window of one."""
    import jax
    from octo.model.components import action_heads, unet
    from octo.model.components.base import TokenGroup

    action_heads.ConditionalUnet1D = lambda **sizes: unet.ConditionalUnet1D(**{**sizes, **UNET})
    head = action_heads.UNetDDPMActionHead(**HEAD, **HEADS[name])

    def outputs(inputs):
        return {HEAD["readout_key"]: TokenGroup.create(inputs["tokens"])}

    inputs = head_inputs(2, 2)
    params = filled(shapes_of(head, outputs(inputs)))
    if name not in DIMENSIONS:
        called = head.apply({"params": params}, outputs(inputs), inputs["time"], inputs["noisy_actions"])
        return {f"head/{name}/called": called}

    inputs = head_inputs(2, 1)
    draws = {"randint": [], "normal": []}
    for kind, kept in draws.items():
        setattr(jax.random, kind, _keeping(getattr(jax.random, kind), kept))

    # As the original's scripts call it: masks by position, first that of timesteps.
    args = (inputs["actions"], inputs["timestep_pad_mask"], inputs["action_pad_mask"])
    rngs = {"dropout": jax.random.PRNGKey(1)}
    results = {"loss": head.apply({"params": params}, outputs(inputs), *args, rngs=rngs, method="loss")[0]}
    results["time"], results["noise"] = draws["randint"][-1], draws["normal"][-1]

    inputs, draws["normal"][:] = head_inputs(1, 1), []
    jax.lax.fori_loop = lambda start, end, body, carry: functools.reduce(
        lambda carry, i: body(i, carry), range(start, end), carry
    )
    results["actions"] = head.apply(
        {"params": params},
        outputs(inputs),
        jax.random.PRNGKey(2),
        train=False,
        embodiment_action_dim=DIMENSIONS[name],
        method="predict_action",
    )
    results["initial_noise"], results["step_noise"] = draws["normal"][0], np.stack(draws["normal"][1:])
    return {f"head/{name}/{key}": value for key, value in results.items()}


def _keeping(draw, kept: list):
    def drawing(*args, **kwargs):
        value = draw(*args, **kwargs)
        kept.append(np.asarray(value))
        return value

    return drawing


def record_trees() -> dict[str, dict[str, list[int]]]:
    """Parameters of the published sizes, by name: of the encoder ResNet26FILM, of the action head."""
    from octo.model.components.action_heads import UNetDDPMActionHead
    from octo.model.components.base import TokenGroup
    from octo.model.components.vit_encoders import ResNet26FILM

    frames, condition = np.zeros((1, 64, 64, 6), np.uint8), np.zeros((1, 512), np.float32)
    head = UNetDDPMActionHead("readout_action", action_dim=7, action_horizon=4, use_map=False)
    outputs = {"readout_action": TokenGroup.create(np.zeros((1, 1, 1, 384), np.float32))}
    return {
        "ResNet26FILM": shapes_of(ResNet26FILM(), frames, cond_var=condition),
        "UNetDDPMActionHead": shapes_of(head, outputs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--octo", type=Path, required=True, help="checkout of octo-models/octo at 241fb35")
    parser.add_argument("folder", type=Path, help="where parts.npz and tree_parts.json are written")
    arguments = parser.parse_args()
    sys.path.insert(0, str(arguments.octo.resolve()))
    trees = record_trees()  # before anything is replaced
    (arguments.folder / "tree_parts.json").write_text(json.dumps(trees, indent=0))
    results = {**record_encoders(), **record_tokenizers()}
    for name in HEADS:
        results |= record_head(name)
    np.savez_compressed(arguments.folder / "parts.npz", **{key: np.asarray(value) for key, value in results.items()})


if __name__ == "__main__":
    main()
