"""A run's model to the hub: by the hub's own client, against a little of its protocol."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

TOKEN = "hf_a_token_that_may_write"


class Hub(ThreadingHTTPServer):
    """What was asked of it, by path, and the files of commits by branch."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[tuple[str, Any]] = []
        self.commits: dict[str, dict[str, bytes]] = {}
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.page = f"{self.address}/someone/patents"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        """Nothing."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        kind, branch = self.path.split("/")[-2:]
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer(401, {"error": "Invalid username or password."})
        if kind == "commit":
            entries = [json.loads(line) for line in body.splitlines()]
            files = [entry["value"] for entry in entries if entry["key"] == "file"]
            self.server.commits[branch] = {one["path"]: base64.b64decode(one["content"]) for one in files}
            address = f"{self.server.page}/commit/{'0' * 40}"
            return self._answer(200, {"success": True, "commitOid": "0" * 40, "commitUrl": address})
        asked = json.loads(body)
        self.server.asked.append((self.path, asked))
        if kind == "preupload":
            modes = [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in asked["files"]]
            return self._answer(200, {"files": modes})
        return self._answer(200, {"url": self.server.page})

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    model = tmp_path / "artifacts" / "train" / "model"
    files = {"model.safetensors": "weights", "config.json": "{}", "README.md": "early", "lineage/config.yaml": "s: 1"}
    files = {f"{model}/{name}": text for name, text in files.items()}
    card = tmp_path / "artifacts" / "report" / "tables" / "model_card"
    files |= {f"{card}/README.md": "measured", f"{card}/model_card.json": "{}"}
    for name, text in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
    return tmp_path


def push(hub: Hub, run: Path, *arguments: str, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HF_ENDPOINT": hub.address, "HF_TOKEN": token}
    command = [sys.executable, "-m", "whence.cli", "push", "someone/patents", "--run", str(run), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_the_model_goes_with_the_card_of_what_was_measured_in_one_commit(hub: Hub, run: Path) -> None:
    done = push(hub, run)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("/commit/" + "0" * 40)
    [(branch, files)] = hub.commits.items()
    assert branch == "main"
    assert files == {
        "model.safetensors": b"weights", "config.json": b"{}", "README.md": b"measured", "model_card.json": b"{}",
    }  # fmt: skip
    made = next(asked for path, asked in hub.asked if path == "/api/repos/create")
    assert made["visibility"] == "private"


def test_a_branch_and_a_public_repository_are_made_where_they_are_asked_for(hub: Hub, run: Path) -> None:
    done = push(hub, run, "--public", "--revision", "v2")
    assert done.returncode == 0, done.stderr
    assert list(hub.commits) == ["v2"]
    assert next(asked for path, asked in hub.asked if path == "/api/repos/create")["visibility"] == "public"
    assert any(path.endswith("/someone/patents/branch/v2") for path, _ in hub.asked)


def test_a_refusal_is_said_with_the_way_out_and_without_the_token(hub: Hub, run: Path) -> None:
    done = push(hub, run, token="hf_wrong")
    assert done.returncode == 1
    assert "someone/patents: the hub did not take the model: " in done.stderr
    assert "HF_TOKEN" in done.stderr
    assert "hf_wrong" not in done.stderr + done.stdout
    assert not hub.commits
