"""A step for which there is no memory ends a fine-tuning in one sentence; in a process with a real limit."""

import subprocess
import sys
from pathlib import Path

import pytest
from glibc_memory import WITH_GLIBC

from octo_teacher.octo_model import OctoModel

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import contextlib, resource, sys
from pathlib import Path
from configs.finetune_octo import get_config
from octo_teacher.finetune import FineTuning
from octo_teacher.finetuning.train_step import Devices
from rpd_jax.errors import UserError
from rpd_jax.run.console import Console

class WithLittleMemoryFromItsSecondStepOn(FineTuning):
    def _train(self):
        if self.step == 1:
            size = int(open("/proc/self/status").read().split("VmSize:")[1].split()[0]) * 1024
            resource.setrlimit(resource.RLIMIT_AS, (size + 2**24, hard))
        return super()._train()

init, demos, workdir = sys.argv[1:]
_, hard = resource.getrlimit(resource.RLIMIT_AS)
config = get_config()
config.update(init=init, demos=demos, cache=workdir + "-cache", held_out=0.0, batch_size=1024, steps=2, save_every=1)
config.optimizer.warmup_steps, config.augment.enabled = 1, False
with contextlib.ExitStack() as stack:
    run = WithLittleMemoryFromItsSecondStepOn(config, Path(workdir), Devices(1), Console(), stack)
    try:
        run.run()
    except UserError as error:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        print("refused:", error)
"""


@pytest.mark.slow
def test_a_step_without_memory_is_one_sentence_and_the_checkpoint_before_is_kept(micro_octo, bright_demos, tmp_path):
    command = [sys.executable, "-c", SCRIPT, str(micro_octo), str(bright_demos), str(tmp_path / "run")]
    run = subprocess.run(command, cwd=ROOT, env=WITH_GLIBC, capture_output=True, text=True, timeout=500)
    assert run.returncode == 0, run.stderr
    last = run.stdout.strip().splitlines()[-1]
    assert last.startswith("refused: Memory ran out while fine-tuning ("), run.stdout
    assert "or lower config.batch_size, or raise config.accumulate, in a run with another --workdir" in last
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit()] == ["1"]
    OctoModel.load_pretrained(tmp_path / "run" / "model", 1)
