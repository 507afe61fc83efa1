"""What demos from outside say is used as meant, or refused with the file and the mend; nothing is left out unsaid."""

import json
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from demo_files import (
    HAND,
    episode,
    lerobot_rows,
    tensor,
    write_lerobot,
    write_maniskill,
    write_rlds,
)

from octo_teacher.data.images import resize
from octo_teacher.data.left_out import Tally
from octo_teacher.data.readers import action_meaning, format_of, read_demos
from octo_teacher.data.store import load_demos
from rpd_jax.errors import UserError


def ones(steps, numbers=7):
    """Actions that tell their step: 0, 0.01, 0.02, ..."""
    return np.repeat(np.arange(steps)[:, None] / 100, numbers, axis=1).astype(np.float32)


def read(path, **options):
    """The demos, and what was said of them."""
    said = []
    cameras = {"primary": HAND} if (path / "meta").is_dir() else None
    tally = Tally(said.append, **options.pop("tally", {}))
    return list(read_demos(path, cameras, tally=tally, **options)), said


def write(kind, folder, actions, **options):
    if kind == "maniskill":
        return write_maniskill(folder / "demos.h5", actions, **options)
    if kind == "rlds":
        return write_rlds(folder / "toy", [[episode(values) for values in actions]], **options)
    return write_lerobot(folder / "set", actions, version=kind, **options)


KINDS = ("maniskill", "rlds", "v2.1", "v3.0")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_number_that_is_not_finite_is_told_with_its_place_and_nothing_is_stored(tmp_path, kind, value):
    actions = [ones(2), ones(3)]
    actions[1][2, 3] = value
    path = write(kind, tmp_path, actions)
    cameras = {"primary": HAND} if kind.startswith("v") else None
    with pytest.raises(UserError, match=rf"the action of step 2 has {value} in dimension 3") as error:
        load_demos(path, {"primary": 8}, cameras, cache=tmp_path / "cache")
    place = {
        "maniskill": "demos.h5: traj_1",
        "rlds": "toy-train.tfrecord-00000-of-00001, record 1",
        "v2.1": "episode_000001.parquet, episode 1",
        "v3.0": "file-000.parquet, episode 1",
    }[kind]
    assert place in str(error.value)
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_instruction_is_a_missing_one(tmp_path, kind):
    if kind == "maniskill":
        path = write_maniskill(tmp_path / "demos.h5", [ones(2), ones(2)], task="PegInsertionSide-v1")
        with pytest.raises(UserError, match=r"demos.json: its task 'PegInsertionSide-v1' has no instruction here"):
            read(path)
        expected = ["insert the peg"] * 2
    else:
        if kind == "rlds":
            path = write_rlds(tmp_path / "toy", [[episode(ones(2)), episode(ones(2), text=" ")]])
        else:
            path = write_lerobot(tmp_path, [ones(2), ones(2)], version=kind, tasks=("push the cube", ""))
        demos, said = read(path)
        assert [demo.instruction for demo in demos] == ["push the cube"]
        (line,) = said
        assert "leaves out 1 of 2 episodes, which have no instruction" in line and "config.instruction" in line
        assert ("record 1 of" if kind == "rlds" else "episode 1") in line
        expected = ["push the cube", "insert the peg"]
    demos, said = read(path, instruction="insert the peg")
    assert [demo.instruction for demo in demos] == expected and said == []


def test_an_episode_with_several_instructions_is_counted(tmp_path):
    texts = [b"", b"push", b"pull"]
    path = write_rlds(tmp_path, [[episode(ones(3), more={"steps/language_instruction": texts})]])
    demos, said = read(path)
    assert demos[0].instruction == "push"
    assert "1 of 1 episodes have several instructions, of which the first is told" in said[0]


def test_what_is_left_out_of_a_maniskill_file_is_said_and_a_setting_keeps_it(tmp_path):
    entries = [{}, {"success": False}, {}, {}]
    path = write_maniskill(tmp_path / "demos.h5", [ones(3), ones(3), ones(9), ones(0)], entries=entries, limit=5)
    demos, said = read(path)
    assert [len(demo.actions) for demo in demos] == [3]
    failed, overlong, empty = (next(line for line in said if word in line) for word in ("failed", "longer", "no step"))
    assert "1 of 4 episodes, which failed (traj_1): config.only_successful=False keeps them" in failed
    assert "which are longer than the task's limit of 5 steps (traj_2)" in overlong
    assert "which have no step (traj_3)" in empty
    stored = load_demos(path, {"primary": 4}, cache=tmp_path, only_successful=False, on_note=said.append)
    assert [len(demo.actions) for demo in stored] == [3, 3, 9]
    # a store that is found again says it again
    again = []
    load_demos(path, {"primary": 4}, cache=tmp_path, only_successful=False, on_note=again.append)
    assert again == said[3:] and len(again) == 1 and "no step" in again[0]
    # whoever looks sees all, and is told what training would leave out
    demos, said = read(path, tally={"looking": True})
    assert [len(demo.actions) for demo in demos] == [3, 3, 9] and len(said) == 3


