"""The one error type of both sides of the bridge."""


class BridgeError(Exception):
    """Something that the user can mend, or a worker that failed; one sentence with cause and mend.

    `rpd_jax.errors.UserError` cannot be used: the worker's environment has no rpd_jax. The client translates.
    """
