"""Several devices, in one process and in two, compute what one device computes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from sharded_update import ENVS, MINIBATCHES, STEPS, local_orders, make_arrays, make_learner, update

from rpd_jax.acting.kept_replay import read_replay
from rpd_jax.errors import UserError
from rpd_jax.run import processes
from rpd_jax.run.checkpoints import Checkpoints

SCRIPT = Path(__file__).parent / "sharded_update.py"
ROOT = SCRIPT.parents[3]


def start(output, *cluster, devices=1):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    flags = os.environ.get("XLA_FLAGS", "")
    environment["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={devices}"
    command = [sys.executable, str(SCRIPT), str(output), *map(str, cluster)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(*started):
    try:
        for process in started:
            output = process.communicate(timeout=500)[0]
            assert process.returncode == 0, output
    finally:
        for process in started:
            process.kill()


@pytest.fixture(scope="module")
def four_devices(tmp_path_factory):
    output = tmp_path_factory.mktemp("devices")
    finish(start(output, devices=4))
    return output


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    output = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    finish(*(start(output, address, 2, index) for index in range(2)))
    return output


@pytest.fixture(scope="module")
def learner():
    return make_learner()


def same_minibatches_on_one_device(devices):
    """The orders of all devices as one order of all frames: each minibatch is the union of the devices' parts."""
    per_device = ENVS // devices
    orders = []
    for epoch in local_orders(devices):
        local = epoch.reshape(devices, MINIBATCHES, -1)
        step, env = local // per_device, local % per_device + np.arange(devices)[:, None, None] * per_device
        orders.append((step * ENVS + env).swapaxes(0, 1).reshape(-1))
    assert all(sorted(order) == list(range(STEPS * ENVS)) for order in orders)
    return np.array(orders, np.int32)


@pytest.mark.slow
@pytest.mark.parametrize("several", ["four_devices", "two_processes"])
def test_several_devices_compute_the_update_of_one(several, learner, request):
    output = request.getfixturevalue(several)
    found = np.load(output / "metrics.npz")
    assert found["devices"] == (4 if several == "four_devices" else 2)
    metrics, state, replay, _ = update(learner, orders=same_minibatches_on_one_device(int(found["devices"])))
    for name, expected in metrics.pop("minibatches").items():
        np.testing.assert_allclose(found[f"minibatches/{name}"], expected, rtol=1e-5, atol=1e-5, err_msg=name)
    for name, expected in metrics.items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-5, err_msg=name)
    assert 0 < found["teacher_std_floored"] < 1 and found["optimizer_steps"] == 2 * MINIBATCHES
    assert np.isfinite(found["replayed"]) and found["replayed"] > 0
    expected = learner.mean_action(learner.init(jax.random.key(0), None, make_arrays()["state"][0]).params, None,
                                   make_arrays()["state"][0])  # fmt: skip
    np.testing.assert_allclose(found["action"], expected, atol=1e-5)

    # Their checkpoint continues on one device: the same parameters and moments, and the same frames in the replay.
    _, tree, _ = Checkpoints(output / "checkpoints", keep=1).restore({"learner": state, "replay": replay})
    difference = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max(), tree["learner"], state)
    assert max(jax.tree.leaves(difference)) < 1e-4
    for name, rows in read_replay(output / "rows" / "1", "states", "labels", "count").items():
        np.testing.assert_array_equal(rows, getattr(tree["replay"], name), err_msg=name)
    filled = np.asarray(tree["replay"].states)
    filled = filled[np.any(filled != 0, axis=1)]
    expected = make_arrays()["state"].reshape(-1, 10)
    assert sorted(filled[:, 0].tolist()) == sorted(expected[:, 0].tolist())


@pytest.mark.slow
def test_what_ends_one_process_ends_all(two_processes):
    """The second process was interrupted, then failed; this is what the first one saw."""
    found = np.load(two_processes / "metrics.npz")
    went_on, interrupted, failed = found["outcomes"]
    assert went_on == "went on"
    assert interrupted == "Interrupted: stop of another process"
    assert failed == "UserError: Process 1 of this run failed: see what it printed."
    assert found["shared"] == 0.25


def test_half_a_cluster_is_refused(monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1")
    with pytest.raises(UserError, match=r"JAX_COORDINATOR_ADDRESS of .* set all of them, or none"):
        processes.connect()
