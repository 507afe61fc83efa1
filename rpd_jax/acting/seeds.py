"""Seeds of environments, all from the run's seed."""

import jax
import numpy as np


def episode_seeds(seed: int, purpose: str, iteration: int = 0) -> int:
    """A 31-bit seed for the environments, different for every purpose, iteration, run's seed and process.

    Args:
        seed: the run's.
        purpose: what the episodes are for, such as "train".
        iteration: before which they begin.
    """
    entropy = [seed, iteration, *purpose.encode()]
    if jax.process_index():
        entropy.append(jax.process_index())
    return int(np.random.SeedSequence(entropy).generate_state(1)[0] >> 1)
