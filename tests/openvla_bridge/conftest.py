import os
from pathlib import Path

import pytest
import torch
from lerobot_environment import LeRobot, make_policies
from tiny_openvla import write_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("openvla") / "tiny")


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def lerobot(tmp_path_factory) -> LeRobot:
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # of all processes
    return make_policies(folder / "lerobot")
