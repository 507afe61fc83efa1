"""Checkpoints: both layouts, bit-exact round trips, and one clear sentence for whatever is broken."""

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax.serialization import msgpack_restore, msgpack_serialize
from flax.traverse_util import flatten_dict, unflatten_dict
from huggingface_hub import constants
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octo_teacher import checkpoints
from octo_teacher.model.architectures import make_config, make_example_batch
from octo_teacher.model.octo_module import create_module
from octo_teacher.model.t5 import resolve_config
from octo_teacher.octo_model import OctoModel
from rpd_jax.errors import UserError

TINY = Path(__file__).parents[1] / "data" / "octo" / "tiny"
STATE = TINY / "1000" / "default"


@pytest.fixture
def tiny_copy(tmp_path) -> Path:
    shutil.copytree(TINY, tmp_path / "tiny")
    shutil.copytree(TINY.parent / "t5-tiny", tmp_path / "t5-tiny")
    return tmp_path / "tiny"


@pytest.fixture(scope="module")
def tiny() -> OctoModel:
    return OctoModel.load_pretrained(TINY)


def assert_same_arrays(left, right):
    left, right = flatten_dict(left, sep="/"), flatten_dict(right, sep="/")
    assert set(left) == set(right)
    for name in left:
        np.testing.assert_array_equal(np.asarray(left[name]), np.asarray(right[name]), err_msg=name)


def test_save_pretrained_writes_the_very_bytes_of_the_original(tiny, tmp_path):
    tiny.save_pretrained(1000, tmp_path / "again")
    for name in ("1000/default/checkpoint", "example_batch.msgpack", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (TINY / name).read_bytes(), name
    for name in ("1000/default/_METADATA", "dataset_statistics.json"):
        assert json.loads((tmp_path / "again" / name).read_text()) == json.loads((TINY / name).read_text()), name


def test_one_folder_per_parameter(tiny, tiny_copy):
    state = tiny_copy / "1000" / "default"
    shutil.rmtree(state)
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_zarr3=False)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(state, jax.tree.map(jax.numpy.asarray, tiny.params))
    assert (state / "octo_transformer.readout_action_pos_embedding" / ".zarray").is_file()
    assert_same_arrays(OctoModel.load_pretrained(tiny_copy).params, tiny.params)


def test_one_folder_per_parameter_as_the_original_indexed_it(tiny, tiny_copy):
    """Without the newer metadata file, and with placeholders in the file `checkpoint`."""
    state = tiny_copy / "1000" / "default"
    shutil.rmtree(state)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_zarr3=False)) as checkpointer:
        checkpointer.save(state, jax.tree.map(jax.numpy.asarray, tiny.params))
    for name in ("_METADATA", "_sharding", "_CHECKPOINT_METADATA", "array_metadatas"):
        path = state / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    paths = {path: "PLACEHOLDER://" + ".".join(path) for path in flatten_dict(tiny.params)}
    (state / "checkpoint").write_bytes(msgpack_serialize(unflatten_dict(paths)))
    assert_same_arrays(OctoModel.load_pretrained(tiny_copy).params, tiny.params)


def test_latest_step_is_the_default(tiny, tmp_path):
    for step, shift in ((9, 1.0), (10, 2.0)):
        tiny.replace(params=jax.tree.map(lambda x, s=shift: x + s, tiny.params)).save_pretrained(step, tmp_path)
    name = "octo_transformer/readout_action_pos_embedding"
    original = flatten_dict(tiny.params, sep="/")[name]
    latest, older = OctoModel.load_pretrained(tmp_path), OctoModel.load_pretrained(tmp_path, step=9)
    np.testing.assert_array_equal(flatten_dict(latest.params, sep="/")[name], original + 2.0)
    np.testing.assert_array_equal(flatten_dict(older.params, sep="/")[name], original + 1.0)
    with pytest.raises(UserError, match="exists already"):
        tiny.save_pretrained(10, tmp_path)
    for wrong in (11, "../9", -1):
        with pytest.raises(UserError, match="no step"):
            OctoModel.load_pretrained(tmp_path, step=wrong)


