"""Training batches of windows and action chunks, through Grain."""

from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from octo_teacher.data.episodes import Demo, normalize_actions
from rpd_jax.errors import UserError

MODALITIES = ("language", "image", "multimodal")


class ChunkSource:
    """Random access to training examples, one per step of every demo.

    Example i: observation of a window that ends at its step, and at each step of the window the chunk of the following
    actions. Steps before the first repeat the first frame with `timestep_pad_mask` False; actions after the last repeat
    the last with `action_pad_mask` False. It is False too for actions of later steps than a goal image's: they are done
    with the goal behind. (In the original both masks of actions end one step later, by its arithmetic of indices.)

    Args:
        demos: all with the same cameras.
        statistics: of the actions, with mean, std and mask.
        window: W.
        horizon: actions per chunk.
        modality: what the task is told by. "language": the instruction. "image": a goal image, the frame at a random
            later step of the episode (the original recipe's uniform relabelling). "multimodal": one of the two, drawn
            for each example.
    """

    def __init__(
        self,
        demos: Sequence[Demo],
        statistics: dict[str, Any],
        *,
        window: int,
        horizon: int,
        modality: str = "language",
    ):
        if modality not in MODALITIES:
            raise UserError(f"modality={modality!r} is not one of {', '.join(MODALITIES)}.")
        lengths = [len(demo.actions) for demo in demos]
        self._demos = demos
        self._actions = [normalize_actions(demo.actions, statistics) for demo in demos]
        self._episode = np.repeat(np.arange(len(demos)), lengths)
        self._step = np.concatenate([np.arange(length) for length in lengths]) if lengths else np.zeros(0, int)
        self._window, self._horizon, self._modality = window, horizon, modality

    def __len__(self) -> int:
        return len(self._step)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns one example (no batch axis), without chance: goals are last frames, "multimodal" alternates."""
        demo = self._demos[self._episode[index]]
        by_image = self._modality == "image" or (self._modality == "multimodal" and index % 2 == 1)
        return self._example(index, len(demo.actions) - 1, by_image)

    def draw(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Returns one example (no batch axis) with its goal drawn.

        {"observation": {"image_<camera>" uint8 [W, H, W, 3], "timestep" int32 [W], "timestep_pad_mask" bool [W]},
        "action" float32 [W, horizon, A] normalised, "action_pad_mask" bool like it, "instruction" str, "" if an image
        tells the task}, and with goals: "goal" {"image_<camera>" uint8 [H, W, 3], black if the task is told by
        language}, "by_image" bool.
        """
        last = len(self._demos[self._episode[index]].actions) - 1
        step = self._step[index]
        goal = int(rng.integers(step + 1, last + 1)) if step < last else last
        by_image = self._modality == "image" or (self._modality == "multimodal" and rng.random() < 0.5)
        return self._example(index, goal, bool(by_image))

    def _example(self, index: int, goal: int, by_image: bool) -> dict[str, Any]:
        episode, step = self._episode[index], self._step[index]
        demo, actions = self._demos[episode], self._actions[episode]
        window = step + np.arange(1 - self._window, 1)
        at = np.maximum(window, 0)
        chunk = at[:, None] + np.arange(self._horizon)
        inside = chunk <= (goal if by_image else len(actions) - 1)
        example = {
            "observation": {
                **{f"image_{camera}": frames[at] for camera, frames in demo.images.items()},
                "timestep": at.astype(np.int32),
                "timestep_pad_mask": window >= 0,
            },
            "action": actions[np.minimum(chunk, len(actions) - 1)],
            "action_pad_mask": np.repeat(inside[..., None], actions.shape[1], axis=-1),
            "instruction": "" if by_image else demo.instruction,
        }
        if self._modality != "language":
            example["goal"] = {
                f"image_{camera}": frames[goal] if by_image else np.zeros(frames.shape[1:], np.uint8)
                for camera, frames in demo.images.items()
            }
            example["by_image"] = np.bool_(by_image)
        return example


def training_batches(
    source: ChunkSource, batch_size: int, seed: int, *, start: int = 0, threads: int = 2, workers: int = 0
) -> Iterator[dict[str, Any]]:
    """Returns an endless Grain iterator of shuffled batches, reshuffled each epoch.

    Which batches they are, and their order, is the same whatever the threads and workers.
    Entries are those of `ChunkSource.draw` with a leading batch axis; "instruction" is an array of str.

    Args:
        start: batches to pass over, those that have been had.
        threads: that read ahead, in each process.
        workers: processes that make batches; 0 makes them in threads of this one, which is enough for stored frames.
    """
    dataset = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat().random_map(source.draw)
    dataset = dataset.batch(batch_size)[start:].to_iter_dataset(
        grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * max(threads, 1))
    )
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain reads its own when it starts workers, also outside of a command
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2))
    return iter(dataset)


def ordered_batches(source: ChunkSource, batch_size: int) -> Iterator[dict[str, Any]]:
    """Yields every example once, in order, goals not drawn; the last batch wraps around so that all have one shape."""
    dataset = grain.MapDataset.source(source).repeat().batch(batch_size)
    for index in range(-(-len(source) // batch_size)):
        yield dataset[index]
