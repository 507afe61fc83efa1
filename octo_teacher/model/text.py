"""Instructions to token ids, by the tokenizer that a checkpoint names."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rpd_jax.errors import UserError


class TextProcessor(Protocol):
    """Turns instructions into what a language tokenizer takes."""

    def encode(self, texts: Sequence[str]) -> dict[str, np.ndarray] | np.ndarray:
        """Returns {"input_ids", "attention_mask"} int64 [B, L], or embeddings."""


DEFAULT_KWARGS = {"max_length": 64, "padding": "max_length", "truncation": True, "return_tensors": "np"}


class HFTokenizer:
    """A Hugging Face tokenizer, loaded when the first text comes; ids are cached per text.

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
            UserError: the tokenizer is neither in a folder nor reachable on the hub.
        """
        for text in texts:
            if text not in self._cache:
                tokens = self._load()([text], **self.tokenizer_kwargs)
                self._cache[text] = {
                    key: np.asarray(tokens[key], np.int64)[0] for key in ("input_ids", "attention_mask")
                }
        return {key: np.stack([self._cache[text][key] for text in texts]) for key in ("input_ids", "attention_mask")}

    def _load(self):
        if self._tokenizer is None:
            from transformers import AutoTokenizer  # imported late: it takes seconds and ids may be at hand

            source = self.tokenizer_name
            if self.folder is not None:
                for candidate in (self.folder / source, self.folder.parent / source):
                    if candidate.is_dir():
                        source = str(candidate)
                        break
            try:
                self._tokenizer = _from_cache_or_hub(AutoTokenizer, source)
            except Exception as error:  # transformers raises many types, from OSError to JSON errors
                cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                raise UserError(
                    f"The tokenizer {self.tokenizer_name!r} could not be loaded: put its files into a folder "
                    f"of that name in the checkpoint, or make the Hugging Face hub reachable ({cause})"
                ) from None
        return self._tokenizer


def _from_cache_or_hub(loader: Any, source: str) -> Any:
    """Loads without the network if it can, and asks the hub once before transformers would ask for a minute."""
    try:
        return loader.from_pretrained(source, trust_remote_code=False, local_files_only=True)
    except Exception:
        if Path(source).is_dir():
            raise
    import huggingface_hub

    huggingface_hub.model_info(source, timeout=20)
    return loader.from_pretrained(source, trust_remote_code=False)


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
    return HFTokenizer(kwargs["tokenizer_name"], kwargs.get("tokenizer_kwargs"), folder)
