"""Checks of resolved settings, on whatever machine and on this one."""

import os

import jax
from ml_collections import ConfigDict

from rpd_jax.command.checks import check_fields, check_value, get, one_of
from rpd_jax.run import wandb_log
from rpd_jax.settings.relations import MACHINE, RELATIONS, batch, keeps_replay, refuse, sees_frames
from rpd_jax.settings.values import NAMES, SETTINGS, table_of
from rpd_jax.tasks import find_task


def check(config: ConfigDict) -> None:
    """Raises UserError if a field of a resolved config, or several together, cannot work, on whatever machine."""
    check_fields(config, table_of(config))
    for path, names in NAMES.items():
        check_value(path, get(config, path), one_of(*names()))
    find_task(config.env.task)
    if config.log.wandb:
        wandb_log.check_installed()
    refuse(RELATIONS, config)


def check_student(student: ConfigDict) -> None:
    """Raises UserError if a field of `config.student` is wrong, of a run whose other settings no longer matter."""
    own = {path.removeprefix("student."): check for path, check in SETTINGS.items() if path.startswith("student.")}
    check_fields(student, own, prefix="student.")


def check_machine(config: ConfigDict) -> None:
    """Raises UserError if a resolved config asks too much of the devices that JAX sees here."""
    devices = jax.device_count()
    machine = {"devices": devices, "processes": jax.process_count()}
    refuse(MACHINE, config, **machine, frames=_kept_frames(config) / devices, memory=_memory())


def _kept_frames(config: ConfigDict) -> float:
    """GB of the frames of an iteration and of the replay, with the one that the estimate of the time fills."""
    rollout = batch(config) * config.env.image_size**2 if config.algorithm != "ppo" or sees_frames(config) else 0
    replay = 0
    if keeps_replay(config) and (sees_frames(config) or config.distill.replay_both):
        replay = 2 * config.distill.replay * config.student.image_size**2
    return 3 * (rollout + replay) / 1e9


def _memory() -> float:
    """GB of one device."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    return statistics.get("bytes_limit", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) / 1e9
