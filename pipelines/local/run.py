"""Run the real pipeline on this machine: kfp.local in the current environment, every stage in its own process.

What kfp and the stages print goes to a log file; whoever watches sees which stage runs, how far it is, and at the end
what came out of it, or the failing stage's own message.
"""

from __future__ import annotations

import contextlib
import io
import re
import signal
import sys
import threading
import time
import uuid
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TextIO

import psutil
from kfp import local
from kfp.dsl.graph_component import GraphComponent
from rich.console import Console

from whence.environment import environment
from whence.errors import PipelineError
from whence.files import point
from whence.pipelines.graphs.placement import RUN_ID_VARIABLE
from whence.pipelines.local.board import Board, EventFile, show
from whence.progress import EVENTS_VARIABLE

POLL_SECONDS = 0.2
LAST_LINES = 12
STOP_SECONDS = 10.0
ANSI = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class LocalRun:
    """A pipeline run on this machine: its id, and the folder with ``artifacts/``, ``run.log`` and ``events.jsonl``."""

    run_id: str
    folder: Path
    board: Board

    @property
    def log(self) -> Path:
        return self.folder / "run.log"

    @property
    def events(self) -> Path:
        return self.folder / "events.jsonl"

    @property
    def artifacts(self) -> Path:
        """A folder per stage (with dashes), and in it one file or folder per output."""
        return self.folder / "artifacts"


class RunFailed(PipelineError):
    """A stage failed; ``run`` has what it has left."""

    def __init__(self, message: str, run: LocalRun) -> None:
        super().__init__(message)
        self.run = run


def run_locally(
    pipeline: GraphComponent,
    stages: Sequence[str],
    artifact_root: Path,
    console: Console,
    verbose: bool = False,
    settle: Callable[[str, str], None] = lambda run_id, status: None,
) -> LocalRun:
    """Run ``pipeline`` with the defaults of its form and show its progress on ``console``; from the main thread.

    Args:
        stages: names of the stages as their events have them, in the order they are shown.
        artifact_root: receives one folder per run, and the link ``latest`` to the last one.
        verbose: print what the stages print in place of the live table.
        settle: is told the run's id and FAILED or KILLED when it ends so.

    Raises:
        RunFailed: a stage failed; the message is the stage's own and says where the log is.
        PipelineError: ``artifact_root`` cannot be written.
        KeyboardInterrupt: the run was interrupted or asked to terminate; its processes are ended first.
    """
    run = _new_run(artifact_root, Board(stages))
    inherited = {RUN_ID_VARIABLE: run.run_id, EVENTS_VARIABLE: str(run.events), "PYTHONUNBUFFERED": "1"}
    with open(run.log, "w", encoding="utf-8", buffering=1) as file:
        log = RunLog(file, run.board.show_line, echo=sys.stdout if verbose else None)
        try:
            with environment(inherited), _interruptible(run.board), _watched(run, console, live=not verbose):
                local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(run.folder))
                with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log), warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # images of ours have no "python" in their name
                    pipeline()
        except KeyboardInterrupt:
            settle(run.run_id, "KILLED")
            raise
        except Exception as error:
            settle(run.run_id, "FAILED")
            raise RunFailed(_explain(run, log, error), run) from error
        finally:
            _name_artifacts(run, str(pipeline.name))
    return run


class RunLog(io.TextIOBase):
    """What stdout is while kfp runs: a file, its last lines, and a call for every line as it comes."""

    def __init__(self, file: TextIO, on_line: Callable[[str], None], echo: TextIO | None = None) -> None:
        self._file, self._on_line, self._echo = file, on_line, echo
        self.last_lines: deque[str] = deque(maxlen=LAST_LINES)

    def write(self, text: str) -> int:
        plain = ANSI.sub("", text)
        self._file.write(plain)
        if self._echo is not None:
            self._echo.write(text)
        for line in filter(None, map(str.strip, plain.splitlines())):
            self.last_lines.append(line)
            self._on_line(line)
        return len(text)

    def flush(self) -> None:
        self._file.flush()


@contextlib.contextmanager
def _watched(run: LocalRun, console: Console, live: bool) -> Iterator[None]:
    """Keep the board up to date with the events while the pipeline runs, and show it.

    After an interruption no process is left, nor one that kfp starts meanwhile for what still waited.
    """
    events, ended = EventFile(run.events), threading.Event()

    def watch() -> None:
        while not ended.wait(POLL_SECONDS):
            if run.board.closed:
                _signal(psutil.Process().children(recursive=True), signal.SIGTERM)
            run.board.read(events)

    watcher = threading.Thread(target=watch, name="events", daemon=True)
    with show(run.board, console, live):
        watcher.start()
        try:
            yield
        finally:
            if run.board.closed:
                _end_children()
            ended.set()
            watcher.join()
            run.board.read(events)
            run.board.close()


@contextlib.contextmanager
def _interruptible(board: Board) -> Iterator[None]:
    """Ctrl-C and SIGTERM close the board before anything else: what stages say that are cut off is no failure.

    Once is enough: while the stages end, further signals change nothing.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        if not board.closed:
            board.close()
            raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_children() -> None:
    children = psutil.Process().children(recursive=True)
    _signal(children, signal.SIGTERM)
    _, alive = psutil.wait_procs(children, timeout=STOP_SECONDS)
    _signal(alive, signal.SIGKILL)


def _signal(processes: Sequence[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def _new_run(artifact_root: Path, board: Board) -> LocalRun:
    run_id = str(uuid.uuid4())
    folder = (artifact_root / f"{time.strftime('%Y%m%d-%H%M%S')}-{run_id[:8]}").resolve()
    try:
        folder.mkdir(parents=True)
        point(artifact_root / "latest", folder.name)
    except OSError as error:
        raise PipelineError(f"--artifact-root {artifact_root}: cannot write there: {error.strerror}") from error
    return LocalRun(run_id, folder, board)


def _name_artifacts(run: LocalRun, pipeline: str) -> None:
    """kfp puts the artifacts into a folder named by pipeline and time; give it a name that can be told beforehand.

    Its own name becomes a link, for the paths in kfp's log.
    """
    for folder in list(run.folder.glob(f"{pipeline}-*")):
        folder.rename(run.artifacts)
        point(folder, run.artifacts.name)


def _explain(run: LocalRun, log: RunLog, error: Exception) -> str:
    """The failing stage's own message; what it printed last when it had no time for one."""
    failed = run.board.first("failed")
    if failed is not None:
        return f"{failed.name} failed: {failed.message}\nThe whole log: {run.log}"
    stopped = run.board.first("stopped")
    what = f"{stopped.name} ended without a message, killed perhaps" if stopped else ANSI.sub("", str(error))
    last = "\n".join(f"  {line}" for line in log.last_lines)
    return f"{what}\nThe last lines of the log:\n{last}\nThe whole log: {run.log}"
