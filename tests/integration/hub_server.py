"""A little of the Hugging Face hub's protocol, enough for its real client libraries to find and read a dataset.

The hub itself cannot be reached from everywhere tests run; what is held with this is how Whence uses its clients.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

Files = dict[str, bytes]


def commit_of(revision: str) -> str:
    """The commit (40 hexadecimal digits) that a revision stands for here."""
    return hashlib.sha1(revision.encode()).hexdigest()


@contextmanager
def serving(repository: str, revisions: dict[str, Files]) -> Iterator[str]:
    """Serve the dataset ``repository`` (``owner/name``) with its files by revision, and yield the hub's address."""
    commits = {name: commit_of(name) for name in revisions}
    commits |= {commit: commit for commit in commits.values()}
    files_of = {commit_of(name): files for name, files in revisions.items()}

    class Handler(_Handler):
        def respond(self, parts: list[str]) -> None:
            kind, revision, path = _parse(parts, repository)
            commit = commits.get(revision)
            if kind is None:
                self.answer(404, code="RepoNotFound")
            elif commit is None:
                self.answer(404, code="RevisionNotFound")
            elif kind == "info":
                self.answer(200, json.dumps({"_id": "1", "id": repository, "sha": commit}).encode())
            elif kind == "tree":
                self.listing(files_of[commit], path)
            elif path in files_of[commit]:
                content = files_of[commit][path]
                self.answer(200, content, {"ETag": f'"{_oid(content)}"', "X-Repo-Commit": commit})
            else:
                self.answer(404, code="EntryNotFound", headers={"X-Repo-Commit": commit})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Not into the output of the tests."""

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.respond([unquote(part) for part in self.path.partition("?")[0].strip("/").split("/")])

    do_HEAD = do_POST = do_GET

    def respond(self, parts: list[str]) -> None:
        raise NotImplementedError

    def listing(self, files: Files, folder: str) -> None:
        inside = {path: content for path, content in files.items() if path.startswith(f"{folder}/" if folder else "")}
        if folder and not inside:
            self.answer(404, code="EntryNotFound")
            return
        folders = {path.rsplit("/", depth)[0] for path in inside for depth in range(1, path.count("/") + 1)}
        entries: list[dict[str, Any]] = [{"type": "directory", "path": p, "oid": "0", "size": 0} for p in folders]
        entries += [{"type": "file", "path": p, "oid": _oid(c), "size": len(c)} for p, c in inside.items()]
        self.answer(200, json.dumps(entries).encode())

    def answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None, code: str = "") -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "X-Error-Code": code, "Content-Length": str(len(body))}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _parse(parts: list[str], repository: str) -> tuple[str | None, str, str]:
    """What is asked for (``info``, ``tree`` or ``file``), at which revision, and its path."""
    name = repository.split("/")
    if parts[:4] == ["api", "datasets", *name]:
        kind, revision, *rest = [*parts[4:], "", ""]
        if kind in ("", "revision"):
            return "info", revision or "main", ""
        if kind in ("tree", "paths-info"):
            return "tree", revision, "/".join(rest).strip("/")
    if parts[:4] == ["datasets", *name, "resolve"]:
        return "file", parts[4], "/".join(parts[5:])
    return None, "", ""


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