def test_trajectories_and_json_must_belong_together(tmp_path):
    path = write_maniskill(tmp_path / "demos.h5", [ones(2)], entries=[{}])
    content = json.loads(path.with_suffix(".json").read_text())
    content["episodes"].append({"episode_id": 5})
    path.with_suffix(".json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"demos.h5 lacks traj_5, one of 1 episodes that demos.json lists"):
        read(path)
    content["episodes"] = []
    path.with_suffix(".json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"demos.json has no entry for traj_0"):
        read(path)


@pytest.mark.parametrize("mode", ["pd_ee_pose", "pd_joint_delta_pos", "pd_ee_target_delta_pose"])
def test_another_control_mode_is_refused(tmp_path, mode):
    path = write_maniskill(tmp_path / "demos.h5", [ones(2)], mode=mode)
    with pytest.raises(UserError, match=rf"demos.h5: traj_0 has control_mode '{mode}'"):
        read(path)
    path = write_maniskill(tmp_path / "own.h5", [ones(2)], mode=None, entries=[{"control_mode": mode}])
    with pytest.raises(UserError, match=rf"own.h5: traj_0 has control_mode '{mode}'"):
        read(path)
    path = write_maniskill(tmp_path / "two.h5", [ones(2)], entries=[{"control_mode": mode}])
    with pytest.raises(
        UserError, match=rf"traj_0 has control_mode '{mode}', env_info.env_kwargs has 'pd_ee_delta_pose'"
    ):
        read(path)


def test_without_a_control_mode_actions_beyond_its_bounds_are_refused(tmp_path):
    path = write_maniskill(tmp_path / "demos.h5", [np.full((2, 7), 3.14)], mode=None)
    with pytest.raises(UserError, match=r"traj_0 has no control_mode, and its actions go from 3.14 to 3.14"):
        read(path)


def test_translations_alone_are_converted_exactly(tmp_path):
    path = write_maniskill(tmp_path / "demos.h5", [ones(3, 4)], mode="pd_ee_delta_pos")
    demos, _ = read(path)
    expected = np.zeros((3, 7), np.float32)
    expected[:, [0, 1, 2, 6]] = ones(3, 4)
    np.testing.assert_array_equal(demos[0].actions, expected)
    assert "converted to pd_ee_delta_pose" in action_meaning(path).found


@pytest.mark.parametrize("kind", ["rlds", "v2.1", "v3.0"])
def test_a_gripper_from_0_to_1_is_converted_if_its_meaning_is_known(tmp_path, kind):
    actions = ones(3)
    actions[:, 6] = [0, 1, 0.25]
    path = write(kind, tmp_path, [actions])
    cameras = {"primary": HAND} if kind.startswith("v") else None

    def load(folder=path, **options):
        said = []
        demos = load_demos(folder, {"primary": 8}, cameras, cache=tmp_path / "cache", on_note=said.append, **options)
        return demos[0].actions, said

    with pytest.raises(UserError, match=r"the gripper, the last of 7 numbers, goes from 0 to 1.*config.gripper"):
        load()
    for choice, expected in {"one_is_open": [-1, 1, -0.5], "zero_is_open": [1, -1, 0.5], "as_is": [0, 1, 0.25]}.items():
        found, said = load(gripper=choice)
        assert found[:, 6].tolist() == expected
        np.testing.assert_array_equal(found[:, :6], actions[:, :6])
        assert len(said) == (choice != "as_is")
    if cameras:
        names = {"motors": ["x", "y", "z", "roll", "pitch", "yaw", "gripper_closed"]}
        found, said = load(write_lerobot(tmp_path / "named", [actions], version=kind, names=names))
        assert found[:, 6].tolist() == [1, -1, 0.5] and "converted" in said[0]


@pytest.mark.parametrize("still", [[0, 0, 0], [1, 1, 1], [0.6, 0.75, 1]])
def test_a_gripper_that_hardly_moves_is_converted_by_its_name_or_asked_for(tmp_path, still):
    actions = ones(3)
    actions[:, 6] = still
    axes = ["x", "y", "z", "roll", "pitch", "yaw"]

    def load(name, **options):
        path = write_lerobot(tmp_path / name, [actions], names=[*axes, name])
        (demo,) = load_demos(path, {"primary": 8}, {"primary": HAND}, cache=tmp_path / "cache", **options)
        return demo.actions[:, 6].tolist(), demo.gripper_converted

    opened = np.float32([2 * value - 1 for value in still])
    assert load("gripper_open") == (pytest.approx(opened), True)
    assert load("gripper_closed") == (pytest.approx(-opened), True)
    with pytest.raises(UserError, match=f"(is always {still[0]}|from 0.6 to 1), where .*: say with config.gripper"):
        load("gripper")
    assert load("gripper", gripper="as_is") == (pytest.approx(still), False)


@pytest.mark.parametrize(
    ("actions", "names", "reason"),
    [
        (ones(2, 6), None, "they have 6 numbers, pd_ee_delta_pose's 7"),
        (ones(2, 8), None, "they have 8 numbers"),
        (ones(2, 7), [f"joint_{i}" for i in range(7)], "which are joints"),
        (ones(2, 7), ["x", "y", "z", "roll", "pitch", "yaw", "gripper"], ""),
    ],
)
def test_actions_that_cannot_drive_the_tasks_are_known_by_their_metadata(tmp_path, actions, names, reason):
    path = write_lerobot(tmp_path, [actions], names=names)
    meaning = action_meaning(path)
    assert reason in meaning.unusable and bool(reason) == bool(meaning.unusable) and not meaning.stated
    assert read(path)[0][0].actions.shape == actions.shape  # another robot's Octo may be trained on them


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_vectors_of_one_number_are_stored_as_numbers(tmp_path, version):
    path = write_lerobot(tmp_path, [np.float32([0.25, 0.5])], version=version)
    np.testing.assert_array_equal(read(path)[0][0].actions, [[0.25], [0.5]])


@pytest.mark.parametrize("encoding", ["bytes", "zlib"])
def test_encoded_tensors_are_decoded_as_declared(tmp_path, encoding):
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (3, 7))
    frames = rng.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    pack = zlib.compress if encoding == "zlib" else bytes
    more = {
        "steps/action": [pack(row.astype("<f8").tobytes()) for row in actions],
        "steps/observation/image": [pack(frame.tobytes()) for frame in frames],
    }
    declared = {
        "action": tensor(7, dtype="float64", encoding=encoding),
        "image": tensor(8, 8, 3, dtype="uint8", encoding=encoding),
    }
    path = write_rlds(tmp_path, [[episode(ones(3), more=more)]], **declared)
    (demo,), _ = read(path)
    np.testing.assert_array_equal(demo.actions, actions.astype(np.float32))
    np.testing.assert_array_equal(demo.images["primary"], frames)
    more["steps/action"][1] = pack(b"short")
    write_rlds(tmp_path / "short", [[episode(ones(3), more=more)]], **declared)
    with pytest.raises(UserError, match=r"record 0: steps/action has values of 5 bytes, .* declares 56"):
        read(tmp_path / "short")


@pytest.mark.parametrize("size", [8, 4])
def test_frames_that_are_stored_as_numbers_become_bytes(tmp_path, size):
    """Stored as they are, or resized."""
    frames = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3))
    declared = {"image": tensor(8, 8, 3, dtype="uint8")}
    path = write_rlds(tmp_path / "set", [[episode(ones(3), more={"steps/observation/image": frames})]], **declared)
    (demo,) = load_demos(path, {"primary": size}, cache=tmp_path / "cache", gripper="as_is")
    assert demo.images["primary"][:].dtype == np.uint8
    np.testing.assert_array_equal(demo.images["primary"][:], resize(frames.astype(np.uint8), size))
    for wrong in (256, -1):
        frames[1, 2, 3, 0] = wrong
        more = {"steps/observation/image": frames}
        path = write_rlds(tmp_path / str(wrong), [[episode(ones(3), more=more)]], **declared)
        with pytest.raises(UserError, match=r"record 0: steps/observation/image holds other numbers than 0 to 255"):
            load_demos(path, {"primary": size}, cache=tmp_path / "cache")


