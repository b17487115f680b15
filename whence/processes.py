"""Processes on this machine that share the work of a task, each with a device of its own where there are several."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from typing import Any

from whence.environment import environment
from whence.errors import ProcessError
from whence.threads import available_cpus

VISIBLE = "CUDA_VISIBLE_DEVICES"
KILLED = "a process that shares the work was killed, perhaps for want of memory"
HINT = "what is finished is kept; lower general.processes or the batch size, and run the same again"


def inherited(processes: int) -> dict[str, str]:
    """Variables that so many processes inherit: a share of the cores each, and silence of what is loaded."""
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, available_cpus() // processes)))
    return {"OMP_NUM_THREADS": threads, "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "TORCH_CPP_LOG_LEVEL": "ERROR"}  # fmt: skip


@contextmanager
def pool(devices: Sequence[int | None], of: int) -> Iterator[ProcessPoolExecutor]:
    """Processes, one for each of ``devices``, that draw no bars; they are ended at once where the work fails.

    Args:
        devices: numbers of CUDA devices among those visible here; None for a process that keeps what it sees.
        of: processes at work on this machine, by which its cores are divided.

    Raises:
        ProcessError: one of them was killed.
    """
    context = get_context("spawn")
    free: SimpleQueue[int | None] = context.SimpleQueue()
    for device in devices:
        free.put(device)
    with environment(inherited(of) | {"TQDM_DISABLE": "1"}):
        executor = ProcessPoolExecutor(len(devices), context, _take_device, (free,))
        try:
            yield executor
        except BaseException as error:
            for process in list((executor._processes or {}).values()):  # what runs is not cancelled otherwise
                process.terminate()
            executor.shutdown(cancel_futures=True)
            if isinstance(error, BrokenProcessPool):
                raise ProcessError(KILLED, hint=HINT) from None
            raise
        executor.shutdown()


def _take_device(free: SimpleQueue[int | None]) -> None:
    """Before anything asks CUDA what there is, which is asked once."""
    device = free.get()
    if device is not None:
        seen = os.environ.get(VISIBLE)
        os.environ[VISIBLE] = seen.split(",")[device] if seen else str(device)


class Team:
    """This process and others beside it, which do shares of the same work: this one has the first share and device.

    What the others do they leave in files. This one shows the progress of its share, which is as large as any.
    """

    def __init__(
        self, processes: int = 1, executor: ProcessPoolExecutor | None = None, load: Callable[[], Any] | None = None
    ) -> None:
        self._processes, self._executor, self._load = processes, executor, load

    def share(
        self, parts: Sequence[int], here: Callable[[Sequence[int]], None], there: Callable[..., None], *arguments: Any
    ) -> None:
        """Deal ``parts`` out: ``here`` does the first share, ``there(loaded, *arguments, share)`` the others.

        Raises:
            ProcessError: one of the processes was killed; what any of them raises is raised here.
        """
        shares = [parts[number :: self._processes] for number in range(self._processes)]
        others: list[Future[None]] = []
        if self._executor is not None and self._load is not None:
            others = [
                self._executor.submit(_work, there, self._load, *arguments, share) for share in shares[1:] if share
            ]
        here(shares[0])
        for other in others:
            other.result()


ALONE = Team()


@contextmanager
def team(processes: int, devices: bool, load: Callable[[], Any]) -> Iterator[Team]:
    """A team of so many.

    Args:
        devices: whether each has a CUDA device of its own, this process the first.
        load: called once in each of the other processes for what they work with.
    """
    if processes == 1:
        yield ALONE
        return
    others = [number if devices else None for number in range(1, processes)]
    with pool(others, processes) as executor:
        yield Team(processes, executor, load)


_loaded: list[Any] = []  # by this process, where it is one of a team


def _work(function: Callable[..., None], load: Callable[[], Any], *arguments: Any) -> None:
    if not _loaded:
        _loaded.append(load())
    function(_loaded[0], *arguments)
