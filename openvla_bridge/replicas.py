"""How a batch is split among workers of different speed."""

import dataclasses

_MEMORY = 0.5


@dataclasses.dataclass
class Speed:
    """Frames per second of one worker: a moving average, None before the first measurement.

    The first request of a worker is not counted: it holds the warm-up of its device.
    """

    frames_per_second: float | None = None
    requests: int = 0

    def measured(self, frames: int, seconds: float) -> None:
        """Takes one request into account."""
        self.requests += 1
        if self.requests == 1 or seconds <= 0.0:
            return
        rate = frames / seconds
        old = self.frames_per_second
        self.frames_per_second = rate if old is None else _MEMORY * old + (1.0 - _MEMORY) * rate


def split_by_speed(total: int, speeds: list[float | None]) -> list[int]:
    """Shares of `total` frames in proportion to the speeds, so that all workers end together.

    Workers that were not measured yet count as fast as the mean of the others. Shares add up to `total`.
    """
    known = [speed for speed in speeds if speed]
    mean = sum(known) / len(known) if known else 1.0
    weights = [speed or mean for speed in speeds]
    exact = [total * weight / sum(weights) for weight in weights]
    shares = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: shares[i] - exact[i])
    for i in by_remainder[: total - sum(shares)]:
        shares[i] += 1
    return shares


def split_evenly(total: int, largest: int) -> list[int]:
    """Sizes of the fewest requests of at most `largest` frames, as equal as they can be."""
    count = -(-total // largest)
    return [total // count + (i < total % count) for i in range(count)]
