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
from typing import NoReturn, TextIO

import psutil
from kfp import local
from kfp.dsl.graph_component import GraphComponent
from rich.console import Console
from rich.live import Live

from whence.environment import environment
from whence.errors import PipelineError
from whence.files import point
from whence.pipelines.graphs.placement import RUN_ID_VARIABLE
from whence.pipelines.local.board import Board, EventFile, StageState, format_seconds

EVENTS_VARIABLE = "WHENCE_EVENTS"
POLL_SECONDS = 0.2
PLAIN_PROGRESS_SECONDS = 15.0
LAST_LINES = 12
STOP_SECONDS = 10.0
ANSI = re.compile(r"\x1b\[[0-9;]*m")


class RunFailed(PipelineError):
    """A stage failed; ``folder`` is what the run has left."""

    def __init__(self, message: str, folder: Path) -> None:
        super().__init__(message)
        self.folder = folder


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


def run_locally(
    pipeline: GraphComponent, stages: Sequence[str], artifact_root: Path, console: Console, verbose: bool = False
) -> LocalRun:
    """Run ``pipeline`` with the defaults of its form and show its progress on ``console``.

    Args:
        stages: names of the stages as their events have them, in the order they are shown.
        artifact_root: receives one folder per run, and the link ``latest`` to the last one.
        verbose: print what the stages print in place of the live table.

    Raises:
        RunFailed: a stage failed; the message is the stage's own and says where the log is.
        PipelineError: ``artifact_root`` cannot be written.
        KeyboardInterrupt: the run was interrupted or asked to terminate; its processes are ended first.
    """
    run = _new_run(artifact_root, Board(stages))
    with open(run.log, "w", encoding="utf-8", buffering=1) as file:
        log = RunLog(file, run.board.show_line, echo=sys.stdout if verbose else None)
        with environment(_inherited(run)), _terminate_like_interrupt(), _watched(run, console, verbose):
            local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(run.folder))
            try:
                with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log), warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # images of ours have no "python" in their name
                    pipeline()
            except KeyboardInterrupt:
                _end_children()
                raise
            except Exception as error:
                failure: Exception | None = error
            else:
                failure = None
    _name_artifacts(run, pipeline.name)
    if failure is not None:
        raise RunFailed(_explain(run, log, failure), run.folder) from failure
    return run


class RunLog(io.TextIOBase):
    """Stands in for stdout while kfp runs: a file, the last lines, and whoever wants every line as it comes."""

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


class _PlainView:
    """For logs and pipes: a line when a stage starts or ends, and now and then its progress."""

    def __init__(self, board: Board, console: Console) -> None:
        self._board, self._console = board, console
        self._next_progress = 0.0

    def changed(self, stage: StageState) -> None:
        seconds = "" if stage.seconds is None else f" in {stage.seconds:.1f} s"
        summary = f": {stage.summary()}" if stage.summary() else ""
        self._print(f"{stage.name} {stage.state}{seconds}{summary}")
        self._next_progress = time.time() + PLAIN_PROGRESS_SECONDS

    def tick(self) -> None:
        stage = self._board.running()
        if stage is not None and stage.progress and time.time() >= self._next_progress:
            self._print(f"{stage.name}: {stage.progress}")
            self._next_progress = time.time() + PLAIN_PROGRESS_SECONDS

    def _print(self, text: str) -> None:
        elapsed = format_seconds(time.time() - self._board.began)
        self._console.print(f"[{elapsed:>5}] {text}", markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def _watched(run: LocalRun, console: Console, verbose: bool) -> Iterator[None]:
    """Keep the board up to date with the events while the pipeline runs, and show it."""
    live = console.is_terminal and not verbose
    view = None if live else _PlainView(run.board, console)
    events, ended = EventFile(run.events), threading.Event()

    def poll() -> None:
        for event in events.read_new():
            stage = run.board.apply(event)
            if view is not None:
                view.changed(stage)
        if view is not None:
            view.tick()

    def watch() -> None:
        while not ended.wait(POLL_SECONDS):
            poll()

    watcher = threading.Thread(target=watch, name="events", daemon=True)
    screen = (
        Live(run.board, console=console, redirect_stdout=False, redirect_stderr=False, transient=True)
        if live
        else contextlib.nullcontext()
    )
    with screen:
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()
            poll()
            run.board.close()


def _new_run(artifact_root: Path, board: Board) -> LocalRun:
    run_id = str(uuid.uuid4())
    folder = (artifact_root / f"{time.strftime('%Y%m%d-%H%M%S')}-{run_id[:8]}").resolve()
    try:
        folder.mkdir(parents=True)
        point(artifact_root / "latest", folder.name)
    except OSError as error:
        raise PipelineError(f"--artifact-root {artifact_root}: cannot write there: {error.strerror}") from error
    return LocalRun(run_id, folder, board)


def _inherited(run: LocalRun) -> dict[str, str]:
    """What the stages' processes inherit."""
    return {RUN_ID_VARIABLE: run.run_id, EVENTS_VARIABLE: str(run.events), "PYTHONUNBUFFERED": "1"}


@contextlib.contextmanager
def _terminate_like_interrupt() -> Iterator[None]:
    """Treat SIGTERM like Ctrl-C, so that no stage outlives its run."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end_children() -> None:
    children = psutil.Process().children(recursive=True)
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.terminate()
    _, alive = psutil.wait_procs(children, timeout=STOP_SECONDS)
    for child in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


def _name_artifacts(run: LocalRun, pipeline: str) -> None:
    """kfp puts the artifacts into a folder named by pipeline and time; give it a name that can be told beforehand.

    Its own name becomes a link, for the paths in kfp's log. So does the number that kfp gives to the second task of a
    stage: of two tasks in two branches only one has run.
    """
    for folder in list(run.folder.glob(f"{pipeline}-*")):
        folder.rename(run.artifacts)
        point(folder, run.artifacts.name)
    for stage in run.board.stages:
        plain = run.artifacts / stage.replace("_", "-")
        task = plain.with_name(f"{plain.name}-2")
        if task.exists() and not plain.exists():
            task.rename(plain)
            point(task, plain.name)


def _explain(run: LocalRun, log: RunLog, error: Exception) -> str:
    """The failing stage's own message; what it printed last when it had no time for one."""
    failed = run.board.failed()
    if failed is not None:
        return f"{failed.name} failed: {failed.message}\nThe whole log: {run.log}"
    stopped = next((stage for stage in run.board.stages.values() if stage.state == "stopped"), None)
    what = f"{stopped.name} ended without a message, killed perhaps" if stopped else ANSI.sub("", str(error))
    last = "\n".join(f"  {line}" for line in log.last_lines)
    return f"{what}\nThe last lines of the log:\n{last}\nThe whole log: {run.log}"
