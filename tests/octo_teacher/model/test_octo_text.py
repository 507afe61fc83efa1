"""Instructions to ids: the checkpoint's own tokenizer, cached, without foreign code."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

import octo_teacher
from octo_teacher.finetuning.octo_nano import TOKENIZER, write_text_files
from octo_teacher.model.text import FileTokenizer, HFTokenizer, load_text_processor, mend_settings
from octo_teacher.octo_model import OctoModel
from rpd_jax.errors import UserError
from rpd_jax.tasks import TASKS

TINY = Path(__file__).parents[2] / "data" / "octo" / "tiny"
KWARGS = {"max_length": 6, "padding": "max_length", "truncation": True, "return_tensors": "np"}


PRETRAINED = sorted((Path(octo_teacher.__file__).parent / "pretrained").iterdir())
SPECIAL = ["<pad>", "</s>", "<unk>"]
PIECES = ["▁push", "▁the", "▁cu", "be", *"pushtecbé"]
# Every key that tokenizer_config.json may have for transformers 4.34, which the original Octo runs on: the arguments of
# its PreTrainedTokenizerBase and PreTrainedTokenizerFast, and what its from_pretrained reads.
KNOWN_TO_4_34 = {
    *("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"),
    *("additional_special_tokens", "model_max_length", "padding_side", "truncation_side", "model_input_names"),
    *("clean_up_tokenization_spaces", "split_special_tokens", "added_tokens_decoder", "chat_template"),
    *("tokenizer_class", "name_or_path", "tokenizer_file", "auto_map"),
}


def write_words(folder: Path, **settings) -> None:
    """A tokenizer of whole words, without special tokens at the end."""
    words = {word: index for index, word in enumerate([*SPECIAL, "push", "the", "cube"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(SPECIAL)
    write_tokenizer(folder, tokenizer, **settings)


def write_pieces(folder: Path, **settings) -> None:
    """A tokenizer of T5's kind: unigram pieces behind a metaspace, the end token added."""
    pieces = [*((token, 0.0) for token in SPECIAL), ("▁", -2.0)]
    pieces += [(piece, -3.0 - index / 8) for index, piece in enumerate(PIECES)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.add_special_tokens(SPECIAL)
    write_tokenizer(folder, tokenizer, **settings)


def write_tokenizer(folder: Path, tokenizer: Tokenizer, **settings) -> None:
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "unk_token": "<unk>"} | settings
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    write_words(tmp_path / "checkpoint" / "words")
    return tmp_path / "checkpoint"


def spec(**kwargs):
    return {"module": "octo.data.utils.text_processing", "name": "HFTokenizer", "args": [], "kwargs": kwargs}


def test_tokenizer_folder_inside_the_checkpoint(checkpoint):
    processor = load_text_processor(spec(tokenizer_name="words", tokenizer_kwargs=KWARGS), checkpoint)
    tokens = processor.encode(["push the cube", "", "push the ball push the cube push"])
    np.testing.assert_array_equal(tokens["input_ids"], [[3, 4, 5, 0, 0, 0], [0] * 6, [3, 4, 2, 3, 4, 5]])
    np.testing.assert_array_equal(tokens["attention_mask"], [[1, 1, 1, 0, 0, 0], [0] * 6, [1] * 6])
    assert tokens["input_ids"].dtype == np.int64


@pytest.mark.parametrize("write", [write_words, write_pieces])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"model_max_length": 5},
        {"padding_side": "left", "truncation_side": "left"},
        {"pad_token": {"__type": "AddedToken", "content": "<pad>", "lstrip": False, "normalized": False}},
    ],
    ids=lambda settings: ",".join(settings) or "plain",
)
def test_ids_are_those_of_transformers(tmp_path, write, settings):
    transformers = pytest.importorskip("transformers")
    write(tmp_path / "t", **settings)
    ours, theirs = FileTokenizer(tmp_path / "t"), transformers.AutoTokenizer.from_pretrained(str(tmp_path / "t"))
    texts = ["push the cube", "", "Push  the cubé!", "push the cube push the cube push the cube", " </s> the <pad>"]
    for max_length in (None, 1, 3, 6, 16):
        for padding in (False, True, "longest", "max_length", "do_not_pad"):
            for truncation in (False, True, "only_first", "longest_first", "do_not_truncate"):
                for special in (True, False):
                    kwargs = {"max_length": max_length, "padding": padding, "truncation": truncation}
                    kwargs["add_special_tokens"] = special
                    given, wanted = ours(texts, **kwargs), theirs(texts, **kwargs)
                    for name in ("input_ids", "attention_mask"):
                        assert given[name] == wanted[name], (kwargs, name)


