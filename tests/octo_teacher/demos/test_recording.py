"""Recorded demos: ManiSkill's layout, deterministic, extended in place, and whole after a kill at any moment."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest
from command_line import demos_command

from octo_teacher.data.maniskill import read_maniskill
from octo_teacher.data.maniskill_files import CAMERA
from octo_teacher.demos.episode_files import DemoFile, Episode
from octo_teacher.demos.record import Recording, record
from rpd_jax.errors import UserError

ENV_INFO = {"env_id": "PushCube-v1", "env_kwargs": {"control_mode": "pd_ee_delta_pose"}, "max_episode_steps": 50}
CAMERA_INFO = {"image_size": 8, "mesh_detail": 1.0}
SOURCE = {"source_type": "test", "source_desc": ""}


def fake_episode(seed: int, steps: int = 3) -> Episode:
    rng = np.random.default_rng(seed)
    actions = rng.uniform(-1, 1, (steps, 7)).astype(np.float32)
    return Episode(
        seed=seed,
        success=True,
        action_noise=0.0,
        seconds=0.0,
        rgb=rng.integers(0, 256, (steps + 1, 8, 8, 3), dtype=np.uint8),
        env_states={"actors": {"cube": rng.normal(size=(steps + 1, 13)).astype(np.float32)}},
        steps={
            "actions": actions,
            "executed_actions": actions,
            "rewards": np.ones(steps, np.float32),
            "success": np.ones(steps, bool),
            "terminated": np.ones(steps, bool),
            "truncated": np.zeros(steps, bool),
        },
    )


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("demos") / "push.h5"
    command = [
        "--task",
        "PushCube-v1",
        "--image-size",
        "32",
        "--mesh-detail",
        "0.07",
        "--noise",
        "0.5",
        "-o",
        str(path),
    ]
    demos_command("record", *command, "--episodes", "2", "--workers", "1")
    return path


def test_layout_is_maniskills(recorded):
    with h5py.File(recorded) as file:
        assert sorted(file) == ["traj_0", "traj_1"]
        group = file["traj_1"]
        steps = len(group["actions"])
        assert group["actions"].shape == (steps, 7) and group["actions"].dtype == np.float32
        assert group[f"obs/sensor_data/{CAMERA}/rgb"].shape == (steps + 1, 32, 32, 3)
        assert group["env_states/actors/cube"].shape == (steps + 1, 13)
        assert group["env_states/articulations/panda"].shape == (steps + 1, 31)
        assert group["success"][:].tolist() == [False] * (steps - 1) + [True]
        assert not group["truncated"][:].any()
        assert group["rewards"][:].tolist() == [0.0] * (steps - 1) + [1.0]
    header = json.loads(recorded.with_suffix(".json").read_text())
    assert header["env_info"]["env_id"] == "PushCube-v1" and header["env_info"]["max_episode_steps"] == 50
    entry = header["episodes"][1]
    assert entry["episode_id"] == 1 and entry["elapsed_steps"] == steps and entry["success"] is True
    assert entry["control_mode"] == "pd_ee_delta_pose"


def test_noise_is_in_the_executed_translations_and_not_in_the_labels(recorded):
    with h5py.File(recorded) as file:
        label, executed = file["traj_0/actions"][:], file["traj_0/executed_actions"][:]
    assert np.abs(label[:, :3] - executed[:, :3]).max() > 0.01
    np.testing.assert_array_equal(label[:, 3:], executed[:, 3:])


def test_extending_gives_the_file_of_one_recording(recorded):
    """Whatever the number of workers."""
    alone = recorded.parent / "alone.h5"
    options = {"task": "PushCube-v1", "image_size": 32, "mesh_detail": 0.07, "noise": 0.5}
    record(Recording(episodes=3, output=recorded, workers=2, **options))
    record(Recording(episodes=3, output=alone, workers=1, **options))
    with h5py.File(recorded) as extended, h5py.File(alone) as whole:
        assert sorted(extended) == sorted(whole) == ["traj_0", "traj_1", "traj_2"]
        for name in whole:
            for key in ("actions", "executed_actions", f"obs/sensor_data/{CAMERA}/rgb"):
                np.testing.assert_array_equal(extended[name][key], whole[name][key])
    entries = [json.loads(path.with_suffix(".json").read_text())["episodes"] for path in (recorded, alone)]
    assert entries[0] == entries[1]


def test_a_file_of_other_options_is_not_extended(recorded):
    command = ["record", "--task", "PushCube-v1", "--episodes", "9", "--image-size", "64", "-o", str(recorded)]
    with pytest.raises(UserError, match=r"was recorded with human_camera = {'image_size': 32, 'mesh_detail': 0.07}"):
        demos_command(*command)


def test_episodes_survive_a_kill_before_they_are_merged(tmp_path):
    path = tmp_path / "demos.h5"
    demos = DemoFile.open_for_append(path, ENV_INFO, CAMERA_INFO, SOURCE)
    demos.add(fake_episode(0))
    demos.merge()
    demos = DemoFile.open_for_append(path, ENV_INFO, CAMERA_INFO, SOURCE)
    demos.add(fake_episode(1))
    (tmp_path / "demos.parts" / "2.tmp").write_bytes(b"half an episode")
    del demos  # killed: nothing merged
    again = DemoFile.open_for_append(path, ENV_INFO, CAMERA_INFO, SOURCE)
    assert len(again) == 2 and again.last_seed() == 1
    again.add(fake_episode(7))
    again.merge()
    demos = list(read_maniskill(path))
    assert [len(demo.actions) for demo in demos] == [3, 3, 3]
    np.testing.assert_array_equal(demos[2].images["primary"], fake_episode(7).rgb[:3])
    assert not (tmp_path / "demos.parts").exists()


@pytest.mark.parametrize("merged", [0, 1])
def test_parts_of_other_options_are_not_taken_over(tmp_path, merged):
    """A killed recording left them; where there is a whole file, its json may have been replaced since."""
    path, other = tmp_path / "demos.h5", CAMERA_INFO | {"mesh_detail": 0.5}
    demos = DemoFile.open_for_append(path, ENV_INFO, CAMERA_INFO, SOURCE)
    for seed in range(2):
        demos.add(fake_episode(seed))
        if seed < merged:
            demos.merge()
            demos = DemoFile.open_for_append(path, ENV_INFO, CAMERA_INFO, SOURCE)
    del demos  # killed
    if merged:
        content = json.loads(path.with_suffix(".json").read_text()) | {CAMERA: other}
        path.with_suffix(".json").write_text(json.dumps(content))
    sentence = rf"{merged}.h5 was recorded with human_camera = .*'mesh_detail': 1.0}}, not .*, or remove .*demos.parts"
    with pytest.raises(UserError, match=sentence):
        DemoFile.open_for_append(path, ENV_INFO, other, SOURCE)
    with h5py.File(tmp_path / "demos.parts" / f"{merged}.h5", "a") as part:
        del part.attrs["header"]  # as older versions wrote them
    with pytest.raises(UserError, match="was recorded with env_info = unknown"):
        DemoFile.open_for_append(path, ENV_INFO, other, SOURCE)
    assert len(list((tmp_path / "demos.parts").iterdir())) == 2 - merged


def test_the_json_is_restored_from_the_h5(tmp_path):
    path = tmp_path / "demos.h5"
    demos = DemoFile.open_for_append(path, ENV_INFO, CAMERA_INFO, SOURCE)
    demos.add(fake_episode(0))
    demos.merge()
    before = path.with_suffix(".json").read_text()
    outdated = json.loads(before) | {"episodes": []}
    path.with_suffix(".json").write_text(json.dumps(outdated))
    DemoFile.open_for_append(path, ENV_INFO, CAMERA_INFO, SOURCE).merge()
    assert path.with_suffix(".json").read_text() == before


@contextmanager
def files_of_at_most(size: int):
    """No file may grow beyond this, as if the disk was full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_without_room_what_was_whole_stays_whole_and_the_same_command_goes_on(tmp_path):
    path = tmp_path / "demos.h5"
    demos = DemoFile.open_for_append(path, ENV_INFO, CAMERA_INFO, SOURCE)
    demos.add(fake_episode(0))
    refused = pytest.raises(UserError, match=r"1.h5 cannot be written .*; the 1 episodes so far are whole: make room")
    with refused, files_of_at_most(4096):
        demos.add(fake_episode(1))
    demos.merge()
    before = path.read_bytes(), path.with_suffix(".json").read_bytes()

    demos = DemoFile.open_for_append(path, ENV_INFO, CAMERA_INFO, SOURCE)
    demos.add(fake_episode(1))
    refused = pytest.raises(UserError, match=r"demos.h5 cannot be written .*; the 2 episodes so far are whole")
    with refused, files_of_at_most(len(before[0]) + 4096):
        demos.merge()
    assert (path.read_bytes(), path.with_suffix(".json").read_bytes()) == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["demos.h5", "demos.json", "demos.parts"]

    demos = DemoFile.open_for_append(path, ENV_INFO, CAMERA_INFO, SOURCE)
    assert len(demos) == 2
    demos.merge()
    read = list(read_maniskill(path))
    for seed, demo in enumerate(read):
        np.testing.assert_array_equal(demo.actions, fake_episode(seed).steps["actions"])
        np.testing.assert_array_equal(demo.images["primary"], fake_episode(seed).rgb[:3])
    assert len(read) == 2 and path.stat().st_size < 2 * len(before[0])


