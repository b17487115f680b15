"""Folders arrive whole at a real S3 server, through crashes, outages and wrong settings."""

from __future__ import annotations

import hashlib
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Bucket
from swift import Swift

from whence import s3
from whence.cli import main
from whence.config import Config
from whence.config_file import load_config
from whence.errors import ConfigError, StorageError
from whence.storage import check_writable, upload_folder

MIB = 2**20
AWAY = 20.0  # seconds


def write(path: Path, size: int, seed: int = 0) -> None:
    """Bytes that cannot be foreseen: a part at another place would be seen."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = random.Random(f"{path.name} {seed}")
    with open(path, "wb") as file:
        while size > 0:
            size -= file.write(generator.randbytes(min(size, 8 * MIB)))


def contents(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    write(folder / "model.safetensors", 300 * MIB + 1)
    write(folder / "factors" / "lambda matrix & ünicode.safetensors", 70 * MIB)
    for number in range(6):
        write(folder / "parts" / f"{number:02}.bin", 16 * MIB)
    write(folder / "train" / "config.json", 321)
    (folder / "train" / "empty").touch()
    return folder


@pytest.fixture
def small(tmp_path: Path) -> Path:
    folder = tmp_path / "small"
    write(folder / "large.bin", 40 * MIB)
    write(folder / "a" / "b.bin", 5000)
    return folder


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """Every request as it is made, with its parameters, retries of botocore's own included."""
    calls: list[tuple[str, dict[str, Any]]] = []
    make = s3.make_client

    def counting() -> Any:
        client = make()
        client.meta.events.register(
            "provide-client-params.s3", lambda params, model, **_: calls.append((model.name, dict(params)))
        )
        return client

    monkeypatch.setattr(s3, "make_client", counting)
    return calls


def test_what_is_there_is_not_sent_again(bucket: Bucket, small: Path, sent: list[tuple[str, dict[str, Any]]]) -> None:
    address = f"s3://{bucket.name}/x"
    assert upload_folder(small, address).sent_files == 2
    sent.clear()
    again = upload_folder(small, address)
    assert (again.files, again.sent_files, again.sent_bytes) == (2, 0, 0)
    assert [params["Key"] for name, params in sent if name == "PutObject"] == ["x/manifest.json"]
    assert "UploadPart" not in {name for name, _ in sent}
    bucket.put("x/a/b.bin", b"\0" * 5000)  # of the same size, and somebody else's
    assert upload_folder(small, address).sent_files == 1
    assert bucket.contents("x/") == contents(small)


def objects_there(bucket: Bucket) -> dict[str, tuple[str, Any]]:
    listed = bucket.client.list_objects_v2(Bucket=bucket.name).get("Contents", [])
    return {item["Key"]: (item["ETag"], item["LastModified"]) for item in listed}


def wait_until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def test_a_killed_upload_is_no_folder_and_the_next_one_sends_what_is_missing(bucket: Bucket, large: Path) -> None:
    address = f"s3://{bucket.name}/run"
    script = f"from whence.storage import upload_folder; upload_folder({str(large)!r}, {address!r})"
    process = subprocess.Popen([sys.executable, "-c", script])
    try:
        wait_until(lambda: len(objects_there(bucket)) >= 1)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    time.sleep(1)  # what was on its way
    objects, original = objects_there(bucket), contents(large)
    assert 1 <= len(objects) < len(original)
    assert "run/manifest.json" not in objects

    second = upload_folder(large, address)
    assert second.sent_files == second.files - len(objects) == len(original) - len(objects)
    assert second.bytes == sum(path.stat().st_size for path in large.rglob("*.*"))
    assert {key: objects_there(bucket)[key] for key in objects} == objects, "an object was written again"
    assert bucket.contents("run/") == original
    assert bucket.client.head_object(Bucket=bucket.name, Key="run/model.safetensors")["ETag"].endswith('-19"')


def test_a_changed_folder_replaces_the_old_one_whole(bucket: Bucket, small: Path) -> None:
    address = f"s3://{bucket.name}/x"
    upload_folder(small, address)
    write(small / "large.bin", 40 * MIB, seed=1)
    (small / "a" / "b.bin").unlink()
    write(small / "new.bin", 10)
    assert upload_folder(small, address).sent_files == 2
    assert bucket.contents("x/") == contents(small)


def test_no_manifest_stands_beside_files_it_does_not_describe(
    bucket: Bucket, small: Path, sent: list[tuple[str, dict[str, Any]]]
) -> None:
    address = f"s3://{bucket.name}/x"
    upload_folder(small, address)
    write(small / "a" / "b.bin", 5000, seed=1)
    sent.clear()
    upload_folder(small, address)
    writes = [(name, params["Key"]) for name, params in sent if name in ("PutObject", "DeleteObject")]
    assert writes == [
        ("DeleteObject", "x/manifest.json"),
        ("PutObject", "x/a/b.bin"),
        ("PutObject", "x/manifest.json"),
    ]


def test_a_server_that_is_gone_for_a_while_is_waited_for(bucket: Bucket, swift: Swift, large: Path) -> None:
    with ThreadPoolExecutor() as threads:
        upload = threads.submit(upload_folder, large, f"s3://{bucket.name}/new")
        wait_until(lambda: len(objects_there(bucket)) >= 1)
        assert not upload.done(), "the upload was over before the server went"
        with swift.away():
            time.sleep(AWAY)
            assert not upload.done(), upload.result()
    assert upload.result().sent_bytes == upload.result().bytes
    assert bucket.contents("new/") == contents(large)


