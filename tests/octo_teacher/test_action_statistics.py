"""Statistics of a checkpoint are used exactly as they are meant, or refused before a frame is labelled."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from octo_teacher.action_statistics import NormalizationType, choose_statistics, named_normalization, read_statistics
from octo_teacher.octo_model import OctoModel
from octo_teacher.teacher import OctoTeacher
from rpd_jax.errors import UserError

TASK, KEY = "push the cube away from the robot base", jax.random.key(0)
FRAMES = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
KEY_OF_TYPE = "action_proprio_normalization_type"
PLAIN = {
    "mean": [0.1, -0.2, 0.0, 0.3, 0.05, -0.05, 0.4],
    "std": [0.2, 0.1, 0.3, 0.05, 0.0, 0.02, 0.3],
    "min": [-0.5] * 6 + [-1.0],
    "max": [0.5] * 6 + [1.0],
    "p01": [-0.4, -0.3, -0.2, -0.1, 0.0, 0.1, -1.0],
    "p99": [0.4, 0.3, 0.2, 0.1, 0.0, 0.3, 1.0],
    "mask": [True] * 6 + [False],
}


@pytest.fixture
def checkpoint(micro_octo, tmp_path) -> Path:
    shutil.copytree(micro_octo, tmp_path / "octo")
    write(tmp_path / "octo", {"mine": {"action": PLAIN}})
    return tmp_path / "octo"


def write(folder: Path, statistics) -> None:
    (folder / "dataset_statistics.json").write_text(json.dumps(statistics))


def edit_config(folder: Path, **entries) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | entries))


def labels(folder: Path, **kwargs) -> np.ndarray:
    return np.asarray(OctoTeacher.load(folder, say=lambda text: None, **kwargs).act(FRAMES, TASK, KEY))


@pytest.fixture(scope="module")
def normalized(micro_octo, tmp_path_factory) -> np.ndarray:
    """The network's own output, small enough that no clip hides a difference: statistics that change nothing."""
    folder = tmp_path_factory.mktemp("plain") / "octo"
    shutil.copytree(micro_octo, folder)
    write(folder, {"action": {"mean": [0.0] * 7, "std": [0.1] * 7, "min": [-1.0] * 7, "max": [1.0] * 7}})
    actions = labels(folder)
    assert (np.abs(actions) < 1).mean() > 0.8
    return actions * 10


def expected(normalized: np.ndarray, low_or_mean, scale, shift=0.0) -> np.ndarray:
    mapped = (normalized + shift) * np.asarray(scale) + np.asarray(low_or_mean)
    return np.clip(np.where(PLAIN["mask"], mapped, normalized), -1, 1)


def assert_normal(actions, normalized):
    sure = np.abs(normalized) < 10  # where the reference itself was not clipped
    np.testing.assert_allclose(actions[sure], expected(normalized, PLAIN["mean"], PLAIN["std"])[sure], atol=1e-5)


def assert_bounds(actions, normalized, low="p01", high="p99"):
    low, high = np.asarray(PLAIN[low]), np.asarray(PLAIN[high])
    sure = np.abs(normalized) < 10
    np.testing.assert_allclose(actions[sure], expected(normalized, low, (high - low) / 2, shift=1.0)[sure], atol=1e-5)


def test_mean_and_deviation_are_the_default(checkpoint, normalized):
    assert_normal(labels(checkpoint), normalized)


@pytest.mark.parametrize(
    "config",
    [
        {"dataset_kwargs": {"name": "mine", KEY_OF_TYPE: "bounds"}},
        {
            "dataset_kwargs": {
                "dataset_kwargs_list": [
                    {"name": "other", KEY_OF_TYPE: "normal"},
                    {"name": "mine", KEY_OF_TYPE: "bounds"},
                ]
            }
        },
        {"dataset_kwargs": {"oxe_kwargs": {"data_mix": "x", KEY_OF_TYPE: "NormalizationType.BOUNDS"}}},
        {"dataset_kwargs": {KEY_OF_TYPE: "bounds_q99"}},
    ],
)
def test_the_normalisation_that_config_json_names_is_used(checkpoint, normalized, config):
    edit_config(checkpoint, **config)
    assert_bounds(labels(checkpoint), normalized)
    assert_normal(labels(checkpoint, normalization_type="normal"), normalized)
    model = OctoModel.load_pretrained(checkpoint)
    model = model.replace(config=model.config)
    observations = {"image_primary": FRAMES[:, None], "timestep_pad_mask": np.ones((2, 1), bool)}
    tasks, statistics = model.create_tasks(texts=[TASK] * 2), model.dataset_statistics["mine"]["action"]
    named, bounds = (
        model.sample_actions(observations, tasks, statistics, normalization_type=kind)
        for kind in (None, NormalizationType.BOUNDS)
    )
    np.testing.assert_array_equal(named, bounds)


