"""Instructions to token ids, with the prompt that OpenVLA was trained on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from openvla_bridge.errors import BridgeError

# Training text has a space after the prompt; Llama's tokenizer turns it into this token.
EMPTY_TOKEN = 29871


class PromptTokenizer(Protocol):
    """Turns a prompt into ids that begin with BOS."""

    def encode(self, prompt: str) -> list[int]:
        """Returns the ids of one prompt."""


class FixedIds:
    """The same ids for any prompt: for checkpoints without a tokenizer, where only time or arithmetic matters."""

    def __init__(self, ids: Sequence[int]):
        self.ids = list(ids)

    def encode(self, prompt: str) -> list[int]:
        """Returns the given ids."""
        return self.ids


class FileTokenizer:
    """The tokenizer of a checkpoint's tokenizer.json, through the `tokenizers` library.

    transformers' automatic classes are not asked: they choose by the declared class, which transformers 5 lists as
    wrong for OpenVLA.
    """

    def __init__(self, folder: Path, bos_id: int):
        from tokenizers import Tokenizer

        path = folder / "tokenizer.json"
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
            self._bos_id = bos_id
            self._tokenizer.encode("In:")  # some that can be read cannot encode
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library raises plain Exception, and where it panics not even that
            cause = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise BridgeError(
                f"{path} cannot be read ({cause}): the checkpoint needs the tokenizer.json that is published with it."
            ) from None

    def encode(self, prompt: str) -> list[int]:
        """Returns ids beginning with BOS.

        Raises:
            BridgeError: the tokenizer fails on this prompt.
        """
        try:
            ids = self._tokenizer.encode(prompt).ids
        except Exception as error:  # the library raises plain Exception
            raise BridgeError(f"The checkpoint's tokenizer.json fails on {prompt!r} ({error}): get it again.") from None
        return ids if ids[:1] == [self._bos_id] else [self._bos_id, *ids]


def build_prompt(instruction: str) -> str:
    """Returns the prompt of an instruction, which is lower-cased as in training."""
    return f"In: What action should the robot take to {instruction.lower()}?\nOut:"


def with_empty_token(ids: Sequence[int]) -> list[int]:
    """Returns the ids ending with the empty token, which is added unless it is there."""
    return [*ids] if ids and ids[-1] == EMPTY_TOKEN else [*ids, EMPTY_TOKEN]
