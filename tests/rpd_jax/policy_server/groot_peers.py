"""`groot_peer.py` as a process, and teachers with short waits that ask it."""

import contextlib

from groot_peer import LANGUAGE, PARTS
from peers import peer, servers_of

from rpd_jax.policy_server.groot_observation import GrootMap
from rpd_jax.policy_server.groot_teacher import GrootTeacher

USUAL = GrootMap("front", (LANGUAGE,))


def groot_peer(*arguments):
    """The context of a server, which has `address`."""
    return peer("groot_peer.py", *arguments, scheme="tcp")


@contextlib.contextmanager
def groot_teacher(*addresses, observation=USUAL, **options):
    """A teacher, closed with the `with` block; `said` is what it said."""
    said = options.pop("said", [])
    servers = servers_of(addresses, options, said)
    options = {"gripper": "signed", "action_keys": tuple(PARTS)} | options
    teacher = GrootTeacher(servers, observation, **options)
    teacher.said = said
    try:
        yield teacher
    finally:
        teacher.close()
