"""LeRobot's policies as teachers: made, saved and loaded by the real package, in workers of its environment."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jax
import numpy as np
import pytest
import torch
from ml_collections import ConfigDict

from configs import default
from openvla_bridge.lerobot.noise import RowNoise
from openvla_bridge.lerobot_client import LeRobotTeacher
from rpd_jax import settings
from rpd_jax.envs.camera_task import make_task_env, states
from rpd_jax.errors import UserError
from rpd_jax.teachers import load_teacher


def teach(lerobot, kind, **arguments):
    arguments = {"state": "joints", "devices": ("cpu",), "batch_size": 1} | arguments
    return LeRobotTeacher(str(lerobot.folder / kind), python=lerobot.python, say=lambda text: None, **arguments)


def in_convention(chunks):
    """What a teacher makes of LeRobot's actions: the demos' gripper goes from 0 (closed) to 1 (open)."""
    turned = np.array(chunks)
    turned[..., 6] = 2.0 * turned[..., 6] - 1.0
    return np.clip(turned, -1.0, 1.0)


def one_by_one(teacher, lerobot, sentence):
    """The chunks [B, 4, 7] of frames that are each labelled alone."""
    frames, seen = lerobot.frames, lerobot.states
    return np.stack(
        [
            teacher.act(frames[i : i + 1], sentence, lerobot.key, first_frame=i, steps=4, state=seen[i : i + 1])[0, 0]
            for i in range(len(frames))
        ]
    )


@pytest.mark.slow
def test_a_policy_is_found_by_its_name_and_its_labels_are_lerobot_s_own(lerobot):
    """A frame alone: bit for bit what `select_action` gives for the frame's seed, the whole chunk."""
    config = ConfigDict(default.get_config().to_dict())
    config.teacher.update(name="lerobot", checkpoint=str(lerobot.folder / "act"), python=lerobot.python, state="joints")
    config.teacher.update(devices=("cpu",), batch_size=1)
    config.env.image_size = 64
    config.student.image_size = 64
    resolved = settings.resolve(config)
    teacher = load_teacher(resolved)
    try:
        assert teacher.horizon == 4 and teacher.sees_state
        chunks = teacher.act(lerobot.frames, "push", lerobot.key, steps=4, state=lerobot.states)
        assert isinstance(chunks, jax.Array) and chunks.shape == (1, 5, 4, 7)
        expected = in_convention(lerobot.chunks["act"])
        np.testing.assert_array_equal(chunks[0], expected)
        assert len(np.unique(expected[:, 0], axis=0)) == 5 and np.ptp(expected[..., :6]) > 0.1
        labels = teacher.act(lerobot.frames, "push", lerobot.key, 2, state=lerobot.states)
        np.testing.assert_array_equal(labels[0], expected[:, 0])
        np.testing.assert_array_equal(labels[1], labels[0])  # it draws nothing
        with pytest.raises(UserError, match="predicts 4 actions at a time, and 5 are wanted"):
            teacher.act(lerobot.frames, "push", lerobot.key, steps=5, state=lerobot.states)
        with pytest.raises(UserError, match="takes images of 64 x 64 pixels; the frames have 32 x 32"):
            teacher.act(lerobot.frames[:, ::2, ::2], "push", lerobot.key, state=lerobot.states)
        with pytest.raises(UserError, match="looks at the state: give it one beside the frames"):
            teacher.act(lerobot.frames, "push", lerobot.key)
    finally:
        teacher.close()
    resolved.env.image_size = 128
    with pytest.raises(
        UserError, match=r"takes images of 64 x 64 .*; the frames have 128 x 128: set env.image_size=64\."
    ):
        load_teacher(resolved)


