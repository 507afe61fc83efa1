"""Instructions to token ids, by the tokenizer that a checkpoint names."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tokenizers import Tokenizer

from rpd_jax.errors import UserError


class TextProcessor(Protocol):
    """Turns instructions into what a language tokenizer takes."""

    def encode(self, texts: Sequence[str]) -> dict[str, np.ndarray] | np.ndarray:
        """Returns {"input_ids", "attention_mask"} int64 [B, L], or embeddings."""


TOKENIZER_FILE, SETTINGS_FILE = "tokenizer.json", "tokenizer_config.json"
DEFAULT_KWARGS = {"max_length": 64, "padding": "max_length", "truncation": True, "return_tensors": "np"}
# What `FileTokenizer` gives as transformers' own call would. Others that change nothing for one text are left out.
_KNOWN_KWARGS = ("max_length", "padding", "truncation", "add_special_tokens")
_IDLE_KWARGS = ("return_tensors", "return_attention_mask", "return_token_type_ids", "verbose")
# transformers writes a number like this one where there is no limit.
_NO_LIMIT = int(1e20)
# Longer instructions are mistakes or attacks: every label pays for their padding.
_MAX_LENGTH = 4096


class HFTokenizer:
    """A Hugging Face tokenizer, loaded when the first text comes; ids are cached per text.

    A folder's or repository's tokenizer.json is read with the `tokenizers` library. Only where there is none, as beside
    a bare spiece.model, transformers is asked, if it is installed.

    Args:
        tokenizer_name: a folder inside `folder`, beside it or as a path of its own, or a name on the hub.
        tokenizer_kwargs: arguments of every call; "return_tensors" is always numpy.
        folder: the checkpoint's folder.
    """

    def __init__(
        self, tokenizer_name: str, tokenizer_kwargs: Mapping[str, Any] | None = None, folder: Path | None = None
    ):
        self.tokenizer_name = tokenizer_name
        self.tokenizer_kwargs = {
            **(DEFAULT_KWARGS if tokenizer_kwargs is None else tokenizer_kwargs),
            "return_tensors": "np",
        }
        self.folder = folder
        self._tokenizer = None
        self._cache: dict[str, dict[str, np.ndarray]] = {}

    def encode(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Returns {"input_ids", "attention_mask"} int64 [B, L].

        Raises:
            UserError: the tokenizer is neither in a folder nor reachable on the hub, or cannot do what is asked.
        """
        for text in texts:
            if text not in self._cache:
                try:
                    tokens = self._load()([text], **self.tokenizer_kwargs)
                except UserError:
                    raise
                except (KeyboardInterrupt, SystemExit):
                    raise
                except BaseException as error:  # the libraries raise plain Exception, or panic, which is not even that
                    raise UserError(
                        f"The tokenizer {self.tokenizer_name!r} fails on {text!r}: {_cause(error)}"
                    ) from None
                self._cache[text] = {
                    key: np.asarray(tokens[key], np.int64)[0] for key in ("input_ids", "attention_mask")
                }
        return {key: np.stack([self._cache[text][key] for text in texts]) for key in ("input_ids", "attention_mask")}

    def _load(self):
        if self._tokenizer is None:
            try:
                folder = self._find_folder()
                if (folder / TOKENIZER_FILE).is_file() and not set(self.tokenizer_kwargs) - {
                    *_KNOWN_KWARGS,
                    *_IDLE_KWARGS,
                }:
                    self._tokenizer = FileTokenizer(folder)
                else:
                    self._tokenizer = _from_transformers(folder)
            except UserError:
                raise
            except Exception as error:  # the libraries raise many types, from OSError to plain Exception
                raise UserError(
                    f"The tokenizer {self.tokenizer_name!r} could not be loaded: put its files into a folder "
                    f"of that name in the checkpoint, or make the Hugging Face hub reachable ({_cause(error)})"
                ) from None
        return self._tokenizer

    def _find_folder(self) -> Path:
        if self.folder is not None:
            for candidate in (self.folder / self.tokenizer_name, self.folder.parent / self.tokenizer_name):
                if candidate.is_dir():
                    return candidate
        return Path(self.tokenizer_name) if Path(self.tokenizer_name).is_dir() else _from_hub(self.tokenizer_name)


