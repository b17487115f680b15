"""Functions in processes of their own, started from a server that has imported everything already."""

from __future__ import annotations

import gc
import multiprocessing
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from typing import Any

import torch
from tqdm import tqdm

# A process forked from a server that holds the imports starts in milliseconds, where a new interpreter takes seconds.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(
    [
        "whence.influence.scores",
        "whence.tracking.registry",
        "kronfluence.analyzer",
        "mlflow",
        "transformers.models.llama.modeling_llama",
    ]
)


class Job:
    """A function running in a process of its own; it is given a connection as its first argument."""

    def __init__(self, function: Callable[..., None], *arguments: Any) -> None:
        self.connection, theirs = _processes.Pipe()
        self.process: ForkServerProcess = _processes.Process(target=_run, args=(function, theirs, arguments))
        self.process.start()
        theirs.close()  # so that the end of the process is the end of the connection

    def receive(self) -> Any:
        """What the function sends next.

        Raises:
            EOFError: the process ended without.
        """
        return self.connection.recv()

    def kill(self) -> bool:
        """``kill -9``; whether it came before the function was done."""
        self.process.kill()
        return self.join() != 0

    def join(self) -> int:
        self.process.join()
        self.connection.close()
        code = self.process.exitcode
        assert code is not None
        return code


def _run(function: Callable[..., None], connection: Connection, arguments: tuple[Any, ...]) -> None:
    gc.freeze()  # kronfluence collects garbage after every pass, and would search all that was imported every time
    tqdm.set_lock(threading.RLock())  # its own takes a semaphore of the system, which a killed process leaves there
    torch.set_num_threads(1)
    function(connection, *arguments)
