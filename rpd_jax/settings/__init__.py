"""What settings may be, what they ask of one another and of the machine, and how open ones are filled in.

`values` says what each may be by itself, `relations` what several ask of one another and of the devices, `checks` holds
a config against both, `resolution` fills in what is open. May import learning, student, command, run and what is below.
"""

from rpd_jax.settings.checks import check, check_machine, check_student
from rpd_jax.settings.relations import MACHINE, RELATIONS
from rpd_jax.settings.resolution import default_checkpoint, departures, has_cuda, resolve
from rpd_jax.settings.values import SETTINGS

__all__ = [
    "MACHINE",
    "RELATIONS",
    "SETTINGS",
    "check",
    "check_machine",
    "check_student",
    "default_checkpoint",
    "departures",
    "has_cuda",
    "resolve",
]
