"""Tasks of a local run as forks of one process that has imported what stages import.

Importing torch, transformers and MLflow takes longer than most stages of a small run take. So it is done once, while
the settings are being checked, and each task is a fork of that process: with its own environment, output and exit
status, as if kfp had started it. kfp decides when a task runs; how its process is started is all that is replaced.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

logger = logging.getLogger(__name__)

PRELOADED = (
    "kfp.dsl.executor_main",
    "whence.kubeflow",
    "mlflow.store.tracking.sqlalchemy_store",
    "whence.training",
    "kronfluence.analyzer",
    "whence.report.report",
    "whence.plots",
)
EXECUTOR = """
    program_path=$(mktemp -d)
    printf "%s" "$0" > "$program_path/ephemeral_component.py"
    _KFP_RUNTIME=true {python} -m kfp.dsl.executor_main
    --component_module_path "$program_path/ephemeral_component.py" "$@"
"""


class Task(NamedTuple):
    """The component's source text, the arguments of kfp's executor, and the environment that both find."""

    source: str
    arguments: Sequence[str]
    environment: Mapping[str, str]


@contextlib.contextmanager
def warm_processes() -> Iterator[None]:
    """Have kfp's SubprocessRunner start tasks from a process that is started now, where forking is safe (Linux)."""
    if sys.platform != "linux":
        yield
        return
    control, theirs = socket.socketpair()
    with control, theirs:
        descriptor = theirs.fileno()
        server = subprocess.Popen(
            [sys.executable, "-u", "-m", __name__, str(descriptor)],
            env=os.environ | {"_KFP_RUNTIME": "true"},
            pass_fds=[descriptor],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        theirs.close()
        try:
            with _replaced_start(control):
                yield
        finally:
            server.terminate()
            server.wait()


@contextlib.contextmanager
def _replaced_start(control: socket.socket) -> Iterator[None]:
    from kfp.local import subprocess_task_handler as handler  # takes a second, in which the server imports, too

    own = handler.run_local_subprocess

    def run_local_subprocess(full_command: list[str], env_vars: dict[str, str] | None = None) -> int:
        task = _parse(full_command, env_vars)
        status = None if task is None else _run(control, task)
        if status is None:
            logger.warning("this task is started by kfp itself, which takes some seconds longer")
            status = int(own(full_command, env_vars))
        return status

    handler.run_local_subprocess = run_local_subprocess
    try:
        yield
    finally:
        handler.run_local_subprocess = own


def _parse(command: Sequence[str], env_vars: Mapping[str, str] | None) -> Task | None:
    """None for other commands than kfp's usual one, and for variables that libraries may have read when imported."""
    usual = ["sh", "-ec", *EXECUTOR.format(python=sys.executable).split()]
    if env_vars or [*command[:2], *" ".join(command[2:3]).split()] != usual:
        return None
    return Task(command[3], command[4:], dict(os.environ))


def _run(control: socket.socket, task: Task) -> int | None:
    """Print what the task prints, line by line; returns its exit status, or None if it could not be started."""
    connection, theirs = socket.socketpair()
    output, write = os.pipe()
    with connection, open(output, encoding="utf-8", errors="replace") as lines:
        try:
            with theirs, open(write, "wb") as end:
                socket.send_fds(control, [b"+"], [theirs.fileno(), end.fileno()])
            connection.sendall(json.dumps(task).encode())
            connection.shutdown(socket.SHUT_WR)
        except OSError:  # the server is dead
            return None
        for line in lines:
            print(line, end="")
        print("\n")  # as kfp does
        try:
            started, _, status = connection.makefile().read().partition(" ")
        except ConnectionResetError:  # nobody has read the request
            return None
        return int(status or -signal.SIGKILL) if started else None


def _serve(control: socket.socket) -> Task:
    """Import, then fork for every request: returns in the fork, which is to execute the task, with its output set up.

    The fork's parent is a fork, too, which waits for it and reports how it has ended. The server itself ends with the
    process that has started it.
    """
    from whence.tracking.server import DEFAULTS

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run and its tasks
    os.environ.update(DEFAULTS | os.environ)
    for name in PRELOADED:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, _reap)
    gc.freeze()
    while True:
        request, descriptors, *_ = socket.recv_fds(control, 1, 2)
        if not request:
            sys.exit()
        if os.fork() == 0:
            break
        for descriptor in descriptors:
            os.close(descriptor)
    control.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with socket.socket(fileno=descriptors[0]) as connection, open(descriptors[1], "wb") as output:
        task = Task(*json.load(connection.makefile()))
        pid = os.fork()
        if pid:
            output.close()
            connection.sendall(b"started ")
            _, status = os.waitpid(pid, 0)
            connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())
            os._exit(0)
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return task


def _reap(*_: object) -> None:
    """So that no ended fork becomes a zombie, and ``time whence run`` counts what tasks have computed."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _execute(task: Task) -> None:
    """What kfp's command does, in this process."""
    from kfp.dsl.executor_main import executor_main

    os.environ.update(task.environment)
    with tempfile.TemporaryDirectory() as folder:
        module = Path(folder, "ephemeral_component.py")
        module.write_text(task.source, encoding="utf-8")
        sys.argv = [sys.argv[0], "--component_module_path", str(module), *task.arguments]
        executor_main()


if __name__ == "__main__":
    _execute(_serve(socket.socket(fileno=int(sys.argv[1]))))