def test_a_kill_between_the_two_files_of_a_merge_loses_nothing(tmp_path):
    path = tmp_path / "demos.h5"
    demos = DemoFile.open_for_append(path, ENV_INFO, CAMERA_INFO, SOURCE)
    demos.add(fake_episode(0))
    demos.merge()
    path.with_suffix(".json").rename(tmp_path / "demos.json.tmp")
    assert len(DemoFile.open_for_append(path, ENV_INFO, CAMERA_INFO, SOURCE)) == 1
    # an older json: the trajectories say themselves what they are
    content = json.loads(path.with_suffix(".json").read_text()) | {"episodes": []}
    path.with_suffix(".json").write_text(json.dumps(content))
    assert len(list(read_maniskill(path))) == 1


def test_a_broken_part_is_recorded_again(tmp_path):
    path = tmp_path / "demos.h5"
    demos = DemoFile.open_for_append(path, ENV_INFO, CAMERA_INFO, SOURCE)
    for seed in range(3):
        demos.add(fake_episode(seed))
    part = tmp_path / "demos.parts" / "1.h5"
    part.write_bytes(part.read_bytes()[:700])
    again = DemoFile.open_for_append(path, ENV_INFO, CAMERA_INFO, SOURCE)
    assert len(again) == 1 and again.last_seed() == 0