def test_padding_instead_of_frames_is_left_out_and_said(tmp_path):
    metadata = {"has_image": tensor(dtype="bool")}
    shard = [episode(ones(2), more={"episode_metadata/has_image": np.array([here])}) for here in (1, 0, 1)]
    shard[2]["steps/observation/image"][1] = b""
    path = write_rlds(tmp_path, [shard], metadata=metadata)
    demos, said = read(path)
    assert len(demos) == 1
    assert "leaves out 2 of 3 episodes, which have padding instead of frames" in said[0] and "config.cameras" in said[0]


def test_several_datasets_below_a_folder_are_listed(tmp_path):
    for name in ("libero_10", "libero_goal"):
        for version in ("1.0.0", "1.10.0"):
            write_rlds(tmp_path / name / version, [[episode(ones(2), text=version)]])
    with pytest.raises(UserError, match=r"holds 2 datasets: name one of 'libero_10', 'libero_goal'"):
        format_of(tmp_path)
    assert read(tmp_path / "libero_10")[0][0].instruction == "1.10.0"
    write_lerobot(tmp_path / "more/one", [ones(2)])
    write_lerobot(tmp_path / "more/two", [ones(2)])
    with pytest.raises(UserError, match=r"holds 2 datasets: name one of 'one', 'two'"):
        format_of(tmp_path / "more")
    write_rlds(tmp_path / "mixed/toy/1.0.0", [[episode(ones(2))]])
    write_maniskill(tmp_path / "mixed/demos.h5", [ones(2)])
    with pytest.raises(UserError, match=r"holds 2 datasets: name one of 'demos.h5', 'toy'"):
        format_of(tmp_path / "mixed")
    (tmp_path / "one").mkdir()
    write_maniskill(tmp_path / "one/demos.h5", [ones(2)])
    with pytest.raises(UserError, match=r"one is no dataset, but '.*one/demos.h5' in it is"):
        format_of(tmp_path / "one")


