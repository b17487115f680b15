"""What people are told of errors: a line, without a stack trace and without secrets."""

from __future__ import annotations

import errno
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

from whence import cli, kubeflow
from whence.environment import authorities, settings_of_the_network, strip_secrets
from whence.errors import ConfigError, DataError, WhenceError, message_of, scrub

SECRETS = {
    "https://ann:pa55word@store:9000/x": "pa55word",
    "Authorization: Bearer abcdefghijklmnopqrstuvwx": "abcdefghijklmnopqrstuvwx",
    "?X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F2026&X-Amz-Signature=deadbeef01&x=1": "deadbeef01",
    "{'password': 'pa55word'}": "pa55word",
    "the token hf_abcdefghijklmnop is": "hf_abcdefghijklmnop",
}
HARMLESS = [
    "generation.max_new_tokens=0: is too small",
    "cluster.secrets: Input should be a valid dictionary",
    "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the rights of this key",
    "the token: 'Paris' of row 3; basic authentication is on",
    "s3://bucket/a@b and https://host/path",
]


@pytest.mark.parametrize(("text", "secret"), SECRETS.items())
def test_what_looks_like_a_secret_is_hidden(text: str, secret: str) -> None:
    assert secret not in scrub(text)
    assert "[hidden]" in scrub(text)


@pytest.mark.parametrize("text", HARMLESS)
def test_what_only_speaks_of_secrets_is_shown(text: str) -> None:
    assert scrub(text) == text


def test_the_values_of_secret_variables_are_hidden_however_they_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "open/sesame\n")
    for text in ("it is open/sesame", "b'open/sesame\\n'", "http://x/?p=open%2Fsesame"):
        assert "sesame" not in scrub(text)


def fail_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise error

    monkeypatch.setattr(cli, "build_app", broken)


def test_an_unexpected_error_is_one_line_and_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "not-for-eyes")
    fail_with(ValueError("Invalid header b'not-for-eyes'\nand more"), monkeypatch)
    with pytest.raises(SystemExit, match="1"):
        cli.main([])
    [line] = capsys.readouterr().err.splitlines()
    file = Path(re.fullmatch(r"Error: ValueError: Invalid header b'\[hidden\]'; the rest is in (\S+)", line)[1])
    kept = file.read_text(encoding="utf-8")
    mode = file.stat().st_mode
    file.unlink()
    assert "Traceback" in kept
    assert "not-for-eyes" not in kept
    assert mode & 0o077 == 0


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device", "/work/model.safetensors"),
                                   RuntimeError("I/O error: No space left on device (os error 28)")])  # fmt: skip
def test_a_full_disk_is_told_with_the_way_out(error: Exception) -> None:
    assert "free some, or put TMPDIR, general.work_dir or the output elsewhere" in message_of(error)


def test_a_really_full_disk_is_one_line(tmp_path: Path) -> None:
    """/dev/full answers every write as a full disk does."""
    script = "from whence import cli; cli.build_app = lambda: open('/dev/full', 'w').write('x' * 10000); cli.main([])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 1
    assert "No space left on device; free some" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("expected", [True, False])
def test_a_task_ends_with_one_line_after_what_only_its_log_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], expected: bool
) -> None:
    monkeypatch.setenv("HF_TOKEN", "not-for-eyes")

    def run_stage(*_: object, **__: object) -> None:
        raise DataError("row 3: no text") if expected else KeyError("not-for-eyes")

    monkeypatch.setattr(kubeflow, "run_stage", run_stage)
    with pytest.raises(SystemExit):
        kubeflow.run_component("generate", {"generations": type("Shown", (), {"path": "x"})})
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == ("Error: row 3: no text" if expected else "Error: KeyError: '[hidden]'")
    assert (len(lines) == 1) is expected
    assert not any("not-for-eyes" in line for line in lines)


def test_keys_lose_the_line_break_that_secrets_are_made_with(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_USERNAME", "HF_TOKEN", "HOME"):
        monkeypatch.setenv(name, "value\n")
    strip_secrets()
    assert {os.environ[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN")} == {"value"}
    assert os.environ["MLFLOW_TRACKING_USERNAME"] == "value"
    assert os.environ["HOME"] == "value\n"


def test_it_is_said_which_variable_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.touch()
    for name in (
        "AWS_CA_BUNDLE",
        "SSL_CERT_FILE",
        "CURL_CA_BUNDLE",
        "http_proxy",
        "https_proxy",
        "no_proxy",
        "HF_ENDPOINT",
    ):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
    monkeypatch.setenv("HTTPS_PROXY", "http://me:hidden-word@proxy:3128")
    monkeypatch.setenv("NO_PROXY", ".svc")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere")
    assert settings_of_the_network().split("; ") == [
        "proxies https by http://[hidden]@proxy:3128, but for NO_PROXY .svc",
        "MLflow trusts REQUESTS_CA_BUNDLE",
        "S3 trusts REQUESTS_CA_BUNDLE",
        "Kubeflow trusts REQUESTS_CA_BUNDLE",
        "MLFLOW_TRACKING_URI is not read: tracking.uri wins",
    ]
    monkeypatch.setenv("AWS_CA_BUNDLE", "/nowhere.pem")
    with pytest.raises(ConfigError, match=r"AWS_CA_BUNDLE: names /nowhere.pem, which is not there"):
        authorities("S3")
    monkeypatch.delenv("AWS_CA_BUNDLE")
    monkeypatch.setenv("HF_ENDPOINT", "hub.example")
    with pytest.raises(ConfigError, match=r"HF_ENDPOINT: hub.example is no address; write it with http"):
        settings_of_the_network()


def test_the_hint_ends_the_message_and_travels_with_the_error() -> None:
    error: WhenceError = pickle.loads(pickle.dumps(DataError("train.csv has no rows", hint="give another file")))
    assert str(error) == "train.csv has no rows; give another file"
    assert error.hint == "give another file"
    assert str(DataError("train.csv has no rows")) == "train.csv has no rows"
