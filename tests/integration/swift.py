"""A real S3 server for tests: OpenStack Swift with its s3api middleware, on loopback, in an environment of its own.

Signatures are checked, data is on disk, multipart works; the usual S3 mocks take any secret and so prove nothing about
credentials. Swift is installed from the package index into ``.cache/`` once.
"""

from __future__ import annotations

import getpass
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from packages import programs_of

VERSION = "2.38.3"
START_SECONDS = 120
ACCESS_KEY, SECRET_KEY, REGION = "test:tester", "testing", "us-east-1"
PIPELINE = (
    "catch_errors healthcheck proxy-logging cache listing_formats bulk s3api tempauth slo dlo versioned_writes symlink "
    "proxy-logging proxy-server"
)
STORAGE = ("account", "container", "object")
# swift-ring-builder does the same in nine processes.
RINGS = """
import sys
from swift.common.ring import RingBuilder
for name, port in (argument.split("=") for argument in sys.argv[1:]):
    builder = RingBuilder(6, 1, 1)
    builder.add_dev({"region": 1, "zone": 1, "ip": "127.0.0.1", "port": int(port), "device": "d1", "weight": 1})
    builder.rebalance()
    builder.get_ring().save(f"{name}.ring.gz")
"""


class SwiftUnavailable(Exception):
    """Swift does not start here."""


class Servers:
    """Swift's four processes."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs, self._folder = programs, folder
        self._log = (folder / "swift.log").open("a")
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.ports = dict(zip(("proxy", *STORAGE), _free_ports(4), strict=True))

    def start(self, name: str, program: str | None = None) -> None:
        command = [str(self._programs / "python"), str(self._programs / f"swift-{program or name}-server")]
        self._processes[name] = subprocess.Popen(
            [*command, str(self._folder / f"{name}.conf")], stdout=self._log, stderr=subprocess.STDOUT
        )

    @contextmanager
    def tls(self, certificate: Path, key: Path) -> Iterator[str]:
        """A second proxy before the same data, which shows ``certificate``; its address."""
        (port,) = _free_ports(1)
        config = (self._folder / "proxy.conf").read_text().replace(f"bind_port = {self.ports['proxy']}\n", "")
        lines = f"[DEFAULT]\nbind_port = {port}\ncert_file = {certificate}\nkey_file = {key}\n"
        (self._folder / "tls.conf").write_text(config.replace("[DEFAULT]\n", lines))
        self.start("tls", program="proxy")
        try:
            _wait({"proxy": self.ports["proxy"], "tls": port}, [self._processes["tls"]], self._folder / "swift.log")
            yield f"https://127.0.0.1:{port}"
        finally:
            self.kill("tls")

    def kill(self, name: str) -> None:
        self._processes[name].kill()
        self._processes[name].wait(timeout=10)

    def stop(self) -> None:
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            process.wait(timeout=10)
        self._log.close()

    def wait(self) -> None:
        """Wait until all of them answer."""
        _wait(self.ports, list(self._processes.values()), self._folder / "swift.log")


@dataclass(frozen=True)
class Swift:
    """A running server and the key that may use it."""

    endpoint: str
    servers: Servers
    access_key: str = ACCESS_KEY
    secret_key: str = SECRET_KEY

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which boto3 (and everything built on it) finds the server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @contextmanager
    def away(self) -> Iterator[None]:
        """The server is gone for as long as the block lasts: its proxy ends in the middle of what it is doing."""
        self.servers.kill("proxy")
        try:
            yield
        finally:
            self.servers.start("proxy")
            self.servers.wait()


@contextmanager
def running(folder: Path) -> Iterator[Swift]:
    """Swift with its data under ``folder`` for as long as the block lasts.

    Raises:
        PackagesUnavailable: it cannot be installed.
        SwiftUnavailable: it does not answer within two minutes.
    """
    programs = programs_of(f"swift-{VERSION}", f"swift=={VERSION}")
    servers = Servers(programs, folder)
    rings = [f"{name}={servers.ports[name]}" for name in STORAGE]
    subprocess.run([programs / "python", "-c", RINGS, *rings], cwd=folder, check=True, timeout=START_SECONDS)
    (folder / "swift.conf").write_text("[swift-hash]\nswift_hash_path_suffix = whence-tests\n")
    try:
        for name, port in reversed(servers.ports.items()):  # the proxy last
            config = _proxy(folder, port) if name == "proxy" else _storage(folder, name, port)
            (folder / f"{name}.conf").write_text(config)
            servers.start(name)
        servers.wait()
        yield Swift(f"http://127.0.0.1:{servers.ports['proxy']}", servers)
    finally:
        servers.stop()


def _common(folder: Path, port: int) -> str:
    return (
        f"[DEFAULT]\nbind_ip = 127.0.0.1\nbind_port = {port}\nworkers = 0\nswift_dir = {folder}\n"
        f"devices = {folder / 'devices'}\nmount_check = false\nuser = {getpass.getuser()}\nlog_name = swift\n"
    )


def _storage(folder: Path, name: str, port: int) -> str:
    (folder / "devices" / "d1").mkdir(parents=True, exist_ok=True)
    app = f"{name}-server"
    return f"{_common(folder, port)}[pipeline:main]\npipeline = {app}\n[app:{app}]\nuse = egg:swift#{name}\n"


def _proxy(folder: Path, port: int) -> str:
    options = {
        "s3api": f"s3_acl = false\nlocation = {REGION}\nallow_multipart_uploads = true\n",
        "tempauth": f"user_{ACCESS_KEY.replace(':', '_')} = {SECRET_KEY} .admin\n",
        "cache": "memcache_servers = 127.0.0.1:1\n",
    }
    filters = {"cache": "memcache", "proxy-logging": "proxy_logging"}
    sections = [
        f"[filter:{name}]\nuse = egg:swift#{filters.get(name, name)}\n{options.get(name, '')}"
        for name in dict.fromkeys(PIPELINE.split()[:-1])
    ]
    app = "[app:proxy-server]\nuse = egg:swift#proxy\naccount_autocreate = true\nallow_account_management = true\n"
    return f"{_common(folder, port)}[pipeline:main]\npipeline = {PIPELINE}\n{app}{''.join(sections)}"


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _wait(ports: dict[str, int], processes: list[subprocess.Popen[bytes]], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if any(process.poll() is not None for process in processes):
            break
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{ports['proxy']}/healthcheck", timeout=2):
                for port in ports.values():
                    socket.create_connection(("127.0.0.1", port), timeout=2).close()
                return
        except OSError:
            time.sleep(0.1)
    raise SwiftUnavailable(f"Swift did not start: {log.read_text()[-800:]}")
