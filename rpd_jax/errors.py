"""The one error type for what a user can cause and mend."""


class UserError(Exception):
    """A mistake or missing thing on the user's side.

    The message is one sentence that names the cause and the mend. Entry points print it without
    a stack trace and exit with status 2.
    """