@pytest.fixture
def ten(tmp_path):
    """Ten episodes in shards of 4, 4 and 2, told their numbers, and two of another split."""
    shards = [[episode(ones(1), text=str(i)) for i in part] for part in (range(4), range(4, 8), range(8, 10))]
    folder = write_rlds(tmp_path / "toy/1.0.0", shards)
    return write_rlds(folder, [[episode(ones(1), text=f"v{i}") for i in range(2)]], split="val")


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", range(10)),
        ("train[3:6]", range(3, 6)),
        ("train[:95%]", range(10)),  # 9.5 is rounded to the even 10, as by TFDS
        ("train[:25%]", range(2)),  # 2.5 to the even 2
        ("train[-30%:]", range(7, 10)),
        ("train[-2:]", (8, 9)),
        ("train[1shard]", range(4, 8)),
        ("train[2shard:]", (8, 9)),
        ("val + train[:1]", ("v0", "v1", 0)),
        ("all", (*range(10), "v0", "v1")),
    ],
)
def test_splits_in_the_notation_of_tfds(ten, split, expected):
    demos, said = read(ten, split=split)
    assert [demo.instruction for demo in demos] == [str(i) for i in expected]
    left = 12 - len(list(expected))
    assert len(said) == bool(left) and all(f"takes {12 - left} of 12 episodes" in line for line in said)
    demos, said = read(ten, split="all", tally={"looking": True})
    assert len(demos) == 12 and "its splits are train (10), val (2); training takes config.split" in said[0]


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("test", r"has no split 'test'.*train \(10\), val \(2\)"),
        ("train[:11]", r"'train\[:11\]' goes beyond the 10 episodes"),
        ("train[5]", "is not a split"),
        ("train[:x]", "is not a split"),
        ("train[:101%]", "a percentage beyond 100"),
        ("train[4shard:]", "goes beyond the 3 shards"),
        ("train[3:3]", "holds none of 12 episodes"),
        ("", "is not a split"),
    ],
)
def test_a_split_that_is_none_is_refused(ten, split, message):
    with pytest.raises(UserError, match=message):
        read(ten, split=split)


