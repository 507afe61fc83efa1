"""A Hugging Face hub of one repository, asked by the hub's own client in processes of their own."""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[2]
REPOSITORY, COMMIT = "someone/policy", "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """A hub that is running.

    Attributes:
        fetched: names of the files that were downloaded, in order.
        environment: of a process whose client is to ask it, with an empty cache at first.
    """

    def __init__(self, folder: Path, cache: Path):
        hub, self.fetched = self, []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                content, headers = hub.answer(unquote(urlsplit(self.path).path), self.command)
                self.send_response(404 if content is None else 200)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content or b"")))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content or b"")

            do_HEAD = do_GET

            def log_message(self, *arguments):
                pass

        self.server, self._folder = ThreadingHTTPServer(("127.0.0.1", 0), Handler), folder
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        own = {
            "HF_ENDPOINT": f"http://127.0.0.1:{self.server.server_port}",
            "HF_HOME": str(cache),
            "PYTHONPATH": str(ROOT),
        }
        own |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        self.environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"} | own

    def answer(self, path: str, command: str) -> tuple[bytes | None, dict[str, str]]:
        """What is at a path, None if nothing, and its headers."""
        api, files = f"/api/models/{REPOSITORY}", f"/{REPOSITORY}/resolve/"
        there = sorted(path for path in self._folder.rglob("*") if path.is_file())
        names = {path.relative_to(self._folder).as_posix(): path for path in there}
        if path.startswith(f"{api}/revision/"):
            siblings = [{"rfilename": name} for name in names]
            return json.dumps({"id": REPOSITORY, "sha": COMMIT, "siblings": siblings}).encode(), {}
        if path.startswith(f"{api}/tree/"):
            entries = [
                {"type": "file", "path": name, "size": file.stat().st_size, "oid": _etag(file)}
                for name, file in names.items()
            ]
            return json.dumps(entries).encode(), {}
        name = path.removeprefix(files).partition("/")[2]
        if not path.startswith(files) or name not in names:
            return None, {"X-Error-Code": "EntryNotFound"}
        if command == "GET":
            self.fetched.append(name)
        return names[name].read_bytes(), {"ETag": f'"{_etag(names[name])}"', "X-Repo-Commit": COMMIT}

    def run(self, code: str, python: str = sys.executable) -> list[str]:
        """The lines that a program prints, in an environment that asks this hub; `checkpoint` is its repository."""
        code = f'checkpoint = "hf://{REPOSITORY}"\n{code}'
        run = subprocess.run([python, "-c", code], env=self.environment, capture_output=True, text=True, timeout=120)
        assert run.returncode == 0, run.stderr
        return run.stdout.splitlines()


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


@contextlib.contextmanager
def hub_of(folder: Path, cache: Path) -> Iterator[Hub]:
    """A hub whose repository has the files of a folder; it ends with the `with` block."""
    hub = Hub(folder, cache)
    try:
        yield hub
    finally:
        hub.server.shutdown()
        hub.server.server_close()
