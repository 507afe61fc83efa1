"""Instructions to ids: the checkpoint's own tokenizer, cached, without foreign code."""

import json
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from octo_teacher.model.text import HFTokenizer, load_text_processor
from octo_teacher.octo_model import OctoModel
from rpd_jax.errors import UserError

TINY = Path(__file__).parents[2] / "data" / "octo" / "tiny"
KWARGS = {"max_length": 6, "padding": "max_length", "truncation": True, "return_tensors": "np"}


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    words = {word: index for index, word in enumerate(["<pad>", "</s>", "<unk>", "push", "the", "cube"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="</s>")
    fast.save_pretrained(tmp_path / "checkpoint" / "words")
    return tmp_path / "checkpoint"


def spec(**kwargs):
    return {"module": "octo.data.utils.text_processing", "name": "HFTokenizer", "args": [], "kwargs": kwargs}


def test_tokenizer_folder_inside_the_checkpoint(checkpoint):
    processor = load_text_processor(spec(tokenizer_name="words", tokenizer_kwargs=KWARGS), checkpoint)
    tokens = processor.encode(["push the cube", "", "push the ball push the cube push"])
    np.testing.assert_array_equal(tokens["input_ids"], [[3, 4, 5, 0, 0, 0], [0] * 6, [3, 4, 2, 3, 4, 5]])
    np.testing.assert_array_equal(tokens["attention_mask"], [[1, 1, 1, 0, 0, 0], [0] * 6, [1] * 6])
    assert tokens["input_ids"].dtype == np.int64


def test_ids_are_cached_per_instruction(checkpoint):
    processor = HFTokenizer("words", KWARGS, checkpoint)
    first = processor.encode(["push the cube"])
    for file in (checkpoint / "words").iterdir():
        file.unlink()
    again = processor.encode(["push the cube", "push the cube"])
    np.testing.assert_array_equal(again["input_ids"], np.repeat(first["input_ids"], 2, axis=0))


def test_code_that_comes_with_a_tokenizer_is_not_run(checkpoint, tmp_path):
    mark = tmp_path / "was run"
    (checkpoint / "words" / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass Evil: pass\n")
    config = json.loads((checkpoint / "words" / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    (checkpoint / "words" / "tokenizer_config.json").write_text(json.dumps(config))
    try:
        HFTokenizer("words", KWARGS, checkpoint).encode(["push"])
    except UserError as error:
        assert "\n" not in str(error)
    assert not mark.exists()


def test_tokenizer_that_is_nowhere(checkpoint, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    processor = HFTokenizer("nobody/such-tokenizer", KWARGS, checkpoint)
    with pytest.raises(UserError, match="'nobody/such-tokenizer' could not be loaded: put its files") as caught:
        processor.encode(["push"])
    assert "\n" not in str(caught.value)


def test_a_checkpoint_without_tokenizer_takes_ids():
    model = OctoModel.load_pretrained(TINY).replace(text_processor=None)
    with pytest.raises(UserError, match="names no tokenizer: give create_tasks token ids"):
        model.create_tasks(texts=["push"])
    ids = np.ones((2, 16), np.int64)
    tasks = model.create_tasks(language={"input_ids": ids, "attention_mask": ids})
    np.testing.assert_array_equal(tasks["pad_mask_dict"]["language_instruction"], [True, True])
    assert tasks["image_primary"].shape == (2, 64, 64, 3)
    with pytest.raises(UserError, match=r"'language_instruction/attention_mask' has shape \(5,\)"):
        model.create_tasks(language={"input_ids": ids[:, :5], "attention_mask": ids[:, :5]})


def test_tasks_follow_the_original_convention():
    model = OctoModel.load_pretrained(TINY)
    goal = np.full((3, 64, 64, 3), 7, np.uint8)
    tasks = model.replace(text_processor=None).create_tasks(goals={"image_primary": goal})
    assert set(tasks) == {"image_primary", "pad_mask_dict"}
    assert tasks["pad_mask_dict"]["image_primary"].all() and not tasks["pad_mask_dict"]["language_instruction"].any()
    for wrong, message in ((dict(texts="push"), "list of texts"), ({}, "needs goals, texts or language")):
        with pytest.raises(UserError, match=message):
            model.create_tasks(**wrong)


@pytest.mark.parametrize("wrong", ["t5-base", spec(), {"name": "MuseEmbedding"}])
def test_unknown_text_processors_are_refused(wrong):
    with pytest.raises(UserError, match="text_processor in config"):
        load_text_processor(wrong, None)
    assert load_text_processor(None, None) is None