def test_fine_tuning_with_the_original_code_names_it_in_a_file_of_its_own(checkpoint, normalized, tmp_path):
    edit_config(checkpoint, dataset_kwargs={"dataset_kwargs_list": [{"name": "bridge", KEY_OF_TYPE: "normal"}]})
    (checkpoint / "finetune_config.json").write_text(json.dumps({"dataset_kwargs": {KEY_OF_TYPE: "bounds"}}))
    assert_bounds(labels(checkpoint), normalized)
    OctoModel.load_pretrained(checkpoint).save_pretrained(0, tmp_path / "again")
    assert_bounds(labels(tmp_path / "again"), normalized)
    # Ours trains with mean and deviation, whatever the model was trained with before.
    edit_config(checkpoint, dataset_kwargs={KEY_OF_TYPE: "bounds"}, finetune={"steps": 3})
    (checkpoint / "finetune_config.json").unlink()
    assert_normal(labels(checkpoint), normalized)


def test_bounds_without_quantiles_are_the_extremes(checkpoint, normalized):
    """As before Octo 1.5, whose statistics had no quantiles."""
    edit_config(checkpoint, dataset_kwargs={KEY_OF_TYPE: "bounds"})
    write(checkpoint, {"action": {name: value for name, value in PLAIN.items() if name not in ("p01", "p99")}})
    assert_bounds(labels(checkpoint), normalized, "min", "max")


def test_a_head_of_bins_may_call_its_bins_normal(checkpoint, normalized):
    """`normalization_type` inside the network is about bins; the data's own entry decides."""
    config = {"model": {"heads": {"action": {"kwargs": {"normalization_type": "uniform", KEY_OF_TYPE: "odd"}}}}}
    assert named_normalization(config, None) is None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"dataset_kwargs": {KEY_OF_TYPE: "quantile"}}, "'quantile', which is not implemented: known: normal, bounds"),
        (
            {
                "dataset_kwargs": {
                    "dataset_kwargs_list": [{"name": "a", KEY_OF_TYPE: "normal"}, {"name": "b", KEY_OF_TYPE: "bounds"}]
                }
            },
            r"several normalisations .bounds, normal. and none for dataset='mine'",
        ),
    ],
)
def test_normalisations_that_cannot_be_chosen_are_refused(checkpoint, config, message):
    edit_config(checkpoint, **config)
    with pytest.raises(UserError, match=message):
        labels(checkpoint)


NAN = float("nan")


def other(**entries):
    return {"mine": {"action": {name: value for name, value in (PLAIN | entries).items() if value is not None}}}


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        (None, "has no action statistics.*dataset_statistics.json"),
        ({}, "has no action statistics"),
        ({"mine": {"proprio": PLAIN}}, "statistics of no dataset"),
        ({"mine": {"action": [1.0]}}, "are no object"),
        (other(std=None), "lack 'std'"),
        (other(mean=0.0), "have a single number as 'mean'"),
        (other(mean=[[0.0] * 7]), r"an array of shape \[1, 7\] as 'mean'"),
        (other(mean=[]), "as 'mean'"),
        (other(mean=["a"] * 7), "'mean' that is no list of numbers"),
        (other(std=[0.1] * 6), "differ in length"),
        (other(std=[0.1] * 6 + [NAN]), r"std\[6\]=nan, which is no finite number"),
        (other(mean=[0.1] * 3 + [float("inf")] + [0.0] * 3), r"mean\[3\]=inf, which is no finite number"),
        (other(mean=[1e300] * 7), r"mean\[0\]=1e\+300, which is no finite number"),
        (other(std=[0.1, -0.1] + [0.1] * 5), r"std\[1\]=-0.1, below 0"),
        (other(mask=[True] * 6), "differ in length"),
        (other(mask=True), "'mask' that is no list"),
        (other(mask=[0.5] * 7), "'mask' that is no list of true and false"),
        ({"mine": {"action": {name: value[:6] for name, value in PLAIN.items()}}}, "gives actions of 6 numbers"),
        (
            {"mine": {"action": {name: [*value, 0] for name, value in PLAIN.items()}}},
            "8 dimensions; the model's actions have 7",
        ),
        (other(min=[0.0] * 7, max=[0.0] * 6 + [40.0], p01=None, p99=None), "goes from 0 to 40"),
    ],
    ids=range(20),
)
def test_what_cannot_be_used_is_refused_at_load_with_its_place(checkpoint, statistics, message):
    write(checkpoint, statistics) if statistics is not None else (checkpoint / "dataset_statistics.json").unlink()
    with pytest.raises(UserError, match=message) as caught:
        labels(checkpoint)
    text = str(caught.value)
    assert "\n" not in text
    assert str(checkpoint) in text or "goes from 0 to 40 in the action statistics of 'mine'" in text