@pytest.fixture
def asked(lerobot, monkeypatch):
    """What a hub that is out of order is asked, where its client has the backbone in its cache."""
    paths = []

    class OutOfOrder(BaseHTTPRequestHandler):
        def do_GET(self):
            paths.append(self.path)
            self.send_error(500)

        do_HEAD = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), OutOfOrder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_HOME", str(lerobot.hub))
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield paths
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_smolvla_s_labels_are_lerobot_s_own(lerobot, asked):
    """Bit for bit; one camera of two, frames that the policy resizes, a state as long as its statistics, no hub."""
    teacher = teach(lerobot, "smolvla", image="observation.images.base", image_size=64, batch_size=2)
    sentence, frames, seen = "push the cube", lerobot.frames, lerobot.states
    try:
        assert teacher.horizon == 4 and teacher.sees_state
        alone = one_by_one(teacher, lerobot, sentence)
        np.testing.assert_array_equal(alone, in_convention(lerobot.chunks["smolvla"]))
        whole = np.asarray(teacher.act(frames, sentence, lerobot.key, 2, steps=4, state=seen))
        # The backbone computes in bfloat16; noise of another frame would show in the first digit.
        np.testing.assert_allclose(whole[0], alone, atol=0.01)
        assert np.abs(whole[0] - whole[1]).max() > 0.1
        large = teacher.act(frames.repeat(2, 1).repeat(2, 2), sentence, lerobot.key, steps=4, state=seen)[0]
        np.testing.assert_allclose(large, alone, atol=0.1)
        other = teacher.act(frames[:1], "pull the cube", lerobot.key, steps=4, state=seen[:1])[0, 0]
        assert np.abs(other - alone[0]).max() > 1e-4
    finally:
        teacher.close()
    # Once, and not for each file that there may be.
    assert [path.split("?")[0] for path in asked] == ["/api/models/tiny/smolvlm/revision/main"]


@pytest.mark.slow
def test_samples_follow_from_the_key_and_the_frame_on_however_many_devices(lerobot):
    """Two workers, batches of two: a frame's samples are LeRobot's own, alone and in any part of a batch.

    To a rounding: a worker of two has half the threads.
    """
    teacher = teach(lerobot, "diffusion", devices=("cpu", "cpu"), batch_size=2)
    try:
        assert teacher.horizon == 4 and teacher.sees_state
        frames, seen = lerobot.frames, lerobot.states
        alone = in_convention(lerobot.chunks["diffusion"])
        np.testing.assert_allclose(one_by_one(teacher, lerobot, "push"), alone, atol=1e-5)
        whole = np.asarray(teacher.act(frames, "push", lerobot.key, 3, steps=2, state=seen))
        np.testing.assert_allclose(whole[0], alone[:, :2], atol=1e-5)
        assert np.abs(whole[0] - whole[1]).max() > 0.1 and np.abs(whole[1] - whole[2]).max() > 0.1
        part = teacher.act(frames[2:], "push", lerobot.key, 3, first_frame=2, steps=2, state=seen[2:])
        np.testing.assert_allclose(part, whole[:, 2:], atol=1e-5)
        other = np.asarray(teacher.act(frames, "push", jax.random.key(4), 3, steps=2, state=seen))
        assert np.abs(other - whole).max() > 0.1
    finally:
        teacher.close()


@pytest.mark.parametrize("task", ["PushCube-v1", "StackCube-v1", "LiftPegUpright-v1"])
def test_joints_are_the_first_numbers_of_the_simulator_s_state(task):
    env = make_task_env(task, 16, mesh_detail=0.05)
    try:
        observation, _ = env.reset(seed=3)
        qpos = env.unwrapped.agent.robot.get_qpos()
        assert qpos.shape == (1, 9)
        torch.testing.assert_close(states(observation)[:, :9], qpos, rtol=0, atol=0)
    finally:
        env.close()


DRAWS = {
    "randn": lambda rows: torch.randn(rows, 3, 40),
    "randn of a size": lambda rows: torch.randn(size=(rows, 7), dtype=torch.float64),
    "randn_like": lambda rows: torch.randn_like(torch.zeros(rows, 5)),
    "rand": lambda rows: torch.rand((rows, 2)),
    "normal": lambda rows: torch.normal(mean=1.0, std=2.0, size=(rows, 30)),
    "multinomial": lambda rows: torch.multinomial(torch.ones(2 * rows, 9), 1),
    "several": lambda rows: torch.cat([torch.randn(rows, 6), torch.rand(rows, 6), torch.randn(rows, 6)], dim=1),
}


@pytest.mark.parametrize("name", DRAWS)
def test_a_row_s_random_numbers_are_those_of_its_seed_alone(name):
    seeds = [3, 11, 2**45 + 1]
    with RowNoise(seeds) as noise:
        together = DRAWS[name](3)
    assert noise.used
    alone = []
    for seed in seeds:
        torch.manual_seed(seed)
        alone.append(DRAWS[name](1))
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=0)


def test_what_is_computed_without_random_numbers_is_left_alone():
    with RowNoise([1, 2]) as noise:
        assert torch.equal(torch.zeros(2, 3) + torch.arange(3), torch.arange(3.0).expand(2, 3))
        theirs = torch.randn(3, generator=torch.Generator().manual_seed(0))
    assert not noise.used
    assert torch.equal(theirs, torch.randn(3, generator=torch.Generator().manual_seed(0)))
