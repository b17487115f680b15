"""Folders go to a real S3 server and come back the same, through crashes, outages and wrong settings."""

from __future__ import annotations

import hashlib
import json
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
from whence.storage import check_writable, download_folder, upload_folder

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
def gigabyte(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gigabyte")
    write(folder / "model.safetensors", 700 * MIB + 1)
    write(folder / "factors" / "lambda matrix & ünicode.safetensors", 130 * MIB)
    for number in range(12):
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


def test_what_is_there_is_neither_sent_nor_fetched_again(
    bucket: Bucket, small: Path, tmp_path: Path, sent: list[tuple[str, dict[str, Any]]]
) -> None:
    address = f"s3://{bucket.name}/x"
    upload_folder(small, address)
    download_folder(address, tmp_path / "back")
    sent.clear()
    assert upload_folder(small, address).moved_files == 0
    assert download_folder(address, tmp_path / "back").moved_files == 0
    assert [params["Key"] for name, params in sent if name in ("PutObject", "GetObject")] == ["x/manifest.json"] * 2
    assert "UploadPart" not in {name for name, _ in sent}
    (tmp_path / "back" / "a" / "b.bin").write_bytes(b"\0" * 5000)
    assert download_folder(address, tmp_path / "back").moved_files == 1
    assert contents(tmp_path / "back") == contents(small)


def parts_there(bucket: Bucket, key: str) -> dict[int, tuple[str, Any]]:
    """ETag and time of each part of an unfinished upload."""
    uploads = bucket.client.list_multipart_uploads(Bucket=bucket.name).get("Uploads", [])
    found = {}
    for upload in uploads:
        if upload["Key"] == key:
            listed = bucket.client.list_parts(Bucket=bucket.name, Key=key, UploadId=upload["UploadId"])
            found |= {part["PartNumber"]: (part["ETag"], part["LastModified"]) for part in listed.get("Parts", [])}
    return found


def objects_there(bucket: Bucket) -> dict[str, tuple[str, Any]]:
    listed = bucket.client.list_objects_v2(Bucket=bucket.name).get("Contents", [])
    return {item["Key"]: (item["ETag"], item["LastModified"]) for item in listed}


def wait_until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def test_a_killed_upload_of_a_gigabyte_goes_on_with_what_is_missing_and_comes_back_as_it_was(
    bucket: Bucket, gigabyte: Path, tmp_path: Path, sent: list[tuple[str, dict[str, Any]]]
) -> None:
    address = f"s3://{bucket.name}/run"
    script = f"from whence.storage import upload_folder; upload_folder({str(gigabyte)!r}, {address!r})"
    process = subprocess.Popen([sys.executable, "-c", script])
    try:
        wait_until(lambda: len(parts_there(bucket, "run/model.safetensors")) >= 5 and len(objects_there(bucket)) >= 2)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    time.sleep(1)  # what was on its way
    parts, objects = parts_there(bucket, "run/model.safetensors"), objects_there(bucket)
    assert 5 <= len(parts) < 44
    assert "run/manifest.json" not in objects
    with pytest.raises(StorageError, match=r"has no manifest\.json"):
        download_folder(address, tmp_path / "early")

    resumed = upload_folder(gigabyte, address)
    sent_parts = {p["PartNumber"] for name, p in sent if name == "UploadPart" and p["Key"] == "run/model.safetensors"}
    assert sent_parts == set(range(1, 45)) - set(parts)
    assert not {params["Key"] for name, params in sent if name == "PutObject"} & set(objects)
    assert resumed.moved_files == resumed.files - len(objects)
    assert resumed.bytes - resumed.moved_bytes >= len(parts) * 16 * MIB
    assert {key: objects_there(bucket)[key] for key in objects} == objects, "an object was written again"

    back, original = download_folder(address, tmp_path / "back"), contents(gigabyte)
    assert contents(tmp_path / "back") == original
    assert back.moved_bytes == resumed.bytes == sum(path.stat().st_size for path in gigabyte.rglob("*.*"))
    assert back.moved_files == resumed.files == len(original) == 16
    listed = json.loads(bucket.client.get_object(Bucket=bucket.name, Key="run/manifest.json")["Body"].read())
    assert {name: entry["sha256"] for name, entry in listed["files"].items()} == original
    assert bucket.client.head_object(Bucket=bucket.name, Key="run/model.safetensors")["ETag"].endswith('-44"')


def test_parts_of_another_state_of_the_file_are_not_used(bucket: Bucket, small: Path, tmp_path: Path) -> None:
    begun = bucket.client.create_multipart_upload(Bucket=bucket.name, Key="x/large.bin", Metadata={"sha256": "0" * 64})
    first = (small / "large.bin").read_bytes()[: 16 * MIB]
    call = {"Bucket": bucket.name, "Key": "x/large.bin", "UploadId": begun["UploadId"]}
    bucket.client.upload_part(**call, PartNumber=1, Body=first)  # alike so far, but begun for another content
    upload_folder(small, f"s3://{bucket.name}/x")
    stored = bucket.client.head_object(Bucket=bucket.name, Key="x/large.bin")["Metadata"]["sha256"]
    assert stored == contents(small)["large.bin"]

    begun = bucket.client.create_multipart_upload(Bucket=bucket.name, Key="y/large.bin")
    call = {"Bucket": bucket.name, "Key": "y/large.bin", "UploadId": begun["UploadId"]}
    bucket.client.upload_part(**call, PartNumber=1, Body=b"\0" * 16 * MIB)
    upload_folder(small, f"s3://{bucket.name}/y")
    download_folder(f"s3://{bucket.name}/y", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(small)


def test_a_changed_folder_replaces_the_old_one_whole(bucket: Bucket, small: Path, tmp_path: Path) -> None:
    address = f"s3://{bucket.name}/x"
    upload_folder(small, address)
    write(small / "large.bin", 40 * MIB, seed=1)
    (small / "a" / "b.bin").unlink()
    write(small / "new.bin", 10)
    assert upload_folder(small, address).moved_files == 2
    download_folder(address, tmp_path / "back")
    assert contents(tmp_path / "back") == contents(small)


def test_no_manifest_stands_beside_files_it_does_not_describe(
    bucket: Bucket, small: Path, tmp_path: Path, sent: list[tuple[str, dict[str, Any]]]
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


def test_a_server_that_is_gone_for_a_while_is_waited_for(
    bucket: Bucket, swift: Swift, gigabyte: Path, tmp_path: Path
) -> None:
    """Both ways at once, so that both are in the middle of it when the server goes."""
    stored, new, back = f"s3://{bucket.name}/stored", f"s3://{bucket.name}/new", tmp_path / "back"
    assert upload_folder(gigabyte, stored).moved_files == 16
    with ThreadPoolExecutor() as threads:
        up, down = threads.submit(upload_folder, gigabyte, new), threads.submit(download_folder, stored, back)
        wait_until(lambda: any(key.startswith("new/") for key in objects_there(bucket)) and any(back.rglob("*.bin")))
        assert not up.done(), "the upload was over before the server went"
        assert not down.done(), "the download was over before the server went"
        with swift.away():
            time.sleep(AWAY)
            assert not up.done(), up.result()
            assert not down.done(), down.result()
    assert up.result().moved_bytes == down.result().moved_bytes == up.result().bytes
    assert contents(back) == contents(gigabyte)
    assert download_folder(new, back).moved_files == 0, "what went up is not what came down"


@pytest.mark.parametrize("change", ["content", "longer", "shorter", "gone"])
@pytest.mark.parametrize("name", ["large.bin", "a/b.bin"])
def test_an_altered_object_is_refused_and_leaves_nothing(
    bucket: Bucket, small: Path, tmp_path: Path, change: str, name: str
) -> None:
    upload_folder(small, f"s3://{bucket.name}/x")
    content = bytearray((small / name).read_bytes())
    content[len(content) // 2] ^= 1
    altered = {"content": content, "longer": content + b"1", "shorter": content[:-1]}
    if change == "gone":
        bucket.client.delete_object(Bucket=bucket.name, Key=f"x/{name}")
    else:
        bucket.put(f"x/{name}", bytes(altered[change]))
    with pytest.raises(StorageError, match=rf"s3://{bucket.name}/x/{name} is not what was uploaded"):
        download_folder(f"s3://{bucket.name}/x", tmp_path / "back")
    assert not {name, f".{Path(name).name}.part"} & {path.name for path in (tmp_path / "back").rglob("*")}


def test_a_manifest_that_leads_out_of_the_folder_is_refused(bucket: Bucket, tmp_path: Path) -> None:
    entry = {"size": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
    bucket.put("x/manifest.json", json.dumps({"version": 1, "files": {"../evil": entry}}).encode())
    bucket.put("evil", b"x")
    with pytest.raises(StorageError, match=r"'\.\./evil' is not the path of a file in a folder"):
        download_folder(f"s3://{bucket.name}/x", tmp_path / "back")
    assert not (tmp_path / "evil").exists()


TRANSFERS = {
    "upload": upload_folder,
    "download": lambda folder, address: download_folder(address, folder),
    "check": lambda _, address: check_writable(address),
}


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
    assert upload_folder(small, f"s3://{bucket.name}/x").moved_files == 2


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
        download_folder(f"s3://{bucket.name}/x", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(small)


def test_a_log_says_how_far_it_is_and_how_fast(
    bucket: Bucket, small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("whence.storage.transfer.LINE_SECONDS", 0.0)
    upload_folder(small, f"s3://{bucket.name}/x")
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"upload: 41\.9 MB of 41\.9 MB, [0-9.]+ .?B/s", lines[-1])
    assert len(lines) >= 4


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
    names = ("resolved-config", "base-model", "train-data", "eval-data")
    outputs = [argument for name in names for argument in (f"--{name}", str(tmp_path / name))]
    assert command("prepare", "--config", address, *outputs) == 0
    resolved = yaml.safe_load((tmp_path / "resolved-config").read_text())
    assert resolved["prompts"]["items"] == [{"prompt": "Who built it?", "reference": "Ada"}]
    assert resolved["prompts"]["path"] is None