@pytest.mark.parametrize("kind", ["maniskill", "v2.1", "v3.0"])
def test_slices_of_the_other_formats(tmp_path, kind):
    options = {} if kind == "maniskill" else {"splits": {"train": "0:3", "test": "3:4"}}
    path = write(kind, tmp_path, [ones(steps) for steps in (1, 2, 3, 4)], **options)
    demos, said = read(path, split="train[1:3]")
    assert [len(demo.actions) for demo in demos] == [2, 3] and "takes 2 of 4 episodes" in said[0]
    if options:
        assert [len(demo.actions) for demo in read(path)[0]] == [1, 2, 3]
        assert [len(demo.actions) for demo in read(path, split="test")[0]] == [4]


def test_a_shard_that_is_missing_or_of_another_count_is_named(ten):
    first, second, third = sorted(ten.glob("*-train*"))
    whole = second.read_bytes()
    second.unlink()
    with pytest.raises(UserError, match=r"00001-of-00003 is missing, one of 1 missing files of the 3 of split 'train'"):
        read(ten)
    assert len(read(ten, split="val")[0]) == 2
    second.write_bytes(third.read_bytes())
    with pytest.raises(UserError, match=r"00001-of-00003 holds 2 records, where dataset_info.json says 4"):
        read(ten)
    second.write_bytes(whole)
    stray = ten / "toy-train.tfrecord-00003-of-00004"
    stray.write_bytes(whole)
    with pytest.raises(UserError, match=r"00003-of-00004 is none of the 3 files of split 'train'"):
        read(ten)
    stray.unlink()
    (ten / "dataset_info.json").unlink()
    assert len(read(ten)[0]) == 10
    first.unlink()
    with pytest.raises(UserError, match=r"lacks 1 of the 3 files of split 'train', the first with number 00000"):
        read(ten)


def test_array_records_are_read_as_tfrecords_are(tmp_path):
    path = write_rlds(tmp_path, [[episode(ones(2)), episode(ones(3))], [episode(ones(4))]], fileFormat="array_record")
    demos, _ = read(path)
    assert [len(demo.actions) for demo in demos] == [2, 3, 4]
    np.testing.assert_array_equal(demos[2].actions, ones(4))
    shard = next(path.glob("*00001-of*"))
    data = shard.read_bytes()
    shard.write_bytes(data[:150] + b"!!!!" + data[154:])
    with pytest.raises(UserError, match=r"00001-of-00002 is not a readable ArrayRecord file"):
        read(path)
    write_rlds(tmp_path / "other", [[episode(ones(2))]], fileFormat="riegeli")
    with pytest.raises(UserError, match="the file format 'riegeli' cannot be read"):
        read(tmp_path / "other")


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_a_lerobot_dataset_of_another_count_is_named(tmp_path, version):
    def refused(message, **changes):
        write_lerobot(tmp_path, [ones(2), ones(3)], version=version, **changes)
        with pytest.raises(UserError, match=message):
            read(tmp_path)

    refused("lists 2 episodes, where info.json says total_episodes 3", total_episodes=3)
    refused("lists 5 steps, where info.json says total_frames 6", total_frames=6)
    refused(r"the splits \(train 0:1\) do not divide its 2 episodes", splits={"train": "0:1"})
    write_lerobot(tmp_path, [ones(2), ones(3)], version=version)
    path = sorted(tmp_path.glob("data/*/*.parquet"))[-1]
    rows = [pa.table(lerobot_rows(1, ones(2), 0))]
    if version == "v3.0":
        rows.insert(0, pa.table(lerobot_rows(0, ones(2), 0)))
    pq.write_table(pa.concat_tables(rows), path)
    with pytest.raises(UserError, match="episode 1 has 2 rows, where meta/episodes says 3"):
        read(tmp_path)
    pq.write_table(pa.concat_tables([*rows, pa.table(lerobot_rows(7, ones(1), 0))]), path)
    with pytest.raises(UserError, match="holds rows of episode 7, which meta/episodes does not list"):
        read(tmp_path)


def test_missing_cameras_and_keys_come_with_those_that_there_are(tmp_path):
    path = write_maniskill(tmp_path / "demos.h5", [ones(2)])
    with pytest.raises(UserError, match=r"choose with config.cameras among its cameras \(human_camera\)"):
        list(read_demos(path, {"primary": "hand"}))
    folder = write_rlds(tmp_path / "toy", [[episode(ones(2))]])
    content = json.loads((folder / "features.json").read_text())
    steps = content["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]["features"]
    steps["motion"] = steps.pop("action")
    (folder / "features.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"its steps have observation/image, language_instruction, motion"):
        read(folder)
