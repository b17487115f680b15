"""Addresses are read strictly, shown without secrets, and judged within seconds; names become what MLflow takes."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import make_url

from whence.config import Config
from whence.errors import TrackingError
from whence.tracking import check_tracking
from whence.tracking.address import Address, Unreachable
from whence.tracking.server import flat, name_of, quotable, text_of


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")  # so that what the code sets is undone after the test
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port nobody else can take and nobody listens on."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


def test_a_relative_sqlite_file_counts_from_the_current_folder(tmp_path: Path) -> None:
    assert Address.parse("sqlite:///mlflow.db").database == tmp_path / "mlflow.db"
    assert Address.parse("sqlite:///sub/a.db").uri == f"sqlite:///{tmp_path}/sub/a.db"
    assert Address.parse("sqlite:////data/mlflow.db").uri == "sqlite:////data/mlflow.db"


@pytest.mark.parametrize("name", ["a%20b", "what?", "c#1", "My Runs"])
def test_a_folder_s_name_stays_whole_in_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Also for MLflow, whose sqlite file must be the one that is looked at here."""
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    address = Address.parse("sqlite:///mlflow.db")
    assert address.database == tmp_path / name / "mlflow.db"
    assert Address.parse(address.uri) == address
    assert make_url(address.uri).database == str(address.database)


def test_a_server_address_loses_its_credentials_to_the_environment() -> None:
    address = Address.parse("https://ann:p%40ss@mlflow.example.org:5000/base/")
    assert address.uri == "https://mlflow.example.org:5000/base"
    assert os.environ["MLFLOW_TRACKING_USERNAME"] == "ann"
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "p@ss"


@pytest.mark.parametrize(
    "uri", ["mlflow.db", "ftp://ann:secret@host", "sqlite://", "sqlite:///", "http://", "databricks"]
)
def test_other_addresses_are_refused_with_the_way_out_and_without_the_password(uri: str) -> None:
    with pytest.raises(TrackingError, match=r"tracking\.uri: .*use http\(s\)://.*or sqlite:///") as refusal:
        Address.parse(uri)
    assert "secret" not in str(refusal.value)


def test_a_server_that_is_down_is_named_without_the_password(
    make_config: Callable[..., Config], closed_port: int
) -> None:
    config = make_config({"tracking.uri": f"http://ann:secret@127.0.0.1:{closed_port}"})
    with pytest.raises(Unreachable, match=rf"no MLflow server answers at http://127\.0\.0\.1:{closed_port}") as error:
        check_tracking(config)
    assert "secret" not in str(error.value)
    assert "sqlite:///mlflow.db" in str(error.value), "the way out"
    assert error.value.__cause__ is None


def test_checking_a_usable_sqlite_address_changes_nothing(make_config: Callable[..., Config], tmp_path: Path) -> None:
    check_tracking(make_config())
    assert not list(tmp_path.iterdir())


def test_sqlite_files_that_cannot_work_are_named(make_config: Callable[..., Config], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("this is no database " * 100)
    for uri, reason in (
        ("sqlite:///missing/mlflow.db", "the folder .*missing of mlflow.db does not exist"),
        ("sqlite:///notes.txt", "notes.txt is not a usable sqlite file"),
    ):
        with pytest.raises(TrackingError, match=reason):
            check_tracking(make_config({"tracking.uri": uri}))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_named(make_config: Callable[..., Config], tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o555)
    with pytest.raises(TrackingError, match="locked cannot be written"):
        check_tracking(make_config({"tracking.uri": "sqlite:///locked/mlflow.db"}))


def test_importing_the_package_does_not_import_mlflow() -> None:
    code = "import sys, whence.tracking; assert 'mlflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_settings_become_flat_parameters_with_dotted_names() -> None:
    values = {"training": {"learning_rate": 2e-5, "bf16": None}, "layers": [1, 2], "name": "é", "on": True}
    assert flat(values, "train.") == {
        "train.training.learning_rate": "2e-05",
        "train.training.bf16": "null",
        "train.layers": "[1, 2]",
        "train.name": "é",
        "train.on": "true",
    }


def test_names_and_texts_become_what_mlflow_and_every_database_take() -> None:
    assert name_of("dropped: too short (<3)") == "dropped_ too short __3_"
    assert len(name_of("x" * 1000)) == 250
    assert text_of("a\x00b\ud800c") == "a\ufffdb?c"
    assert quotable("run' or 1=1") == "run_ or 1_1"
    assert quotable("") is None
    assert quotable(None) is None
