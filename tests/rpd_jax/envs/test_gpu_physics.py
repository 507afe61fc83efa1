"""SAPIEN's library for physics on the GPU: here, to be had, or missed in one sentence within its time."""

import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import sapien.physx

from rpd_jax.envs import gpu_physics
from rpd_jax.errors import UserError


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def releases():
    """A server that has the archive under /here, and answers 404 elsewhere."""

    class Archive(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(200 if self.path == f"/here/{sapien.physx.version()}/linux-so.zip" else 404)
            self.end_headers()

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Archive) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_what_is_here_is_not_asked_for(home):
    folder = home / ".sapien" / "physx" / sapien.physx.version()
    assert gpu_physics.folder() == folder and not gpu_physics.is_there()
    folder.mkdir(parents=True)
    (folder / gpu_physics.LIBRARY).touch()
    assert gpu_physics.is_there()
    gpu_physics.check_available("http://127.0.0.1:1", seconds=0.1)


def test_what_can_be_fetched_is_left_to_sapien(releases, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    gpu_physics.check_available(f"{releases}/here")
    assert not gpu_physics.is_there()


def test_an_archive_that_is_gone_is_told(releases, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(UserError, match=r"linux-aarch64-so\.zip, and that cannot be reached \(Not Found\)"):
        gpu_physics.check_available(f"{releases}/here")


def test_a_server_that_says_nothing_is_not_waited_for(home):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(UserError, match=r"timed out.*unzip it into .*env\.backend=cpu"):
            gpu_physics.check_available(address, seconds=0.5)
