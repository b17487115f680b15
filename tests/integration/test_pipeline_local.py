"""Running a pipeline on this machine: what a user sees of it, when it works and when it does not."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pipeline_helpers
import psutil
import pytest
from pipeline_helpers import STAGES, two_stage_pipeline
from rich.console import Console

from whence.config import Config
from whence.errors import PipelineError
from whence.pipelines.local.board import Board, EventFile, format_seconds
from whence.pipelines.local.run import LocalRun, _name_artifacts, run_locally
from whence.pipelines.local.summary import print_result


def run(folder: Path, mode: str = "pass") -> tuple[LocalRun, str]:
    shown = io.StringIO()
    console = Console(file=shown, width=100)
    return run_locally(two_stage_pipeline(mode), STAGES, folder, console), shown.getvalue()


@pytest.fixture(scope="module")
def passed(tmp_path_factory: pytest.TempPathFactory) -> tuple[LocalRun, str]:
    return run(tmp_path_factory.mktemp("passed"))


def test_every_stage_ends_with_its_state_seconds_and_metrics(passed: tuple[LocalRun, str]) -> None:
    stages = passed[0].board.stages
    assert {name: stage.state for name, stage in stages.items()} == {"first": "finished", "second": "finished"}
    assert stages["first"].seconds == 1.5
    assert stages["first"].summary() == "rows 12, loss 0.1235"


def test_a_terminal_less_run_prints_a_line_per_start_and_end(passed: tuple[LocalRun, str]) -> None:
    lines = [line.split("] ", 1)[1] for line in passed[1].splitlines()]
    assert lines == [
        "first running",
        "first finished in 1.5 s: rows 12, loss 0.1235",
        "second running",
        "second finished in 0.2 s",
    ]


def test_what_kfp_and_the_stages_print_is_in_the_log_and_not_on_the_terminal(passed: tuple[LocalRun, str]) -> None:
    result, shown = passed
    log = result.log.read_text(encoding="utf-8")
    assert f"in second: {result.run_id} <p>hello</p>" in log
    assert "Executing task 'second'" in log
    assert "\x1b[" not in log
    assert "Executing" not in shown


def test_artifacts_lie_where_they_can_be_told_beforehand(passed: tuple[LocalRun, str]) -> None:
    result, _ = passed
    assert (result.artifacts / "first" / "page").read_text() == "<p>hello</p>"
    assert (result.folder.parent / "latest").resolve() == result.folder


def test_the_paths_that_kfp_prints_lead_to_the_artifacts_too(tmp_path: Path) -> None:
    run = LocalRun("id", tmp_path, Board(["report", "mmlu"]))
    (tmp_path / "p-2026" / "report").mkdir(parents=True)
    (tmp_path / "p-2026" / "report" / "report").write_text("page")
    _name_artifacts(run, "p")
    assert (run.artifacts / "report" / "report").read_text() == "page"
    assert (tmp_path / "p-2026" / "report" / "report").read_text() == "page", "kfp's own paths lead there too"


def test_the_environment_is_left_as_it_was(passed: tuple[LocalRun, str]) -> None:
    assert "WHENCE_EVENTS" not in os.environ


def test_a_failing_stage_speaks_for_itself_without_kfp_frames(tmp_path: Path) -> None:
    with pytest.raises(PipelineError) as caught:
        run(tmp_path, "fail")
    message = str(caught.value)
    assert message.startswith("second failed: column 'txt' is not in train.csv\n")
    assert "run.log" in message
    assert "Traceback" not in message


def test_a_stage_that_dies_without_a_word_is_named_with_what_it_printed_last(tmp_path: Path) -> None:
    with pytest.raises(PipelineError) as caught:
        run(tmp_path, "die")
    assert str(caught.value).startswith("second ended without a message")
    assert "in second:" in str(caught.value)


@pytest.mark.parametrize(
    ("number", "terminal"), [(signal.SIGINT, True), (signal.SIGTERM, False)], ids=["ctrl-c", "terminate"]
)
def test_an_interrupted_run_says_so_and_leaves_no_stage_behind(
    tmp_path: Path, number: signal.Signals, terminal: bool
) -> None:
    """Ctrl-C goes to the whole process group, stages included; SIGTERM, as from a service manager, to the run alone."""
    artifacts, shown = tmp_path / "%41 runs?", tmp_path / "shown"
    with open(shown, "wb") as stream:
        run = subprocess.Popen(
            [sys.executable, pipeline_helpers.__file__, str(artifacts)],
            env=os.environ | ({"FORCE_COLOR": "1"} if terminal else {}),
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    log = artifacts / "latest" / "run.log"
    wait_until(lambda: log.exists() and "in second:" in log.read_text())
    children = psutil.Process(run.pid).children(recursive=True)
    assert children
    if number == signal.SIGINT:
        os.killpg(run.pid, number)
    else:
        run.send_signal(number)
    assert run.wait(timeout=300) == 130
    text = shown.read_text()
    assert "Interrupted. The same command goes on from what is finished." in text
    assert not re.search(r"fail|error|Traceback", text, re.IGNORECASE), text
    assert ("running for" in text) == terminal
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


def test_the_record_of_a_run_that_fails_is_ended_and_of_no_other(tmp_path: Path) -> None:
    ended: list[tuple[str, str]] = []
    for mode in ("pass", "die"):
        with contextlib.suppress(PipelineError):
            run_locally(
                two_stage_pipeline(mode),
                STAGES,
                tmp_path,
                Console(file=io.StringIO()),
                settle=lambda *end: ended.append(end),
            )
    [(run_id, status)] = ended
    assert status == "FAILED"
    assert (tmp_path / "latest").resolve().name.endswith(run_id[:8])


def test_what_mlflow_has_refused_is_listed_at_the_end(
    passed: tuple[LocalRun, str], make_config: Callable[..., Config]
) -> None:
    result, board, shown = passed[0], Board(STAGES), io.StringIO()
    refused = ["model model (2,097,152 bytes): 413 [b]"]
    board.apply({"stage": "first", "state": "finished", "time": 0, "not_recorded": refused})
    print_result(Console(file=shown, width=200), replace(result, board=board), make_config())
    assert shown.getvalue().splitlines()[-1] == f"Not in MLflow: first: {refused[0]}"


def test_what_a_stage_says_after_an_interruption_is_no_failure(tmp_path: Path) -> None:
    (events := tmp_path / "events.jsonl").write_text(
        '{"stage": "first", "state": "failed", "message": "BrokenPipeError", "seconds": 1}\n'
    )
    board = Board(STAGES)
    board.apply({"stage": "first", "state": "started", "time": time.time()})
    board.close()
    board.read(EventFile(events))
    assert board.stages["first"].state == "stopped"


def test_runs_of_one_moment_do_not_meet_and_folders_may_have_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whence.pipelines.local.run.time.strftime", lambda form, *moment: "20260101-000000")
    results = [run(tmp_path / "100%25 sure? [x]")[0] for _ in range(2)]
    assert results[0].folder != results[1].folder
    for result in results:
        assert (result.artifacts / "first" / "page").read_text() == "<p>hello</p>"
    assert (tmp_path / "100%25 sure? [x]" / "latest").resolve() == results[1].folder


def test_an_artifact_root_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PipelineError, match=r"--artifact-root .*file"):
        run(tmp_path / "file")


def test_a_progress_bar_becomes_one_line_of_progress() -> None:
    board = Board(STAGES)
    board.apply({"stage": "first", "state": "started", "time": time.time()})
    board.show_line("Fitting factors:  42%|████▏     | 21/50 [00:10<00:14,  2.08batch/s]")
    assert board.stages["first"].progress == "Fitting factors 42% (21/50, 00:14 left, 2.08batch/s)"
    board.show_line("{'loss': 0.3}")
    assert board.stages["first"].progress.startswith("Fitting factors 42%")
    board.show_line(" 10%|█         | 40/400 [00:01<00:09, 39.1it/s]")
    assert board.stages["first"].progress == "10% (40/400, 00:09 left, 39.1it/s)"


def test_stages_that_never_ran_are_skipped_and_one_that_was_cut_off_is_stopped() -> None:
    board = Board(STAGES)
    board.apply({"stage": "first", "state": "started", "time": time.time()})
    board.close()
    assert [stage.state for stage in board.stages.values()] == ["stopped", "skipped"]


def test_an_event_still_being_written_is_read_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    events = EventFile(path)
    assert events.read_new() == []
    path.write_text('{"stage": "first"}\n{"stage": "sec')
    assert events.read_new() == [{"stage": "first"}]
    with open(path, "a") as stream:
        stream.write('ond"}\n')
    assert events.read_new() == [{"stage": "second"}]


def test_elapsed_time_reads_as_minutes_and_seconds() -> None:
    assert [format_seconds(seconds) for seconds in (0, 59.9, 75, 3600)] == ["0:00", "0:59", "1:15", "60:00"]


def wait_until(condition: Callable[[], bool], seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)
