"""Fine-tuning by several processes, the ranks: torch's elastic launcher starts them, each on a device of its own."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from threading import Thread, current_thread, main_thread
from typing import Any, cast

import torch
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from whence.config import Config
from whence.data.dataset import ExampleSet
from whence.environment import environment
from whence.errors import ProcessError, WhenceError
from whence.models.loading import count_processes, have_devices, load_trainable
from whence.processes import HINT, inherited
from whence.training import OnLog, TrainingResult, train

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
TAKEN = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)  # by the launcher
LOG = -1
SECONDS_TO_SEE = 1.0  # for the launcher, that watches its processes ten times a second

Report = tuple[int, Any]
"""A rank, and what it raised; or ``LOG``, and a step with its metrics."""


@dataclass(frozen=True)
class FineTuning:
    """A fine-tuning by what it is made of, so that every rank loads the same.

    Attributes:
        base_model, train_data, eval_data: artifacts.
        output, checkpoints: as for :func:`whence.training.train`.
    """

    base_model: Path
    train_data: Path
    eval_data: Path
    config: Config
    output: Path
    checkpoints: Path

    def run(self, on_log: OnLog) -> TrainingResult:
        """Train here, or in as many processes as ``general.processes`` says.

        Raises:
            ProcessError: a rank was killed.
            ResourceError: there are fewer devices than processes. What a rank raises itself is raised here; errors are
                those of :func:`whence.training.train`.
        """
        ranks = count_processes(self.config.general)
        have_devices(self.config.general)
        if ranks == 1:
            return self.as_rank(on_log)
        return self.launch(_here(ranks), on_log)[0]

    def launch(self, launch: LaunchConfig, on_log: OnLog) -> dict[int, TrainingResult]:
        """Train in the processes that ``launch`` describes; the results of those on this node, by rank.

        Errors are those of :meth:`run`.
        """
        return _launched(self, launch, on_log)

    def as_rank(self, on_log: OnLog) -> TrainingResult:
        """Train in this process, as the rank that the launcher's variables make it; alone without them."""
        base = load_trainable(self.base_model, self.config)
        examples, held_out = (
            base.tokenize(ExampleSet.read(folder).frame) for folder in (self.train_data, self.eval_data)
        )
        return train(base, examples, held_out, output=self.output, checkpoints=self.checkpoints, on_log=on_log)


def _here(ranks: int) -> LaunchConfig:
    """So many processes on this machine alone."""
    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        run_id="whence",
        rdzv_backend="c10d",
        rdzv_endpoint=f"{LOOPBACK}:0",
        local_addr=LOOPBACK,
        max_restarts=0,
        start_method="spawn",
        virtual_local_rank=True,  # a rank sees its device alone
    )


def _launched(job: FineTuning, launch: LaunchConfig, on_log: OnLog) -> dict[int, TrainingResult]:
    raised: dict[int, BaseException] = {}
    with environment(inherited(launch.nproc_per_node)), _quiet_launcher(), _reports(launch, on_log, raised) as reports:
        try:
            results, failed = elastic_launch(launch, _rank)(job, reports), None
        except ChildFailedError as error:
            results, failed = {}, error.get_first_failure()
    if failed is not None:
        rank, failure = failed
        if rank in raised and failure.exitcode >= 0:
            raise raised[rank]
        died = signal.Signals(-failure.exitcode).name if failure.exitcode < 0 else f"code {failure.exitcode}"
        of = launch.nproc_per_node * launch.max_nodes
        raise ProcessError(f"rank {rank} of {of} ended with {died}, perhaps for want of memory", hint=HINT)
    if LOG in raised:
        raise raised[LOG]
    return dict(results)


@contextmanager
def _reports(launch: LaunchConfig, on_log: OnLog, raised: dict[int, BaseException]) -> Iterator[Sequence[Connection]]:
    """A pipe for each rank here, since one that is killed while it writes would hold up all who share it.

    Args:
        raised: is given what ranks raise, and under ``LOG`` what ``on_log`` does.
    """
    readers, writers = zip(*(Pipe(duplex=False) for _ in range(launch.nproc_per_node)), strict=True)

    def listen() -> None:
        waiting = list(readers)
        while waiting:
            for ready in wait(waiting):
                reader = cast(Connection, ready)
                try:
                    report: Report = reader.recv()
                except (EOFError, OSError):  # all who could write are gone, perhaps in the middle of a report
                    waiting.remove(reader)
                    continue
                rank, content = report
                try:
                    if rank == LOG:
                        on_log(*content)
                    else:
                        raised[rank] = content
                except Exception as error:
                    raised.setdefault(LOG, error)

    listener = Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield writers
    finally:
        for writer in writers:
            writer.close()
        listener.join()


def _rank(job: FineTuning, reports: Sequence[Connection]) -> TrainingResult:
    rank = int(os.environ["RANK"])
    own = reports[rank % len(reports)]
    try:
        return job.as_rank(lambda step, metrics: own.send((LOG, (step, metrics))))
    except Exception as error:
        if not isinstance(error, WhenceError):
            time.sleep(SECONDS_TO_SEE)  # it may be for a rank that was killed, which the launcher must see first
        own.send((rank, error))
        raise
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


@contextmanager
def _quiet_launcher() -> Iterator[None]:
    """The launcher logs tables of what failed, which the error says; and it takes signals, which are given back."""
    elastic, handlers = logging.getLogger("torch.distributed.elastic"), {}
    level, stopped = elastic.level, None
    if current_thread() is main_thread():
        handlers = {number: signal.getsignal(number) for number in TAKEN}
    elastic.setLevel(logging.CRITICAL)
    try:
        yield
    except SignalException as error:
        stopped = error.sigval
    finally:
        elastic.setLevel(level)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if stopped is not None:
        signal.raise_signal(stopped)
        raise SystemExit(128 + stopped)
