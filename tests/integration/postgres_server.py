"""A real PostgreSQL on a loopback port, with passwords required, run as a user that is not root."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

USER, PASSWORD = "mlflow", "s3cr%t/with @ signs"


class PostgresUnavailable(Exception):
    """There are no PostgreSQL programs on this machine."""


@dataclass(frozen=True)
class Postgres:
    """A running server; it has one user, who may create databases."""

    port: int
    programs: Path

    def environment(self, database: str) -> dict[str, str]:
        """libpq's variables for a database."""
        return {
            "PGHOST": "127.0.0.1",
            "PGPORT": str(self.port),
            "PGUSER": USER,
            "PGPASSWORD": PASSWORD,
            "PGDATABASE": database,
        }

    def create(self, database: str) -> None:
        self.query("postgres", f"CREATE DATABASE {database}")

    def query(self, database: str, text: str) -> str:
        """The answer of ``psql``, without headings."""
        command = [str(self.programs / "psql"), "--no-psqlrc", "--tuples-only", "--no-align", "-c", text]
        environment = os.environ | self.environment(database)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=True)
        return done.stdout.strip()


def programs() -> Path:
    """The folder of the newest ``initdb`` on this machine.

    Raises:
        PostgresUnavailable: there is none.
    """
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    on_path = shutil.which("initdb")
    if found:
        return found[-1].parent
    if on_path:
        return Path(on_path).resolve().parent
    raise PostgresUnavailable("no initdb; on Debian: apt-get install postgresql")


@contextmanager
def running() -> Iterator[Postgres]:
    """A server for as long as the block lasts; its data is gone afterwards.

    Raises:
        PostgresUnavailable: there are no programs for it.
    """
    folder, home = programs(), Path(tempfile.mkdtemp(prefix="whence-postgres-"))
    owner: Mapping[str, str] = {}
    if os.getuid() == 0:  # which PostgreSQL refuses to be run by
        owner = {"user": "postgres", "group": "postgres"}
        shutil.chown(home, "postgres", "postgres")
    data, log = home / "data", home / "log"

    def do(*command: str) -> None:
        arguments = [str(folder / command[0]), *command[1:]]
        options = {"cwd": home, "capture_output": True, "text": True, "timeout": 60, **owner}
        if owner:
            options["extra_groups"] = []
        done = subprocess.run(arguments, check=False, **options)  # type: ignore[call-overload]
        if done.returncode:
            raise RuntimeError(f"{command[0]}: {done.stderr}\n{log.read_text() if log.exists() else ''}")

    try:
        secret = home / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        do("initdb", f"--pgdata={data}", f"--username={USER}", "--auth=scram-sha-256", f"--pwfile={secret}")
        port = _free_port()
        options = f"-p {port} -k {home} -c listen_addresses=127.0.0.1 -c fsync=off"
        do("pg_ctl", f"--pgdata={data}", "--wait", f"--log={log}", f"--options={options}", "start")
        try:
            yield Postgres(port, folder)
        finally:
            do("pg_ctl", f"--pgdata={data}", "--wait", "--mode=immediate", "stop")
    finally:
        shutil.rmtree(home)


def _free_port() -> int:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        port: int = holder.getsockname()[1]
        return port
