"""The tracking address: without its credentials, and whether an MLflow server answers there."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import requests

from whence.errors import TrackingError

PROBE_TIMEOUT = (3.0, 5.0)  # seconds to connect, to answer


class Unreachable(TrackingError):
    """No server answers at the address at the moment."""


@dataclass(frozen=True)
class Address:
    """A tracking address without its credentials; ``database`` is set for sqlite only (absolute)."""

    uri: str
    database: Path | None = None

    @classmethod
    def parse(cls, uri: str) -> Address:
        """Read ``tracking.uri``; relative sqlite paths count from the current folder.

        A user name and password in the address are moved to the environment variables MLflow reads them from, so that
        they appear in no message, file or page.

        Raises:
            TrackingError: neither http(s) nor sqlite.
        """
        parts = urlsplit(uri)
        if parts.scheme == "sqlite" and not parts.netloc and len(parts.path) > 1:
            database = Path(unquote(parts.path[1:])).absolute()
            # Only what would end the path: MLflow makes the folders of the address as it is written.
            path = "".join(quote(sign) if sign in "%?#" else sign for sign in str(database))
            return cls(f"sqlite:///{path}", database)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise TrackingError(
                f"tracking.uri: {urlunsplit(_bare(parts))!r} is not a tracking address",
                hint="use http(s)://host:port of an MLflow server, or sqlite:///file.db",
            )
        if parts.username:
            os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username)
            os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password or "")
        return cls(urlunsplit(_bare(parts)).rstrip("/"))

    def probe(self) -> None:
        """Check within seconds whether the address can be used at all.

        Raises:
            Unreachable: no server answers.
            TrackingError: the sqlite file cannot be written.
        """
        if self.database is not None:
            _probe_database(self.database)
            return
        try:
            requests.get(f"{self.uri}/health", timeout=PROBE_TIMEOUT)  # any answer will do
        except requests.exceptions.SSLError:
            return  # a server is there; MLflow's own settings decide about its certificate
        except requests.RequestException as error:
            raise Unreachable(
                f"tracking.uri: no MLflow server answers at {self.uri} ({type(error).__name__}); start it, correct the "
                "address, or set tracking.uri to sqlite:///mlflow.db to record into a local file"
            ) from None  # the cause may quote the address with its password


def _bare(parts: tuple[str, str, str, str, str]) -> tuple[str, str, str, str, str]:
    scheme, netloc, path, _, _ = parts
    return scheme, netloc.rpartition("@")[2], path, "", ""


def _probe_database(file: Path) -> None:
    hint = "correct tracking.uri or the permissions"
    folder = file.parent
    if not folder.is_dir():
        raise TrackingError(
            f"tracking.uri: the folder {folder} of {file.name} does not exist", hint=f"create it, or {hint}"
        )
    writable = [path for path in (file, folder) if path.exists()]
    if refused := [path for path in writable if not os.access(path, os.W_OK)]:
        raise TrackingError(f"tracking.uri: {refused[0]} cannot be written", hint=hint)
    if not file.exists():
        return
    try:
        with closing(sqlite3.connect(file)) as connection:
            connection.execute("PRAGMA schema_version")
    except sqlite3.DatabaseError as error:
        raise TrackingError(f"tracking.uri: {file} is not a usable sqlite file ({error})", hint=hint) from error
