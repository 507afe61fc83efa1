"""Reads thousands of damaged demos, checkpoints and runs: python tests/benchmarks/damaged_inputs.py [COUNT] [KIND ...]

Each must be read or refused in a sentence: a table says how many found what, with the seeds of all that did otherwise
(another exception, the end of the process, a minute without an answer, a GB of memory more than the whole one takes).
"""

import collections
import contextlib
import json
import resource
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path += [str(TESTS), str(TESTS / "octo_teacher" / "data"), str(TESTS / "rpd_jax" / "run")]
SECONDS, MOST_KB = 60, 2**20


def main(count: int, kinds: list[str]) -> None:
    print(f"{'kind':18} {'read':>6} {'refused':>8} {'sentences':>9} {'slowest s':>9} {'MB':>6}  otherwise")
    for kind in kinds or _modules():
        found, sentences, slowest, memory, otherwise = collections.Counter(), set(), 0.0, 0, []
        seed = 0
        while seed < count:
            for outcome in _outcomes(kind, seed, count):
                seed = outcome["seed"] + 1
                word = outcome["ended"].partition(":")[0]
                found[word] += 1
                sentences.add(" ".join(outcome["ended"].split()[-8:]))
                slowest, memory = max(slowest, outcome.get("seconds", 0)), max(memory, outcome.get("kb", 0))
                if word not in ("read", "refused") or outcome.get("kb", 0) > MOST_KB:
                    otherwise.append(outcome)
        numbers = f"{found['read']:6} {found['refused']:8} {len(sentences):9} {slowest:9.1f} {memory / 1024:6.0f}"
        print(f"{kind:18} {numbers}  {len(otherwise)}", flush=True)
        for outcome in otherwise[:20]:
            print(f"    seed {outcome['seed']}: {outcome['ended'][:300]}", flush=True)


def _outcomes(kind: str, first: int, count: int):
    """What a process of its own finds from seed `first` on; the last one if it ended that."""
    command = [sys.executable, __file__, "--worker", kind, str(first), str(count)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        seed = first
        while seed < count:
            timer = threading.Timer(SECONDS + 40 * (seed == first), process.kill)
            timer.start()
            line = process.stdout.readline()
            timer.cancel()
            if not line:
                yield {"seed": seed, "ended": f"ended: the process with {process.wait()}"}
                return
            yield json.loads(line)
            seed += 1
    finally:
        process.kill()
        process.wait()


def _modules() -> dict:
    """The module that writes and reads each kind."""
    import damaged_checkpoints
    import damaged_demos
    import damaged_runs

    modules = (damaged_demos, damaged_checkpoints, damaged_runs)
    return {kind: module for module in modules for kind in module.KINDS}


def work(kind: str, first: int, count: int) -> None:
    import time
    import traceback

    module = _modules()[kind]
    with tempfile.TemporaryDirectory() as scratch:
        whole, folder = Path(scratch) / "whole", Path(scratch) / "damaged"
        whole.mkdir()
        module.write_whole(kind, whole)
        with contextlib.suppress(Exception):
            module.read_damaged(kind, whole, folder, first)  # imports and first compilations
        at_rest = _most_kb()
        for seed in range(first, count):
            start = time.perf_counter()
            try:
                ended = module.read_damaged(kind, whole, folder, seed)
            except Exception:
                ended = f"raised: {traceback.format_exc()[-280:]!r}"
            kb = _most_kb() - at_rest
            print(
                json.dumps({"seed": seed, "ended": ended, "seconds": time.perf_counter() - start, "kb": kb}), flush=True
            )


def _most_kb() -> int:
    return max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000, sys.argv[2:])
