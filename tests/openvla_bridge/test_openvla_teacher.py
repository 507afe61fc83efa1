"""The teacher with its real worker: a tiny random OpenVLA in a process whose Python knows no JAX."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import psutil
import pytest
from absl import flags
from glibc_memory import WITH_GLIBC
from ml_collections import ConfigDict
from tiny_openvla import IMAGE_SIZE

from configs import default
from openvla_bridge import profile
from openvla_bridge.model.policy import OpenVLAPolicy
from openvla_bridge.request import Known, Model, Request
from openvla_bridge.ring import RingLayout
from openvla_bridge.worker_process import WorkerProcess
from rpd_jax import settings
from rpd_jax.command.flag_kinds import with_underscores
from rpd_jax.errors import UserError
from rpd_jax.teachers import load_teacher

FRAMES = np.random.default_rng(0).integers(0, 256, (7, 32, 40, 3), dtype=np.uint8)

WITHOUT_JAX = """
import runpy, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("jax", "jaxlib", "flax", "rpd_jax", "octo_teacher"):
            with open({record!r}, "a") as file:
                print(name, file=file)
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Refuse())
sys.argv = sys.argv[2:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module")
def teacher(checkpoint, tmp_path_factory):
    """A teacher that samples, whose worker cannot import JAX or rpd_jax, and records each attempt."""
    folder = tmp_path_factory.mktemp("interpreter")
    record = folder / "attempts"
    record.touch()
    (folder / "start.py").write_text(WITHOUT_JAX.format(record=str(record)))
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {folder / "start.py"} "$@"\n')
    python.chmod(0o755)
    config = ConfigDict(default.get_config().to_dict())
    config.teacher.name = "openvla"
    config.teacher.checkpoint = str(checkpoint)
    config.teacher.python = str(python)
    config.teacher.devices = ("cpu",)
    config.teacher.temperature = 1.0
    config.teacher.batch_size = 3
    teacher = load_teacher(settings.resolve(config))
    yield teacher, record
    teacher.close()
    with pytest.raises(UserError, match="closed: load it again"):
        teacher.act(FRAMES, "push", jax.random.key(0))


def test_the_worker_tries_to_import_neither_jax_nor_rpd_jax(teacher):
    teacher, record = teacher
    teacher.act(FRAMES, "push", jax.random.key(0))
    assert record.read_text() == ""


def test_the_worker_s_threads_sleep_while_they_wait(teacher):
    """Where environments need the cores as well, those that do not keep each other from them."""
    teacher, _ = teacher
    (pid,) = teacher.team.pids
    assert psutil.Process(pid).environ()["OMP_WAIT_POLICY"] == "PASSIVE"


def test_actions_are_those_of_the_model_in_this_process(teacher, checkpoint):
    teacher, _ = teacher
    teacher._temperature = 0.0
    actions = teacher.act(jnp.asarray(FRAMES), "pick up the cube", jax.random.key(0), num_samples=2)
    teacher._temperature = 1.0
    assert isinstance(actions, jax.Array) and actions.dtype == jnp.float32 and actions.shape == (2, 7, 7)
    policy = OpenVLAPolicy.load(str(checkpoint), "cpu")
    expected = policy.environment_actions(policy.predict_tokens(FRAMES, "pick up the cube"))
    np.testing.assert_allclose(actions[0], expected[0], atol=1e-6)
    np.testing.assert_array_equal(actions[0], actions[1])
    assert len(np.unique(np.asarray(actions[0]), axis=0)) > 1  # different frames, different actions


def test_samples_follow_from_the_key_and_the_frame(teacher):
    teacher, _ = teacher
    first = np.asarray(teacher.act(FRAMES, "push", jax.random.key(1), num_samples=2))
    assert (first[0] != first[1]).any()
    np.testing.assert_array_equal(first, teacher.act(FRAMES, "push", jax.random.key(1), num_samples=2))
    # Fewer frames, so other batches: frame i keeps its random numbers.
    np.testing.assert_allclose(first[:, :4], teacher.act(FRAMES[:4], "push", jax.random.key(1), num_samples=2))
    assert (first != np.asarray(teacher.act(FRAMES, "push", jax.random.key(2), num_samples=2))).any()


def test_batches_may_be_begun_before_others_are_finished(teacher):
    """More than the ring holds; of two sizes, so that it changes its layout in between; finished in reverse order."""
    teacher, _ = teacher
    key, halves = jax.random.key(3), FRAMES[:, ::2, ::2]
    whole, small = teacher.act(FRAMES, "push", key, 2), teacher.act(halves, "lift", key, 2)
    parts = [(0, 5), (5, 6), (6, 7)]
    begun = [teacher.begin(FRAMES[a:b], "push", key, 2, first_frame=a) for a, b in parts]
    begun.append(teacher.begin(halves, "lift", key, 2))
    begun.append(teacher.begin(FRAMES, "push", key, 2))
    *of_parts, of_halves, of_all = [finish() for finish in reversed(begun)][::-1]
    np.testing.assert_allclose(np.concatenate(of_parts, axis=1), whole, atol=1e-6)
    np.testing.assert_allclose(of_halves, small, atol=1e-6)
    np.testing.assert_allclose(of_all, whole, atol=1e-6)


def test_frames_that_are_none(teacher):
    teacher, _ = teacher
    with pytest.raises(UserError, match=r"uint8 \[B, H, W, 3\]; float32 \[1, 8, 8, 3\]"):
        teacher.act(jnp.zeros((1, 8, 8, 3)), "push", jax.random.key(0))


@pytest.mark.slow
def test_a_worker_that_runs_out_of_memory_halves_its_batch_and_says_so(checkpoint, monkeypatch):
    """The limit is the kernel's, on the address space of the real worker: 16 frames at a time do not fit, 8 do."""
    told = []
    monkeypatch.setenv("LD_PRELOAD", WITH_GLIBC["LD_PRELOAD"])
    worker = WorkerProcess("worker", request_timeout=300.0, say=told.append)
    try:
        worker.greet()
        model = Model("OpenVLA", "openvla", str(checkpoint), "float32", {"unnorm_key": None})
        worker.request_load(model, "cpu", 16, 1)
        assert worker.wait_until_known() == Known(7, {"q01": 0.0, "q99": 1.0})
        assert worker.wait_until_loaded() == 1
        frames = np.random.default_rng(1).integers(0, 256, (16, 64, 64, 3), dtype=np.uint8)

        worker.attach(RingLayout(2, 16, 64, 64, 1, 7))

        def label(count):
            worker.submit(Request(frames[:count], np.empty((count, 0)), "push", gripper=(2.0, -1.0)))
            while (answer := worker.collect()) is None:
                pass
            return answer[0][:, :, 0].copy()

        label(2)
        told.clear()
        process = psutil.Process(worker.process.pid)
        process.rlimit(psutil.RLIMIT_AS, (process.memory_info().vms + (4 << 20), psutil.RLIM_INFINITY))
        policy = OpenVLAPolicy.load(str(checkpoint), "cpu")
        expected = policy.environment_actions(policy.predict_tokens(frames, "push"))
        np.testing.assert_allclose(label(16), expected, atol=1e-6)
        assert told and "out of memory with 16 frames at a time; continues with 8" in told[0]
    finally:
        worker.close()


def test_names_fill_in_the_published_checkpoint():
    config = default.get_config()
    config.teacher.name = "openvla"
    assert settings.resolve(config).teacher.checkpoint == "hf://Juelg/openvla-7b-finetuned-maniskill"
    config.teacher.checkpoint = "mine"
    assert settings.resolve(config).teacher.checkpoint == "mine"


def measure(*words):
    values = flags.FlagValues()
    profile.define_flags(values)
    values(with_underscores(["profile", *words], values))
    profile.run(values)


def test_profile_measures_every_stage_and_the_transport(checkpoint, capsys):
    words = ["--batch=1,2", "--repeats=1", "--image-size=64", "--transport-frames=4", "--threads=1", "--json"]
    measure(f"--checkpoint={checkpoint}", *words)
    result = json.loads(capsys.readouterr().out)
    paths = [(row["path"], row["batch"]) for row in result["rows"]]
    assert paths == [("batch", 1), ("batch", 2), ("Pillow", 1), ("published", 1)]
    assert all(row["total_ms"] > 0 and row["times_batch"] > 0 for row in result["rows"])
    assert result["rows"][1]["times_batch"] == 1.0
    for row in result["rows"][:2]:
        assert all(row[f"{part}_ms"] > 0 for part in ("preprocess", "vision", "prefill", "decode"))
        assert row["matmul_share"] > 0 and row["bandwidth_share"] > 0
    assert result["transport"]["megabytes"] == pytest.approx(4 * 64 * 64 * 3 / 1e6)
    assert result["transport"]["transport_ms"] > 0 and result["transport"]["memcpy_ms"] > 0
    with pytest.raises(UserError, match="There is no checkpoint folder /nowhere"):
        measure("--checkpoint=/nowhere")
    assert IMAGE_SIZE == 56