def test_transformers_is_not_imported_for_a_tokenizer_json(checkpoint):
    program = (
        "import sys; sys.modules['transformers'] = None\n"
        "from pathlib import Path; from octo_teacher.model.text import HFTokenizer\n"
        f"print(HFTokenizer('words', {KWARGS!r}, Path({str(checkpoint)!r})).encode(['push the'])['input_ids'].tolist())"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert run.stdout.strip() == "[[3, 4, 0, 0, 0, 0]]", run.stderr
    (checkpoint / "words" / "tokenizer.json").rename(checkpoint / "words" / "spiece.model")
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert "UserError: " in run.stderr and "has no tokenizer.json" in run.stderr.splitlines()[-1]


def test_the_original_octo_knows_what_we_write(tmp_path):
    """transformers 4.34 has no TokenizersBackend, and its generic class makes token types unless told not to."""
    write_text_files(tmp_path)
    for folder in (*PRETRAINED, tmp_path):
        settings = json.loads((folder / TOKENIZER / "tokenizer_config.json").read_text())
        assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
        assert settings["model_input_names"] == ["input_ids", "attention_mask"]
        assert set(settings) <= KNOWN_TO_4_34


def test_the_embedded_teachers_use_the_tokenizer_that_is_written(tmp_path):
    write_text_files(tmp_path)
    for folder in PRETRAINED:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            assert (folder / TOKENIZER / name).read_bytes() == (tmp_path / TOKENIZER / name).read_bytes()


def test_a_tokenizer_of_transformers_5_is_read_and_written_mended(tmp_path):
    source = PRETRAINED[0]
    old = {"backend": "tokenizers", "eos_token": "</s>", "model_max_length": 12, "pad_token": "<pad>"}
    old |= {"tokenizer_class": "TokenizersBackend", "unk_token": "<unk>"}
    shutil.copytree(source, tmp_path / "old")
    (tmp_path / "old" / TOKENIZER / "tokenizer_config.json").write_text(json.dumps(old))
    model, instructions = OctoModel.load_pretrained(tmp_path / "old"), [task.instruction for task in TASKS.values()]
    expected = OctoModel.load_pretrained(source).text_processor.encode(instructions)
    np.testing.assert_array_equal(model.text_processor.encode(instructions)["input_ids"], expected["input_ids"])
    model.save_pretrained(0, tmp_path / "new")
    written = (tmp_path / "new" / TOKENIZER / "tokenizer_config.json").read_bytes()
    assert written == (source / TOKENIZER / "tokenizer_config.json").read_bytes()
    other = b'{"tokenizer_class": "T5TokenizerFast", "backend": "x"}'
    assert mend_settings(other) == other and mend_settings(b"{") == b"{"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer.json", b"{}", "tokenizer.json is no tokenizer"),
        ("tokenizer.json", b"\xff\x00", "tokenizer.json is no tokenizer"),
        ("tokenizer_config.json", b"[", "tokenizer_config.json cannot be read as JSON"),
        ("tokenizer_config.json", b"[1]", "is not a JSON object"),
        ("tokenizer_config.json", b'{"model_max_length": "x"}', "model_max_length='x'"),
        ("tokenizer_config.json", b'{"padding_side": "up"}', "padding_side='up'"),
        ("tokenizer_config.json", b'{"tokenizer_class": "X"}', "has no padding token None"),
        ("tokenizer_config.json", b'{"pad_token": "nowhere"}', "has no padding token 'nowhere'"),
    ],
)
def test_broken_tokenizers_are_refused_with_their_file(checkpoint, file, content, message):
    (checkpoint / "words" / file).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        HFTokenizer("words", KWARGS, checkpoint).encode(["push"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kwargs", [{"max_length": 0}, {"max_length": 10**9}, {"max_length": "x"}, [1]])
def test_odd_arguments_of_a_tokenizer_are_refused(kwargs):
    with pytest.raises(UserError, match="tokenizer_kwargs"):
        load_text_processor(spec(tokenizer_name="words", tokenizer_kwargs=kwargs), None)


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