def edit_tokenizer(folder: Path, edit) -> None:
    file = folder / "tokenizer" / "tokenizer.json"
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda t: t["model"]["vocab"].update({"<pad>": 10**6}),
            "id 1000000; the language encoder has",
        ),
        (lambda t: t["post_processor"].update(special_tokens={}), "no entry found|tokenizer"),  # a panic of the library
        (lambda t: t.update(model={"type": "WordLevel", "vocab": {}, "unk_token": "x"}), "tokenizer"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_refused_at_load(checkpoint, edit, message):
    edit_tokenizer(checkpoint, edit)
    with pytest.raises(UserError, match=message):
        OctoTeacher.load(checkpoint, say=lambda text: None)


def test_bounds_in_the_wrong_order_are_refused(checkpoint):
    edit_config(checkpoint, dataset_kwargs={KEY_OF_TYPE: "bounds"})
    write(checkpoint, other(p99=[-0.5] + [0.5] * 6))
    with pytest.raises(UserError, match=r"p99\[0\]=-0.5, below p01\[0\]=-0.4"):
        labels(checkpoint)


def test_the_asked_for_data_set_must_be_there(checkpoint):
    for statistics, dataset, message in (
        (
            {"mine": {"action": PLAIN}},
            "bridge",
            "statistics of mine; dataset='bridge' is not one.*teacher.dataset to one of mine",
        ),
        ({"action": PLAIN}, "bridge", "one dataset without a name; dataset='bridge'.*teacher.dataset=''"),
        ({"a": {"action": PLAIN}, "b": {"action": PLAIN}}, None, "of a, b; dataset=None"),
    ):
        write(checkpoint, statistics)
        with pytest.raises(UserError, match=message):
            labels(checkpoint, dataset=dataset)
    assert choose_statistics({"a": {"action": 1}, "b": {"action": 2}}, "b") == ("b", 2)


def test_a_dimension_that_never_moved_is_given_back_as_it_was(checkpoint):
    """Deviation 0, as our own demos have it where nothing rotates."""
    np.testing.assert_array_equal(labels(checkpoint)[..., 4], np.float32(0.05))
    assert read_statistics(PLAIN).unnormalize(np.full(7, 9.0))[4] == np.float32(0.05)


@pytest.mark.parametrize("said_by", [{"control_mode": "pd_ee_delta_pose"}, {"control_mode": None, "gripper": "signed"}])
def test_a_gripper_of_the_tasks_own_demos_is_signed_though_it_never_closed(checkpoint, normalized, said_by):
    """Of LiftPegUpright's expert, which only opens (1) and grips loosely (0.2)."""
    loose = {"min": [-0.5] * 6 + [0.2], "p01": [-0.4] * 6 + [0.2], "max": [0.5] * 6 + [1.0], "p99": [0.4] * 6 + [1.0]}
    write(checkpoint, {"mine": {"action": PLAIN | loose}})
    edit_config(checkpoint, demos_actions=said_by | {"unlike": ""})
    said = []
    gripper = np.asarray(OctoTeacher.load(checkpoint, say=said.append).act(FRAMES, TASK, KEY))[..., -1]
    sure = np.abs(normalized[..., -1]) < 10
    np.testing.assert_allclose(gripper[sure], np.clip(normalized[..., -1], -1, 1)[sure], atol=1e-5)
    assert said == ["Octo: gripper from -1 (closed) to 1 (open), as its config.json says of its demos."]
    opened = labels(checkpoint, gripper="open")[..., -1]  # what is asked for comes first
    np.testing.assert_allclose(opened[sure], np.clip(2 * normalized[..., -1] - 1, -1, 1)[sure], atol=1e-5)


@pytest.mark.parametrize("masked", [True, False])
def test_a_gripper_from_0_to_1_is_turned_into_the_environments(checkpoint, normalized, masked):
    """As the published Octo of the paper predicts it: 0 closed, 1 open."""
    low, high = (
        {"min": [-0.5] * 6 + [0.0], "p01": [-0.4] * 6 + [0.0]},
        {"max": [0.5] * 6 + [1.0], "p99": [0.4] * 6 + [1.0]},
    )
    action = PLAIN | low | high | {"mean": [0.0] * 6 + [0.5], "std": [0.1] * 6 + [0.25], "mask": [True] * 6 + [masked]}
    write(checkpoint, {"mine": {"action": action}})
    said = []
    teacher = OctoTeacher.load(checkpoint, say=said.append)
    gripper = np.asarray(teacher.act(FRAMES, TASK, KEY))[..., -1]
    raw = 0.5 + 0.25 * normalized[..., -1] if masked else normalized[..., -1]
    sure = np.abs(normalized[..., -1]) < 10
    np.testing.assert_allclose(gripper[sure], np.clip(2 * raw - 1, -1, 1)[sure], atol=1e-5)
    assert said == [
        "Octo: gripper from 0 (closed) to 1 (open), since it goes from 0 to 1 in the action statistics of 'mine'."
    ]
    np.testing.assert_allclose(
        labels(checkpoint, gripper="signed")[..., -1][sure], np.clip(raw, -1, 1)[sure], atol=1e-5
    )
    closed = labels(checkpoint, gripper="closed")[..., -1]
    np.testing.assert_allclose(closed[sure], np.clip(1 - 2 * raw, -1, 1)[sure], atol=1e-5)
