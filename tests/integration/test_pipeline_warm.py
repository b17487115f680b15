"""Tasks that are forks of a warm process: what is observed of them is what is observed of processes of their own."""

import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from kfp import dsl, local
from kfp.local import subprocess_task_handler

from whence.pipelines.local import warm

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere tasks are started by kfp")


@pytest.fixture(scope="module", autouse=True)
def warm_process() -> Iterator[psutil.Process]:
    """The server, and afterwards no process that was not there before."""
    before = set(psutil.Process().children(recursive=True))
    with warm.warm_processes():
        (server,) = set(psutil.Process().children()) - before
        yield server
        psutil.wait_procs(server.children(recursive=True), timeout=10)  # the parent of the last task is just ending
        assert set(psutil.Process().children(recursive=True)) - before == {server}
    assert set(psutil.Process().children(recursive=True)) == before
    assert subprocess_task_handler.run_local_subprocess.__module__ == subprocess_task_handler.__name__


@dsl.component(base_image="python", install_kfp_package=False)
def task(body: str) -> None:
    exec(body)


def run(tmp_path: Path, body: str) -> None:
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path))
    task(body=body)


@pytest.fixture
def statuses(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The exit statuses of warm tasks, as they end; None for one that kfp had to start."""
    seen: list[Any] = []
    started = warm._run
    monkeypatch.setattr(warm, "_run", lambda *arguments: seen.append(started(*arguments)) or seen[-1])
    return seen


def test_a_task_finds_what_stages_import_and_speaks_line_by_line(
    tmp_path: Path, statuses: list[Any], capfd: pytest.CaptureFixture[str]
) -> None:
    run(
        tmp_path, "import os, sys; print('torch' in sys.modules); os.system('echo below'); sys.stderr.write('above\\n')"
    )
    assert statuses == [0]
    lines = [line.strip() for line in capfd.readouterr().out.splitlines()]
    assert [line for line in lines if line in ("True", "below", "above")] == ["True", "below", "above"]


def test_a_task_has_the_environment_of_its_start_and_leaves_the_next_one_alone(
    tmp_path: Path, statuses: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHENCE_TEST", "set after the warm process was started")
    check = "import os, sys; sys.exit('fault' in os.environ or not os.environ['WHENCE_TEST'].startswith('set after'))"
    run(tmp_path, "import os; os.environ['fault'] = '1'; os.chdir('/')")
    run(tmp_path, check)
    assert statuses == [0, 0]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("raise SystemExit(7)", 7),
        ("raise SystemExit", 0),
        ("import os; os._exit(9)", 9),
        ("raise ValueError('wrong')", 1),
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL),
        ("import os; os.kill(os.getpid(), 15)", -signal.SIGTERM),
        ("raise KeyboardInterrupt", 1),
        ("import atexit, os; atexit.register(os._exit, 3)", 3),
    ],
)
def test_the_exit_status_is_the_tasks_own(tmp_path: Path, statuses: list[Any], body: str, status: int) -> None:
    if status == 0:
        run(tmp_path, body)
    else:
        with pytest.raises(RuntimeError, match=r"finished with status .*FAILURE"):
            run(tmp_path, body)
    assert statuses == [status]


def test_two_tasks_run_at_once_each_with_its_own_output(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Each waits for the other."""
    meet = """
import pathlib, time
pathlib.Path({mine!r}).touch()
while not pathlib.Path({other!r}).exists():
    time.sleep(0.01)
print("met", {mine!r})
"""
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    bodies = [meet.format(mine=a, other=b), meet.format(mine=b, other=a)]

    @dsl.pipeline
    def both() -> None:
        with dsl.ParallelFor(bodies) as body:
            task(body=body)

    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path))
    both()
    said = [line.strip() for line in capfd.readouterr().out.splitlines()]
    assert sorted(line for line in said if line.startswith("met ")) == [f"met {a}", f"met {b}"]


def test_a_command_that_is_not_kfps_usual_one_is_started_by_kfp(statuses: list[Any]) -> None:
    assert subprocess_task_handler.run_local_subprocess(["sh", "-c", "exit 5"], {}) == 5
    assert statuses == []


def test_tasks_run_when_the_warm_process_was_killed(tmp_path: Path, statuses: list[Any]) -> None:
    with warm.warm_processes():  # inside the module's own, which stands for kfp here
        max(psutil.Process().children(), key=psutil.Process.create_time).kill()
        run(tmp_path, "pass")
    assert statuses == [None, 0]
