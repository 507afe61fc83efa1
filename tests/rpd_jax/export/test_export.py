"""An exported student gives the actions of the network it came from, in all three forms, without this project."""

import json
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import onnx
import pytest
from random_student import make_run

from rpd_jax.errors import UserError, no_room
from rpd_jax.evaluate.exported_policy import JAX_FILE
from rpd_jax.evaluate.policies import exported_policy, run_policy
from rpd_jax.evaluate.trained_student import load_student
from rpd_jax.export import policy
from rpd_jax.export.latency import measure
from rpd_jax.export.policy import ExportedPolicy, export_policy
from rpd_jax.export.readme import write_readme
from rpd_jax.export.weights import resize_matrix
from rpd_jax.run.checkpoints import Checkpoints
from rpd_jax.student.convolution import HALF_AND_A_LITTLE, resize_frames
from rpd_jax.tasks import find_task


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A run and its policy folder, with frames that are not resized."""
    root = tmp_path_factory.mktemp("exported")
    make_run(root / "run")
    export_policy(load_student(root / "run"), root / "policy")
    return root / "run", root / "policy"


@pytest.mark.parametrize(
    ("observation", "image_size", "student_size", "encoder"),
    [
        ("rgb", 80, 40, "small"),
        ("rgb", 64, 48, "small"),
        ("rgb+state", 52, 40, "small_scaled"),
        ("state", 40, 40, "small"),
    ],
)
def test_three_forms_give_the_network_s_actions(observation, image_size, student_size, encoder, tmp_path):
    network, params = make_run(tmp_path / "run", observation, image_size, student_size, encoder)
    student = load_student(tmp_path / "run")
    assert student.iteration == 3
    export_policy(student, tmp_path / "policy")
    inputs = policy.example_inputs(student.frame_shape, student.state_dim, batch=2)
    assert set(inputs) == set(observation.split("+"))
    mean = jax.jit(network.apply)(params, inputs.get("rgb"), inputs.get("state"))[0]
    expected = np.clip(mean, -1.0, 1.0)
    assert 0.1 < np.abs(expected).mean() < 1.0
    forms = {
        "jax": ExportedPolicy(tmp_path / "policy").act,
        "onnx": policy.onnx_policy(tmp_path / "policy"),
        "numpy": policy.numpy_policy(tmp_path / "policy"),
    }
    for name, act in forms.items():
        np.testing.assert_allclose(act(**inputs), expected, atol=1e-5, err_msg=name)


def test_the_folder_s_own_instructions_work_without_this_project(exported):
    run, folder = exported
    write_readme(folder, run, [])
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]
    code += "\nassert np.abs(actions - np.load('example.npz')['actions']).max() < 1e-5"
    subprocess.run([sys.executable, "-I", "-c", code], cwd=folder, check=True, timeout=200)
    script = "import sys; sys.modules['jax'] = None\nimport runpy; runpy.run_path('run_numpy.py', run_name='__main__')"
    done = subprocess.run([sys.executable, "-I", "-c", script], cwd=folder, check=True, text=True, capture_output=True)
    assert float(done.stdout.split()[-1]) < 1e-5


def test_reading_a_policy_leaves_nothing_in_its_folder(exported, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    _, folder = exported
    before = set(folder.iterdir())
    assert callable(policy.numpy_policy(folder)) and set(folder.iterdir()) == before


def test_onnx_graph_uses_the_runtime_s_convolutions(exported):
    _, folder = exported
    operators = [node.op_type for node in onnx.load(folder / policy.ONNX_FILE).graph.node]
    assert operators.count("Conv") == 3 and operators.count("Gemm") == 3
    description = json.loads((folder / "policy.json").read_text())
    assert description["inputs"] == {"rgb": {"shape": ["batch", 40, 40, 3], "dtype": "uint8"}}
    assert description["instruction"] == "push the cube away from the robot base"


@pytest.mark.parametrize(("size", "new_size"), [(80, 40), (52, 40), (64, 48)])
def test_resizing_is_a_matrix_product(size, new_size):
    frames = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), np.uint8)
    matrix = resize_matrix(size, new_size).astype(np.float64)
    found = np.floor(np.einsum("yh,bhwc,xw->byxc", matrix, frames, matrix) + HALF_AND_A_LITTLE)
    np.testing.assert_array_equal(found, resize_frames(frames, new_size))


def test_a_teacher_that_looks_at_the_state_is_not_measured_and_the_rest_is(exported, tmp_path):
    """There is no simulator here whose state could be shown."""
    make_run(tmp_path / "state", "state")
    student = load_student(exported[0])
    student.config.algorithm = "rpd_mse"
    student.config.teacher.update(name="student", checkpoint=str(tmp_path / "state"))
    rows = measure(student, exported[1], seconds=0.01)
    assert len(rows) == 4 and rows[3][3] == "not measured: it looks at the simulator's state."
    assert all(float(row[3]) > 0 for row in rows[:3])


def test_a_run_and_its_export_are_evaluated_alike(exported):
    run, folder = exported
    policies = run_policy(str(run)), exported_policy(str(folder))
    frames = policy.example_inputs((40, 40, 3), None, batch=2)["rgb"]
    task = find_task("PushCube-v1")
    of_run, of_export = (np.asarray(each.act_on(task)(frames, None, jax.random.key(0))) for each in policies)
    np.testing.assert_allclose(np.clip(of_run, -1.0, 1.0), of_export, atol=1e-5)
    for each in policies:
        assert (each.task, each.env.image_size, each.env.camera.eye_offset[0]) == ("PushCube-v1", 40, 0.0)


def test_what_cannot_be_exported_is_told(exported, tmp_path):
    run, _ = exported
    with pytest.raises(UserError, match="holds no run"):
        load_student(tmp_path)
    with pytest.raises(UserError, match="has no checkpoint 8: there are 3"):
        load_student(run, 8)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write to"):
        export_policy(load_student(run), tmp_path / "file" / "policy")
    with pytest.raises(UserError, match="is no policy folder"):
        ExportedPolicy(run)


def test_a_folder_that_is_there_and_cannot_be_written_is_told(exported, read_only_folder):
    with pytest.raises(UserError, match=r"Cannot write to .* \(Read-only file system\): choose another --output"):
        export_policy(load_student(exported[0]), read_only_folder)


@pytest.mark.parametrize("small_disk", ["64m"], indirect=True)
def test_a_full_disk_leaves_the_export_that_was_there(exported, small_disk, fill):
    run, folder = exported
    old = shutil.copytree(folder, small_disk / "policy")
    fill(small_disk)
    with pytest.raises(OSError) as caught:
        export_policy(load_student(run), old)
    assert no_room(caught.value)
    assert {path.name: path.read_bytes() for path in old.iterdir()} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }


@pytest.mark.parametrize(
    ("file", "keep", "sentence"),
    [
        ("policy.jax", 1000, "policy.jax is not as it was written"),
        ("policy.jax", 0, "policy.jax is not as it was written"),
        ("policy.json", 100, "is no policy folder"),
    ],
)
def test_a_policy_that_was_cut_short_is_refused(exported, tmp_path, file, keep, sentence):
    folder = shutil.copytree(exported[1], tmp_path / "policy")
    (folder / file).write_bytes((folder / file).read_bytes()[:keep])
    with pytest.raises(UserError, match=sentence):
        exported_policy(str(folder))


def test_a_policy_of_an_older_version_that_was_cut_short_is_refused(exported, tmp_path):
    folder = shutil.copytree(exported[1], tmp_path / "policy")
    description = json.loads((folder / "policy.json").read_text())
    del description["sha256"]
    (folder / "policy.json").write_text(json.dumps(description))
    assert exported_policy(str(folder)).task == "PushCube-v1"
    for keep in (0, 100, 1000):
        (folder / "policy.jax").write_bytes((exported[1] / "policy.jax").read_bytes()[:keep])
        with pytest.raises(UserError, match="is of another JAX"):
            exported_policy(str(folder))


@pytest.mark.parametrize("name", [JAX_FILE, policy.ONNX_FILE, policy.WEIGHTS_FILE, policy.NUMPY_FILE])
@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_a_damaged_file_of_a_policy_is_named(exported, tmp_path, name, damage):
    folder = shutil.copytree(exported[1], tmp_path / "policy")
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 4
    (folder / name).write_bytes(content[:-100] if damage == "cut" else content)
    if damage == "gone":
        (folder / name).unlink()
    for load in (ExportedPolicy, policy.onnx_policy, policy.numpy_policy):
        with pytest.raises(UserError, match=f"{name} (is not as it was written|cannot be read)"):
            load(folder)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "is no policy folder"),
        ({"sound": {"shape": ["batch"], "dtype": "int8"}}, "the input 'sound' is none of a student's"),
        (
            {"state": {"shape": ["batch", 5], "dtype": "float32"}},
            "takes other inputs than policy.json says",
        ),
    ],
)
def test_a_description_that_does_not_fit_is_refused(exported, tmp_path, inputs, message):
    folder = shutil.copytree(exported[1], tmp_path / "policy")
    description = json.loads((folder / "policy.json").read_text())
    (folder / "policy.json").write_text(json.dumps(description | {"inputs": inputs}))
    with pytest.raises(UserError, match=message):
        ExportedPolicy(folder)


def test_weights_that_are_not_finite_are_not_exported(tmp_path):
    make_run(tmp_path / "run", "state")
    student = load_student(tmp_path / "run")
    student.params["params"]["actor"]["hidden"]["bias"] = np.full(256, np.nan, np.float32)
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", keep=2)
    checkpoints.save(4, {"learner": {"params": student.params}, "replay": {}}, {"step": 0})
    checkpoints.close()
    with pytest.raises(
        UserError, match=r"Parameter actor/hidden/bias of checkpoint .*checkpoints/4 has numbers that are not"
    ):
        load_student(tmp_path / "run")
    assert load_student(tmp_path / "run", 3).iteration == 3
