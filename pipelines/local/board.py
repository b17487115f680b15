"""What is known of a running pipeline: the state of every stage, from the events the stages write, and how it looks."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

STYLES = {
    "waiting": "dim",
    "running": "bold cyan",
    "finished": "green",
    "reused": "blue",
    "skipped": "dim",
    "failed": "bold red",
    "stopped": "yellow",
}
HEADLINE_METRICS = 4
PLAIN_PROGRESS_SECONDS = 15.0
TQDM = re.compile(
    r"(?P<what>[^|]*?):?\s*(?P<percent>\d+)%\|[^|]*\|\s*(?P<count>\S+)\s*\[[^<\]]*<(?P<left>[^,\]]+),\s*(?P<rate>[^,\]]+)"
)


@dataclass
class StageState:
    """One line of the board. ``state`` is one of the keys of :data:`STYLES`."""

    name: str
    state: str = "waiting"
    began: float | None = None
    seconds: float | None = None
    message: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    not_recorded: list[str] = field(default_factory=list)
    progress: str = ""

    def elapsed(self) -> float | None:
        """Seconds it took, or has taken so far; None before it starts."""
        if self.seconds is None and self.began is not None and self.state == "running":
            return time.time() - self.began
        return self.seconds

    def summary(self) -> str:
        """What there is to say in one line: progress while it runs, the message of a failure, else the metrics."""
        if self.state == "running":
            return self.progress
        if self.message:
            return self.message.splitlines()[0]
        shown = list(self.metrics.items())[:HEADLINE_METRICS]
        return ", ".join(f"{name} {format_number(value)}" for name, value in shown)


class Board:
    """The stages of one pipeline run, in the order of the pipeline.

    Closed when the run has ended or was interrupted: what is said after that changes nothing.
    """

    def __init__(self, stages: Sequence[str]) -> None:
        self.stages = {name: StageState(name) for name in stages}
        self.began = time.time()
        self.closed = False
        self.on_change: Callable[[StageState], None] = lambda stage: None

    def read(self, events: EventFile) -> None:
        """Bring the stages up to date with the new events of the stage runner."""
        for event in events.read_new():
            if not self.closed:
                self.on_change(self.apply(event))

    def apply(self, event: dict[str, Any]) -> StageState:
        """Bring one stage up to date with one event."""
        stage = self.stages.setdefault(event["stage"], StageState(event["stage"]))
        stage.state = "running" if event["state"] == "started" else event["state"]
        if stage.state == "running":
            stage.began, stage.progress = event["time"], ""
        stage.seconds = event.get("seconds")
        stage.message = event.get("message") or ""
        stage.metrics = event.get("metrics") or {}
        stage.not_recorded = event.get("not_recorded") or []
        return stage

    def show_line(self, line: str) -> None:
        """Take a line that the running stage printed; a progress bar becomes its progress."""
        stage = self.first("running")  # a local run works on one at a time
        match = TQDM.match(line)
        if stage is not None and match:
            what = f"{match['what'].strip()} " if match["what"].strip() else ""
            stage.progress = (
                f"{what}{match['percent']}% ({match['count']}, {match['left']} left, {match['rate'].strip()})"
            )
            self.on_change(stage)

    def first(self, state: str) -> StageState | None:
        """The first stage in this state, if any."""
        return next((stage for stage in self.stages.values() if stage.state == state), None)

    def close(self) -> None:
        """The pipeline has ended: what waits will not run, and what still runs was stopped."""
        self.closed = True
        for stage in self.stages.values():
            stage.state = {"waiting": "skipped", "running": "stopped"}.get(stage.state, stage.state)

    def table(self) -> Table:
        """All stages: state, seconds and summary."""
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for column in ("stage", "state", "seconds", ""):
            table.add_column(column, justify="right" if column == "seconds" else "left", no_wrap=column != "")
        for stage in self.stages.values():
            seconds = stage.elapsed()
            shown = "" if seconds is None else f"{seconds:.1f}"
            table.add_row(stage.name, Text(stage.state, STYLES.get(stage.state, "")), shown, escape(stage.summary()))
        return table

    def __rich__(self) -> Group:
        return Group(Text(f"running for {format_seconds(time.time() - self.began)}", style="dim"), self.table())


def show(board: Board, console: Console, live: bool) -> AbstractContextManager[object]:
    """The board as it changes: a table in a terminal if ``live``, else lines."""
    if live and console.is_terminal:
        return Live(board, console=console, redirect_stdout=False, redirect_stderr=False, transient=True)
    board.on_change = PlainView(board, console)
    return nullcontext()


class PlainView:
    """For logs and pipes: a line when a stage starts or ends, and now and then its progress."""

    def __init__(self, board: Board, console: Console) -> None:
        self._board, self._console = board, console
        self._next_progress = 0.0

    def __call__(self, stage: StageState) -> None:
        now = time.time()
        if stage.state == "running" and stage.progress:
            if now < self._next_progress:
                return
            text = f"{stage.name}: {stage.progress}"
        else:
            seconds = "" if stage.seconds is None else f" in {stage.seconds:.1f} s"
            summary = f": {stage.summary()}" if stage.summary() else ""
            text = f"{stage.name} {stage.state}{seconds}{summary}"
        self._next_progress = now + PLAIN_PROGRESS_SECONDS
        elapsed = format_seconds(now - self._board.began)
        self._console.print(f"[{elapsed:>5}] {text}", markup=False, highlight=False, soft_wrap=True)


class EventFile:
    """The events of one run: JSON lines that the stages append to."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read_new(self) -> list[dict[str, Any]]:
        """The events since the last call; a line still being written is left for the next one."""
        if not self._path.exists():
            return []
        with open(self._path, "rb") as stream:
            stream.seek(self._offset)
            complete, newline, _ = stream.read().rpartition(b"\n")
        self._offset += len(complete) + len(newline)
        return [json.loads(line) for line in complete.splitlines()]


def format_seconds(seconds: float) -> str:
    """``75`` as ``1:15``."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"


def format_number(value: float) -> str:
    """Whole numbers whole, others with four significant digits."""
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:.4g}"