RECORDER = """
import sys
import threading
from pathlib import Path
sys.path.insert(0, {tests!r})
from octo_teacher.demos.parallel import in_order
from octo_teacher.demos.record import merged_at_the_end
from test_recording import CAMERA_INFO, ENV_INFO, SOURCE, DemoFile, fake_episode

def prepare():
    return fake_episode

if __name__ == "__main__":
    demos = DemoFile.open_for_append(Path(sys.argv[1]), ENV_INFO, CAMERA_INFO, SOURCE)
    try:
        with merged_at_the_end(demos) as check_stop:
            for episode in in_order(prepare, 0, workers=2, check=check_stop):
                demos.add(episode)
    except KeyboardInterrupt:
        left = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
        sys.exit(f"left: {{left}}" if left else 130)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_recording_keeps_its_episodes_and_leaves_no_trace(tmp_path, number):
    """SIGINT reaches parent and workers alike, as Ctrl-C in a terminal does."""
    script, path = tmp_path / "recorder.py", tmp_path / "demos.h5"
    script.write_text(RECORDER.format(tests=str(Path(__file__).parent)))
    command = [sys.executable, str(script), str(path)]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob("demos.parts/1.h5")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    _, words = process.communicate(timeout=120)
    assert (process.returncode, words) == (130, "")
    assert len(list(read_maniskill(path))) >= 2
    assert sorted(file.name for file in tmp_path.iterdir()) == ["demos.h5", "demos.json", "recorder.py"]


@pytest.mark.slow
def test_a_killed_recording_continues(tmp_path):
    path = tmp_path / "demos.h5"
    command = ["record", "--task", "PushCube-v1", "--image-size", "32", "--mesh-detail", "0.07", "--workers", "1"]
    command = [sys.executable, "-m", "octo_teacher.demos", *command, "--episodes", "4", "-o", str(path)]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("demos.parts/1.h5")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert len(list(read_maniskill(path))) == 4
    seeds = [entry["episode_seed"] for entry in json.loads(path.with_suffix(".json").read_text())["episodes"]]
    assert seeds == sorted(set(seeds))


def test_wrong_arguments_are_named(tmp_path):
    with pytest.raises(UserError, match="must be named"):
        DemoFile.open_for_append(tmp_path / "demos.zip", ENV_INFO, CAMERA_INFO, SOURCE)
    with pytest.raises(UserError, match="no scripted expert"):
        record(Recording("PokeCube-v1", 1, tmp_path / "a.h5"))
    with pytest.raises(UserError, match="--episodes=0"):
        record(Recording("PushCube-v1", 0, tmp_path / "a.h5"))
