"""What uploads and downloads share: part sizes, requests in parallel that outlast an outage, progress and the sum."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any, TypeVar

from botocore.exceptions import ClientError, ConnectionError, HTTPClientError, IncompleteReadError
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential
from tenacity.nap import sleep_using_event
from tenacity.stop import stop_when_event_set

from whence.config import is_address
from whence.errors import StorageError
from whence.s3 import CONNECTIONS, split

MIB = 2**20
PART = 16 * MIB
MAX_PARTS = 10_000  # S3's limits
LARGEST = 5 * 2**40
FILES_AT_ONCE = 4
LINE_SECONDS = 15.0  # between lines of progress in a log
PATIENCE = 300.0  # seconds for which a server may be away in the middle of a transfer
_BUSY = {"RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "TooManyRequests"}

Item = TypeVar("Item")
Result = TypeVar("Result")


def split_folder(address: str) -> tuple[str, str]:
    """Bucket, and prefix with its slash (a whole bucket: none).

    Raises:
        StorageError: it is no address of a folder.
    """
    bucket, key = split(address)
    if not is_address(address) or not bucket:
        raise StorageError(f"{address!r} is not the address of a folder; use s3://bucket/prefix")
    prefix = key.rstrip("/")
    return bucket, f"{prefix}/" if prefix else ""


def part_size(size: int) -> int:
    """Bytes of a part of a file of ``size`` bytes: whole MiB, as small as 10,000 parts allow, and not below 16 MiB.

    Raises:
        StorageError: the file is larger than S3 takes (5 TiB).
    """
    if size > LARGEST:
        raise StorageError(f"a file of {size} bytes is larger than the 5 TiB that S3 takes; split it")
    return max(PART, -(-size // (MAX_PARTS * MIB)) * MIB)


def parts_of(size: int) -> dict[int, tuple[int, int]]:
    """Start and length in bytes of each part of a file, by number (from 1); an empty file has none."""
    step = part_size(size)
    starts = range(0, size, step)
    return {number: (start, min(step, size - start)) for number, start in enumerate(starts, start=1)}


@dataclass(frozen=True)
class Transferred:
    """What a transfer came to: all files and bytes of the folder, those that were moved now, and the seconds it took.

    The rest was there already.
    """

    files: int
    bytes: int
    moved_files: int
    moved_bytes: int
    seconds: float

    def __str__(self) -> str:
        rate = _rate(self.moved_bytes, self.seconds)
        there = self.files - self.moved_files
        before = f"; {there} more were there already" if there else ""
        return f"{self.moved_files} files, {decimal(self.moved_bytes)} in {self.seconds:.1f} s ({rate}){before}"


class Transfers:
    """Works on several files at once and sends their requests over a fixed number of connections.

    Requests that fail because the server is away or busy are repeated for :data:`PATIENCE` seconds; the first other
    failure, or Ctrl-C, ends all of them. Progress and rate are shown on stderr: a bar on a terminal, else a line now
    and then.
    """

    def __init__(self, title: str) -> None:
        self._console = console = Console(file=sys.stderr)
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        self._progress = Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)
        self._title, self._bar = title, self._progress.add_task(title, total=None)
        self._files = ThreadPoolExecutor(FILES_AT_ONCE, thread_name_prefix="file")
        self._requests = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="request")
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._next_line = self._began + LINE_SECONDS
        self._moved_files = self._moved_bytes = 0

    def __enter__(self) -> Transfers:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for pool in (self._files, self._requests):
            pool.shutdown(cancel_futures=True)
        self._progress.stop()

    def each(self, work: Callable[[Item], None], items: Iterable[Item]) -> None:
        """Do ``work`` for every item, several at once; the first failure is raised and ends the others."""
        try:
            for done in as_completed([self._files.submit(work, item) for item in items]):
                done.result()
        except BaseException:
            self._ended.set()
            self._files.shutdown(wait=False, cancel_futures=True)
            raise

    def request(self, call: Callable[..., Result], *arguments: Any, **named: Any) -> Future[Result]:
        """Send a request as soon as a connection is free."""
        return self._requests.submit(self._persistently, call, *arguments, **named)

    def ask(self, call: Callable[..., Result], *arguments: Any, **named: Any) -> Result:
        """Send a request and wait for its answer."""
        return self.request(call, *arguments, **named).result()

    def expect(self, size: int) -> None:
        """Say how many bytes there are to move, as far as is known."""
        self._progress.update(self._bar, total=size)

    def moved(self, size: int, files: int = 0) -> None:
        """Count what has been moved."""
        with self._lock:
            self._moved_bytes += size
            self._moved_files += files
            line = self._line()
        self._progress.advance(self._bar, size)
        if line:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def found(self, size: int) -> None:
        """Take what need not be moved out of the expectation, so that the rate is that of the network."""
        with self._lock:
            total = self._progress.tasks[0].total or 0
            self._progress.update(self._bar, total=max(total - size, 0))

    def sum(self, files: int, size: int) -> Transferred:
        seconds = time.monotonic() - self._began
        return Transferred(files, size, self._moved_files, self._moved_bytes, seconds)

    def _line(self) -> str | None:
        """What to say of the progress where there is no bar, when it is time to."""
        now = time.monotonic()
        if self._console.is_terminal or now < self._next_line:
            return None
        self._next_line = now + LINE_SECONDS
        total = decimal(int(self._progress.tasks[0].total or 0))
        return f"{self._title}: {decimal(self._moved_bytes)} of {total}, {_rate(self._moved_bytes, now - self._began)}"

    def _persistently(self, call: Callable[..., Result], *arguments: Any, **named: Any) -> Result:
        if self._ended.is_set():
            raise StorageError("the transfer has been ended")
        patient = Retrying(
            retry=retry_if_exception(_passes),
            stop=stop_after_delay(PATIENCE) | stop_when_event_set(self._ended),
            wait=wait_random_exponential(multiplier=0.5, max=10),
            sleep=sleep_using_event(self._ended),
            reraise=True,
        )
        return patient(call, *arguments, **named)


def _rate(size: int, seconds: float) -> str:
    return f"{decimal(round(size / max(seconds, 1e-9)))}/s"


def _passes(error: BaseException) -> bool:
    """Whether an error is of the kind that goes away by itself."""
    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return status >= 500 or status == 429 or error.response.get("Error", {}).get("Code") in _BUSY
    return isinstance(error, HTTPClientError | ConnectionError | IncompleteReadError)