def test_a_file_that_changes_meanwhile_is_refused_and_no_manifest_written(
    bucket: Bucket, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def digest_and_write(path: Path) -> str:
        checksum = hashlib.sha256(path.read_bytes()).hexdigest()
        if path.name == "b.bin":
            path.write_bytes(b"something else")
        return checksum

    monkeypatch.setattr("whence.storage.digest", digest_and_write)
    with pytest.raises(StorageError, match=r"b\.bin changed while it was uploaded"):
        upload_folder(small, f"s3://{bucket.name}/x")
    assert "x/manifest.json" not in objects_there(bucket)


TRANSFERS = {"upload": upload_folder, "check": lambda _, address: check_writable(address)}


@pytest.mark.parametrize("transfer", TRANSFERS.values(), ids=list(TRANSFERS))
@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("AWS_SECRET_ACCESS_KEY", "not-the-secret", "not the secret of AWS_ACCESS_KEY_ID; check both"),
        ("AWS_ACCESS_KEY_ID", "test:nobody", "not the secret of AWS_ACCESS_KEY_ID; check both"),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:1", "check AWS_ENDPOINT_URL"),
    ],
)
def test_wrong_settings_are_told_in_seconds(
    bucket: Bucket,
    small: Path,
    monkeypatch: pytest.MonkeyPatch,
    transfer: Callable[[Path, str], Any],
    variable: str,
    value: str,
    words: str,
) -> None:
    monkeypatch.setenv(variable, value)
    began = time.monotonic()
    with pytest.raises(StorageError, match=words) as caught:
        transfer(small, f"s3://{bucket.name}/x")
    assert time.monotonic() - began < 10
    assert "not-the-secret" not in str(caught.value)
    assert f"s3://{bucket.name}/x" in str(caught.value)


@pytest.mark.parametrize("transfer", TRANSFERS.values(), ids=list(TRANSFERS))
def test_a_missing_bucket_is_named(aws: Swift, small: Path, transfer: Callable[[Path, str], Any]) -> None:
    with pytest.raises(StorageError, match=r"s3://nobody-made-this/x.*no such bucket"):
        transfer(small, "s3://nobody-made-this/x")


def test_looking_whether_a_bucket_can_be_written_leaves_nothing(bucket: Bucket) -> None:
    check_writable(f"s3://{bucket.name}/x")
    assert objects_there(bucket) == {}
    assert not bucket.client.list_multipart_uploads(Bucket=bucket.name).get("Uploads")


def test_the_region_of_aws_region_is_taken(bucket: Bucket, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server takes signatures of its own region only."""
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-north-1")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    assert upload_folder(small, f"s3://{bucket.name}/x").sent_files == 2


def test_the_certificate_authority_of_aws_ca_bundle_is_taken(
    bucket: Bucket, swift: Swift, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=here -addext subjectAltName=IP:127.0.0.1"
    subprocess.run([*command.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    with swift.servers.tls(certificate, key) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        began = time.monotonic()
        with pytest.raises(StorageError, match="set AWS_CA_BUNDLE to the certificate of the authority"):
            upload_folder(small, f"s3://{bucket.name}/x")
        assert time.monotonic() - began < 15
        monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
        upload_folder(small, f"s3://{bucket.name}/x")
    assert bucket.contents("x/") == contents(small)


def test_a_log_says_how_far_it_is_and_how_fast(
    bucket: Bucket, small: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whence.progress.SECONDS", 0.0)  # a line is due at once
    upload_folder(small, f"s3://{bucket.name}/x")
    lines = capsys.readouterr().err.splitlines()
    assert re.search(r"upload: 100%.* 41\.9M/41\.9M \[.*B/s\]", lines[-1])


def test_settings_and_what_they_name_beside_them_are_found_in_a_bucket(
    bucket: Bucket, make_config: Callable[..., Config]
) -> None:
    settings = yaml.safe_load(make_config().to_yaml()) | {"prompts": {"path": "../prompts/mine.json"}}
    settings["dataset"] |= {"name": None, "train_files": ["data.csv"], "eval_files": ["s3://other/data.csv"]}
    address = bucket.put("configs/mine.yaml", yaml.safe_dump(settings).encode())
    config = load_config(address, {"general.max_length": 32})
    assert config.general.max_length == 32
    assert config.prompts.path == f"s3://{bucket.name}/prompts/mine.json"
    assert config.dataset.train_files == [f"s3://{bucket.name}/configs/data.csv"]
    assert config.dataset.eval_files == ["s3://other/data.csv"]
    with pytest.raises(ConfigError, match=rf"s3://{bucket.name}/configs/yours\.yaml: there is no such object"):
        load_config(f"s3://{bucket.name}/configs/yours.yaml")


def command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


def test_prepare_reads_settings_and_prompts_once_for_all_stages(
    bucket: Bucket, tmp_path: Path, make_config: Callable[..., Config]
) -> None:
    overrides = {"tracking.uri": f"sqlite:///{tmp_path}/mlflow.db", "dataset.num_samples": 40}
    settings = yaml.safe_load(make_config(overrides).to_yaml()) | {"prompts": {"path": "prompts.json"}}
    bucket.put("prompts.json", b'[{"prompt": "Who built it?", "reference": "Ada"}]')
    address = bucket.put("mine.yaml", yaml.safe_dump(settings).encode())
    names = ("base-model", "train-data", "eval-data")
    outputs = [argument for name in names for argument in (f"--{name}", str(tmp_path / name))]
    assert command("prepare", "--config", address, *outputs) == 0
    resolved = yaml.safe_load((tmp_path / "base-model" / "lineage" / "config.yaml").read_text())
    assert resolved["prompts"]["items"] == [{"prompt": "Who built it?", "reference": "Ada"}]
    assert resolved["prompts"]["path"] is None