class FileTokenizer:
    """A tokenizer.json with the settings beside it, called as transformers' tokenizers are.

    Args:
        folder: holds tokenizer.json, and tokenizer_config.json or special_tokens_map.json where settings differ from
            the defaults: no padding token (T5's is "<pad>"), padding and truncation on the right, no length limit.

    Raises:
        UserError: a file is broken.
    """

    def __init__(self, folder: Path):
        path = folder / TOKENIZER_FILE
        try:
            self._tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library raises plain Exception, and where it panics not even that
            raise UserError(f"{path} is no tokenizer: {_cause(error)}") from None
        self._path = path
        self._settings = {
            **_read_settings(folder / "special_tokens_map.json"),
            **_read_settings(folder / SETTINGS_FILE),
        }
        self._pad_token = self._settings.get("pad_token", self._default_pad_token())
        if isinstance(self._pad_token, Mapping):  # an AddedToken with its flags
            self._pad_token = self._pad_token.get("content")

    def __call__(
        self,
        texts: Sequence[str],
        *,
        max_length: int | None = None,
        padding: bool | str = False,
        truncation: bool | str = False,
        add_special_tokens: bool = True,
        **_: Any,
    ) -> dict[str, list[list[int]]]:
        """Returns {"input_ids", "attention_mask"}, a list for each text, exactly as transformers' call would.

        Raises:
            UserError: an argument that no tokenizer has, or padding without a padding token.
        """
        limit = self._settings.get("model_max_length", _NO_LIMIT)
        length = max_length if max_length is not None else (limit if limit < _NO_LIMIT else None)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        if truncation in (True, "longest_first", "only_first"):
            if length is not None:
                self._tokenizer.enable_truncation(
                    length,
                    strategy="longest_first" if truncation is True else truncation,
                    direction=self._settings.get("truncation_side", "right"),
                )
        elif truncation not in (False, None, "do_not_truncate"):
            raise UserError(f"tokenizer_kwargs in config.json has truncation={truncation!r}, which no tokenizer knows.")
        if padding in (True, "longest") or (padding == "max_length" and length is not None):
            self._enable_padding(length if padding == "max_length" else None)
        elif padding not in (False, None, "do_not_pad", "max_length"):
            raise UserError(f"tokenizer_kwargs in config.json has padding={padding!r}, which no tokenizer knows.")
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=add_special_tokens)
        return {
            "input_ids": [encoding.ids for encoding in encodings],
            "attention_mask": [encoding.attention_mask for encoding in encodings],
        }

    def _enable_padding(self, length: int | None) -> None:
        pad_id = None if self._pad_token is None else self._tokenizer.token_to_id(self._pad_token)
        if pad_id is None:
            raise UserError(
                f"{self._path} has no padding token {self._pad_token!r}: name it as pad_token in {SETTINGS_FILE}."
            )
        self._tokenizer.enable_padding(
            direction=self._settings.get("padding_side", "right"),
            pad_id=pad_id,
            pad_token=self._pad_token,
            length=length,
        )

    def _default_pad_token(self) -> str | None:
        declared = self._settings.get("tokenizer_class", "T5Tokenizer")
        return "<pad>" if str(declared).startswith("T5") else None


def mend_settings(content: bytes) -> bytes:
    """Returns a tokenizer_config.json that transformers of any version reads as this one is meant.

    transformers 5 names a class, TokenizersBackend, that no earlier version has; the original Octo runs on 4.34. Its
    generic class there makes token types besides, which T5 does not take, unless the inputs are named.
    """
    try:
        settings = json.loads(content)
    except ValueError:
        return content
    if not isinstance(settings, dict) or settings.get("tokenizer_class") != "TokenizersBackend":
        return content
    settings.pop("backend", None)
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings.setdefault("model_input_names", ["input_ids", "attention_mask"])
    return settings_text(settings).encode()


def settings_text(settings: Mapping[str, Any]) -> str:
    """The content of a tokenizer_config.json."""
    return json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _read_settings(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {_cause(error)}") from None
    if not isinstance(settings, dict):
        raise UserError(f"{path} is not a JSON object.")
    limit = settings.get("model_max_length")
    if limit is not None and not (isinstance(limit, int | float) and limit > 0):
        raise UserError(f"{path} has model_max_length={limit!r}; it must be a number above 0.")
    for name in ("padding_side", "truncation_side"):
        if settings.get(name, "right") not in ("left", "right"):
            raise UserError(f"{path} has {name}={settings[name]!r}; it must be 'left' or 'right'.")
    return {name: value for name, value in settings.items() if value is not None}


def _cause(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _from_hub(name: str) -> Path:
    """Returns the folder with a hub repository's tokenizer files, from the cache if they are there."""
    import huggingface_hub

    patterns = ["tokenizer*", "special_tokens_map.json", "spiece.model", "config.json"]
    try:
        folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns, local_files_only=True))
        if (folder / TOKENIZER_FILE).is_file() or (folder / "spiece.model").is_file():
            return folder
    except Exception:  # not in the cache
        pass
    huggingface_hub.model_info(name, timeout=20)  # asked once before the client would try for minutes
    return Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))


def _from_transformers(folder: Path) -> Any:
    try:
        from transformers import AutoTokenizer  # imported late: seconds, and mostly not needed
    except ImportError:
        raise UserError(
            f"{folder} has no {TOKENIZER_FILE} that can be used as config.json asks: save the tokenizer with "
            "transformers' save_pretrained there, or pip install transformers."
        ) from None
    return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)


def load_text_processor(spec: Any, folder: Path | None) -> TextProcessor | None:
    """Returns the text processor of config.json's entry "text_processor", None if it has none.

    Raises:
        UserError: it asks for another kind than a tokenizer.
    """
    if spec is None:
        return None
    if not isinstance(spec, Mapping) or spec.get("name") != "HFTokenizer":
        name = spec.get("name") if isinstance(spec, Mapping) else spec
        raise UserError(
            f"text_processor in config.json asks for {name!r}, which is not implemented: known is HFTokenizer."
        )
    kwargs = dict(
        zip(("tokenizer_name", "tokenizer_kwargs", "encode_with_model"), spec.get("args") or [], strict=False)
    )
    kwargs |= spec.get("kwargs") or {}
    if kwargs.pop("encode_with_model", False):
        raise UserError("text_processor.encode_with_model=true in config.json is not implemented.")
    if not isinstance(kwargs.get("tokenizer_name"), str):
        raise UserError("text_processor in config.json names no tokenizer_name.")
    arguments = kwargs.get("tokenizer_kwargs")
    if arguments is not None and not isinstance(arguments, Mapping):
        raise UserError(f"text_processor.tokenizer_kwargs in config.json is {arguments!r}; it must be an object.")
    length = (arguments or {}).get("max_length")
    if length is not None and not (type(length) is int and 1 <= length <= _MAX_LENGTH):
        raise UserError(
            f"text_processor.tokenizer_kwargs.max_length={length!r} in config.json must be a whole number from 1 to "
            f"{_MAX_LENGTH}."
        )
    return HFTokenizer(kwargs["tokenizer_name"], arguments, folder)
