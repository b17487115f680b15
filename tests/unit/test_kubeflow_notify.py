"""What a webhook is told of a run, over a real connection, and what nobody is told of the webhook."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from whence.kubeflow import tell


class Webhook(BaseHTTPRequestHandler):
    told: list[dict[str, str]]
    status = 200

    def do_POST(self) -> None:
        self.told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Webhook]]:
    handler = type("Handler", (Webhook,), {"told": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("WEBHOOK", f"http://127.0.0.1:{server.server_port}/services/very-secret")
        yield handler
        server.shutdown()


def test_a_webhook_is_told_in_words_and_in_parts(webhook: type[Webhook]) -> None:
    tell("WEBHOOK", "demo", "run-1", "https://kfp/#/runs/details/run-1", "FAILED")
    assert webhook.told == [
        {
            "text": "Whence demo: the run failed https://kfp/#/runs/details/run-1",
            "profile": "demo",
            "run": "run-1",
            "state": "FAILED",
            "page": "https://kfp/#/runs/details/run-1",
        }
    ]


def test_a_webhook_that_refuses_fails_the_task_without_its_address(
    webhook: type[Webhook], capsys: pytest.CaptureFixture[str]
) -> None:
    webhook.status = 403
    with pytest.raises(SystemExit):
        tell("WEBHOOK", "demo", "run-1", "", "SUCCEEDED")
    said = capsys.readouterr()
    assert "the webhook in WEBHOOK was not told: HTTPError 403" in said.err
    assert "very-secret" not in said.err + said.out
    assert webhook.told[0]["text"] == "Whence demo: the run succeeded run-1"
