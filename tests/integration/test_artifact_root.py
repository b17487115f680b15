"""``whence run --artifact-root s3://...``: the run in the bucket is the run on disk, and what fails is told early."""

from __future__ import annotations

import hashlib
import shlex
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml
from conftest import Bucket
from pipeline_helpers import two_stage_pipeline
from rich.console import Console
from swift import Swift

from whence.cli import main
from whence.config import Config
from whence.data.prompts import load_prompts
from whence.errors import StorageError
from whence.pipelines.graphs.catalog import PipelineKind
from whence.pipelines.local.artifact_root import ArtifactRoot
from whence.pipelines.local.board import Board
from whence.pipelines.local.run import LocalRun, RunFailed

SETTINGS = {
    "models": {"base": {"name": "builtin:tiny-llama"}},
    "dataset": {"name": "builtin:demo"},
    "prompts": {"path": "prompts.json"},
    "generation": {"max_new_tokens": 4},
}

Whence = Callable[..., tuple[int, str, str]]


@pytest.fixture
def whence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Whence:
    """Run the command in an empty folder; its exit code and what it printed, the errors apart."""
    monkeypatch.chdir(tmp_path)
    # The two tasks there are import next to nothing.
    monkeypatch.setattr("whence.cli.pipelines.warm_processes", nullcontext)

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        return int(ended.value.code or 0), *capsys.readouterr()

    return call


def put_settings(bucket: Bucket) -> str:
    bucket.put("configs/prompts.json", b'[{"prompt": "Who built it?", "reference": "Ada"}]')
    return bucket.put("configs/mine.yaml", yaml.safe_dump(SETTINGS).encode())


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, those behind links to folders once."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_run_is_found_in_the_bucket_as_it_is_on_disk(
    bucket: Bucket, whence: Whence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs: list[Config] = []
    monkeypatch.setattr(PipelineKind, "build", lambda _, config: configs.append(config) or two_stage_pipeline())
    code, out, err = whence("run", "--config", put_settings(bucket), "--artifact-root", f"s3://{bucket.name}/runs/")
    assert code == 0, out + err
    run = (tmp_path / "whence-output" / "latest").resolve()
    address = f"s3://{bucket.name}/runs/{run.name}"
    assert f"Stored at {address}: " in out
    assert bucket.contents(f"runs/{run.name}/") == contents(run)
    assert (run / "artifacts" / "first" / "page").read_text() == "<p>hello</p>"
    assert [prompt.prompt for prompt in load_prompts(configs[0])] == ["Who built it?"]


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """The folder of a run."""
    folder = tmp_path / "20260102-030405-abcdef01"
    folder.mkdir()
    (folder / "run.log").write_text("it went wrong")
    return folder


def test_a_failed_run_is_in_the_bucket_with_its_log(
    bucket: Bucket, whence: Whence, left: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RunFailed("train failed: no memory", LocalRun("id", left, Board([])))

    monkeypatch.setattr("whence.pipelines.local.run.run_locally", fail)
    code, _, printed = whence("run", "--config", put_settings(bucket), "--artifact-root", f"s3://{bucket.name}/runs")
    assert code == 1
    assert "train failed: no memory" in printed
    assert f"What it left is stored at s3://{bucket.name}/runs/{left.name}" in printed
    assert bucket.contents(f"runs/{left.name}/") == contents(left)


def test_a_finished_run_that_cannot_be_stored_can_be_stored_later(bucket: Bucket, left: Path) -> None:
    root = ArtifactRoot.parse(f"s3://{bucket.name}/runs")
    bucket.client.delete_bucket(Bucket=bucket.name)
    with pytest.raises(StorageError, match="no such bucket") as caught:
        root.keep(left, Console())
    assert "finished and whole" in str(caught.value)
    bucket.client.create_bucket(Bucket=bucket.name)
    command = str(caught.value).rpartition("store it with: python ")[2]
    subprocess.run([sys.executable, *shlex.split(command)], check=True)
    assert bucket.contents(f"runs/{left.name}/") == contents(left)


@pytest.mark.parametrize(
    ("secret", "name", "words"),
    [("testing", "nobody-made-this", "no such bucket"), ("wrong", "any", "AWS_SECRET_ACCESS_KEY is not the secret")],
)
def test_a_place_that_cannot_be_written_is_told_before_the_work(
    aws: Swift,
    whence: Whence,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    secret: str,
    name: str,
    words: str,
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    code, _, printed = whence("run", "--artifact-root", f"s3://{name}/runs")
    assert code == 1
    assert words in printed
    assert not (tmp_path / "whence-output").exists()