def test_model_from_config_carries_its_encoder_and_tokenizer_files(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(TINY.parent / "t5-tiny", source / "t5-embedded")
    (source / "words").mkdir()
    (source / "words" / "tokenizer.json").write_text("{}")
    config = make_config(
        32,
        num_layers=1,
        mlp_dim=32,
        num_attention_heads=2,
        cameras=("primary",),
        stem_kwargs={"features": [32, 32, 32, 32], "num_features": 16},
        encoder="t5-embedded",
        tokenizer="words",
    )
    model = OctoModel.from_config(config, make_example_batch({"primary": 32}), folder=source)
    model.save_pretrained(0, tmp_path / "saved")
    shutil.rmtree(source)
    loaded = OctoModel.load_pretrained(tmp_path / "saved")
    assert_same_arrays(loaded.params, model.params)
    assert (tmp_path / "saved" / "words" / "tokenizer.json").is_file()
    assert loaded.module == model.module and loaded.dataset_statistics is None


def test_size_of_the_encoder_is_read_from_the_weights_where_nothing_else_tells(tiny_copy):
    shutil.rmtree(tiny_copy.parent / "t5-tiny")
    written = resolve_config("t5-tiny", TINY)
    assert checkpoints.read(tiny_copy).shapes  # readable without it
    assert OctoModel.load_pretrained(tiny_copy).module.octo_transformer.task_tokenizers["language"].t5 == written


def break_json(folder, edit):
    config = json.loads((folder / "config.json").read_text())
    edit(config)
    (folder / "config.json").write_text(json.dumps(config))


def stem_of(config):
    return config["model"]["observation_tokenizers"]["primary"]["kwargs"]["encoder"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.pop("model"), "no entry 'model'"),
        (lambda c: c["model"].update(heads={}), "no head 'action'"),
        (lambda c: c["model"].update(heads=[1]), "malformed|no head"),
        (lambda c: c["model"].pop("readouts"), "lacks model.readouts"),
        (lambda c: c["model"].update(moe=1), "model.moe in config.json is not implemented"),
        (lambda c: c["model"]["transformer_kwargs"].update(num_layers=10**9), "num_layers .* between 1 and 1000"),
        (lambda c: c["model"]["transformer_kwargs"].update(num_layers=3), "lacks parameter .*encoderblock_2"),
        (lambda c: c["model"]["transformer_kwargs"].update(num_layers=1), "unexpected parameter .*encoderblock_1"),
        (lambda c: c["model"]["transformer_kwargs"].update(mlp_dim=64), "has shape"),
        (lambda c: c["model"]["transformer_kwargs"].update(add_position_embedding=True), "add_position_embedding"),
        (
            lambda c: c["model"]["heads"]["action"].update(name="GaussianActionHead"),
            "'GaussianActionHead', which is not",
        ),
        (lambda c: c["model"]["heads"]["action"]["kwargs"].update(readout_key="readout_x"), "not a readout"),
        (
            lambda c: c["model"]["heads"]["action"]["kwargs"].update(readout_key="action"),
            "'action', .* has task_language, obs_primary, obs_wrist, obs_task_language, readout_action, task, obs",
        ),
        (lambda c: c["model"]["heads"]["action"]["kwargs"].pop("readout_key"), "incomplete"),
        (lambda c: stem_of(c).update(name="ResNet50FILM"), "'ResNet50FILM', which is not"),
        (lambda c: stem_of(c).update(name="ResNet26FILM", kwargs={}), "use_film and task_film_keys .* together"),
        (
            lambda c: c["model"]["heads"]["action"].update(
                name="DiscreteActionHead", kwargs={"readout_key": "readout_action", "low": None}
            ),
            "give uniform bins low and high",
        ),
        (lambda c: stem_of(c)["kwargs"].update(norm="batch"), "'norm', which is not"),
        (lambda c: stem_of(c)["kwargs"].update(padding=["CIRCULAR"] * 4), "padding='CIRCULAR' of a convolution"),
        (lambda c: stem_of(c)["kwargs"].update(img_norm_type="odd"), "img_norm_type='odd'"),
        (lambda c: stem_of(c)["kwargs"].update(features=[32, 32, 64, "x"]), "do not describe a working network"),
        (
            lambda c: c["model"]["task_tokenizers"]["language"]["kwargs"].update(encoder="distilbert"),
            "'distilbert' is not implemented",
        ),
        (lambda c: c["text_processor"].update(name="MuseEmbedding"), "'MuseEmbedding', which is not implemented"),
        (lambda c: c["text_processor"]["kwargs"].update(encode_with_model=True), "encode_with_model"),
    ],
)
def test_what_a_config_asks_for_and_we_lack_is_named(tiny_copy, edit, message):
    break_json(tiny_copy, edit)
    with pytest.raises(UserError, match=message) as caught:
        OctoModel.load_pretrained(tiny_copy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", b"{", "cannot be read as JSON"),
        ("config.json", b"[" * 100_000, "cannot be read as JSON"),
        ("config.json", b"[1]", "not a JSON object"),
        ("config.json", None, "lacks .*config.json"),
        ("dataset_statistics.json", b'{"a": {"action": {"mean": [[1], [1, 2]]}}}', "else than lists of numbers"),
        ("example_batch.msgpack", b"\x81\xa1a\x01", "is not an example batch"),
        ("example_batch.msgpack", None, "lacks .*example_batch"),
        ("1000/default/checkpoint", b"", "is broken"),
        ("1000/default/checkpoint", STATE.joinpath("checkpoint").read_bytes()[:100_000], "is broken"),
        ("1000/default/checkpoint", b"\xdf\xff\xff\xff\xff", "is broken"),  # a map of four billion entries
        ("1000/default/checkpoint", b"\x81\xa1a" * 100_000, "is broken"),  # deeper than any stack
        ("1000/default/checkpoint", b"\xc9\xff\xff\xff\xff\x01", "is broken"),  # an extension of 4 GiB
        ("1000/default/checkpoint", msgpack_serialize({"a": {"b": [1, 2]}}), "something else than an array|is broken"),
        ("1000/default/checkpoint", msgpack_serialize({"../a": np.zeros(1)}), "odd name"),
        ("1000/default/checkpoint", msgpack_serialize({"a": "PLACEHOLDER://../../etc"}), "place of its own choice"),
        ("1000/default/checkpoint", msgpack_serialize({"a": np.zeros(1)}), "parameter"),
        ("1000/default/checkpoint", None, "no step folder|lacks|is broken"),
    ],
)
def test_broken_and_hostile_files_give_one_sentence(tiny_copy, file, content, message):
    if content is None:
        (tiny_copy / file).unlink()
    else:
        (tiny_copy / file).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        OctoModel.load_pretrained(tiny_copy)
    assert "\n" not in str(caught.value)


