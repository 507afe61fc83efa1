"""The key that a policy server asks for: from a file or the environment, never from what is written to disk."""

import os
from pathlib import Path

from rpd_jax.errors import UserError

VARIABLE = "RPD_POLICY_API_KEY"


def read_api_key(file: str, setting: str) -> str | None:
    """Returns the key in a file, else that of the environment variable `VARIABLE`, else None.

    Args:
        file: path of the file, or "".
        setting: that names the file, for the sentence.

    Raises:
        UserError: there is no such file, or what it holds cannot be a key.
    """
    if not file:
        key, where = os.environ.get(VARIABLE, "").strip(), VARIABLE
        if not key:
            return None
    else:
        where = f"{setting}={file}"
        try:
            key = Path(file).expanduser().read_text(encoding="ascii").strip()
        except (OSError, ValueError) as error:
            cause = error.strerror if isinstance(error, OSError) else "it is no text"
            raise UserError(f"{where} cannot be read ({cause}): name a file that holds the API key alone.") from error
    # It travels in a header of HTTP: one line, no spaces.
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(f"{where} holds no API key: it must be one line of letters, digits and signs, without spaces.")
    return key
