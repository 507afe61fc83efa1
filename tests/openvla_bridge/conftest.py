from pathlib import Path

import pytest
import torch
from tiny_openvla import write_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("openvla") / "tiny")


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)