def test_a_small_file_cannot_claim_a_huge_array(tiny, tiny_copy):
    state = tiny_copy / "1000" / "default"
    shutil.rmtree(state)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_zarr3=False)) as checkpointer:
        checkpointer.save(state, jax.tree.map(jax.numpy.asarray, tiny.params))
    array = state / "octo_transformer.readout_action_pos_embedding" / ".zarray"
    array.write_text(json.dumps({**json.loads(array.read_text()), "shape": [1, 10, 10**9, 10**4]}))
    with pytest.raises(UserError, match="has shape"):
        OctoModel.load_pretrained(tiny_copy)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_flipped_bytes_load_or_are_refused(tmp_path_factory, data):
    content = bytearray(msgpack_serialize({"a": {"b": np.arange(6.0).reshape(2, 3)}, "c": np.ones(2, np.float32)}))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    folder = tmp_path_factory.mktemp("flipped")
    (folder / "checkpoint").write_bytes(bytes(content[: data.draw(st.integers(1, len(content)))]))
    try:
        _, load = checkpoints.open_params(folder)
        flatten_dict(load())
    except UserError as error:
        assert "\n" not in str(error)


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.dictionaries(
        st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True),
        st.tuples(
            st.lists(st.integers(0, 3), max_size=3), st.sampled_from(["float32", "float16", "bfloat16", "float64"])
        ),
        min_size=1,
        max_size=4,
    ),
    st.integers(0, 10**9),
)
def test_round_trip_is_bit_exact(tmp_path_factory, leaves, step):
    random = np.random.default_rng(0)
    params = {
        "module": {
            name: random.bytes(int(np.prod(shape)) * jax.numpy.dtype(dtype).itemsize)
            for name, (shape, dtype) in leaves.items()
        }
    }
    params["module"] = {
        name: np.frombuffer(params["module"][name], jax.numpy.dtype(dtype)).reshape(shape)
        for name, (shape, dtype) in leaves.items()
    }
    folder = tmp_path_factory.mktemp("round")
    checkpoints.write(folder, step, params, {}, {"observation": {}, "task": {}}, None, {})
    assert checkpoints.find_step(folder, None) == step
    _, load = checkpoints.open_params(folder / str(step) / "default")
    for name, value in load()["module"].items():
        expected = params["module"][name]
        assert value.dtype == expected.dtype and value.shape == expected.shape and value.tobytes() == expected.tobytes()


def test_hub_unreachable(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        UserError, match=r"hf://rail-berkeley/octo-small-1\.5 could not be had from the Hugging Face hub"
    ):
        OctoModel.load_pretrained("hf://rail-berkeley/octo-small-1.5")


def test_hub_cache_is_enough_when_offline(monkeypatch, tmp_path, tiny):
    repository = tmp_path / "models--someone--tiny"
    commit = "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(TINY, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert_same_arrays(OctoModel.load_pretrained("hf://someone/tiny").params, tiny.params)


@pytest.mark.parametrize("name", ["hf://octo", "hf://../../etc/passwd", "hf://a/b/c"])
def test_odd_hub_names(name):
    with pytest.raises(UserError, match="hf://owner/name"):
        OctoModel.load_pretrained(name)


def test_missing_folder():
    with pytest.raises(UserError, match="There is no checkpoint folder"):
        OctoModel.load_pretrained("/nowhere/octo")


def test_old_names_in_published_checkpoints(tiny_copy, tiny):
    def rename(config):
        kwargs = config["model"]["heads"]["action"]["kwargs"]
        kwargs["pred_horizon"] = kwargs.pop("action_horizon")

    break_json(tiny_copy, rename)
    batch = msgpack_restore((tiny_copy / "example_batch.msgpack").read_bytes())
    batch["tasks"] = batch.pop("task")
    batch["observation"]["pad_mask"] = batch["observation"].pop("timestep_pad_mask")
    (tiny_copy / "example_batch.msgpack").write_bytes(msgpack_serialize(batch))
    assert OctoModel.load_pretrained(tiny_copy).module == tiny.module


def test_config_of_create_module_is_not_changed(tiny):
    config = copy.deepcopy(tiny.config)
    create_module(config, TINY)
    assert config == tiny.config


def test_its_texts_are_utf_8_whatever_the_locale(tiny_copy):
    path, statistics = tiny_copy / "dataset_statistics.json", {"W\u00fcrfel": {"action": {"mean": [0.0] * 7}}}
    path.write_text(json.dumps(statistics, ensure_ascii=False), encoding="utf-8-sig")
    code = "from pathlib import Path; import sys; from octo_teacher import checkpoints; "
    code += "print(ascii(checkpoints._read_statistics(Path(sys.argv[1]))))"
    ascii_only = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    run = subprocess.run([sys.executable, "-c", code, path], env=ascii_only, capture_output=True, text=True, timeout=60)
    assert run.stdout.startswith("{'W\\xfcrfel': {'action': {'mean': "), run.stderr
