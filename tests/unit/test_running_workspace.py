"""Finished work is found again, damaged work is not, and a killed stage finds its scratch files."""

import subprocess
import sys
from pathlib import Path

from whence.running.workspace import Workspace, stage_key


def make(work_dir: Path, target: Path, key: str = "k" * 64) -> Workspace:
    return Workspace.open(str(work_dir), "train", key, {"model": target / "model", "page": target / "page.html"})


def fill(workspace: Workspace) -> None:
    workspace.scratch.mkdir(exist_ok=True)
    workspace.outputs["model"].mkdir(exist_ok=True)
    (workspace.outputs["model"] / "weights").write_bytes(b"123")
    workspace.outputs["page"].write_text("<p>hello</p>")


def test_finished_work_is_found_by_the_same_key_and_published(tmp_path: Path) -> None:
    first = make(tmp_path / "work", tmp_path / "run1")
    assert first.finished() is None
    fill(first)
    first.finish({"loss": 1.5}, {"tasks": [0, 1]})

    second = make(tmp_path / "work", tmp_path / "run2")
    assert second.finished() == ({"loss": 1.5}, {"tasks": [0, 1]})
    second.publish()
    assert (tmp_path / "run2/model/weights").read_bytes() == b"123"
    assert (tmp_path / "run2/page.html").read_text() == "<p>hello</p>"
    assert make(tmp_path / "work", tmp_path / "run3", key="x" * 64).finished() is None


def test_altered_or_truncated_work_is_not_used(tmp_path: Path) -> None:
    workspace = make(tmp_path / "work", tmp_path / "run")
    fill(workspace)
    workspace.finish({}, {})
    (workspace.outputs["model"] / "weights").write_bytes(b"12")
    assert workspace.finished() is None
    fill(workspace)
    assert workspace.finished() is None, "a record once found wrong is gone for good"


def test_scratch_survives_a_crash_and_goes_when_the_work_is_finished(tmp_path: Path) -> None:
    crashed = make(tmp_path / "work", tmp_path / "run")
    crashed.scratch.mkdir()
    (crashed.scratch / "checkpoint-10").write_text("half way")

    again = make(tmp_path / "work", tmp_path / "run")
    assert (again.scratch / "checkpoint-10").read_text() == "half way"
    fill(again)
    again.finish({}, {})
    assert not again.scratch.exists()


def test_without_a_work_folder_outputs_are_written_in_place(tmp_path: Path) -> None:
    workspace = Workspace.in_place("train", {"model": tmp_path / "out" / "model"})
    assert workspace.outputs["model"] == tmp_path / "out" / "model"
    assert workspace.outputs["model"].parent.is_dir()


def test_the_key_depends_on_settings_and_on_the_content_of_inputs_not_on_their_place(tmp_path: Path) -> None:
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "data").write_text("same")
    key = stage_key("train", {"seed": 0}, {"data": tmp_path / "a"})
    assert stage_key("train", {"seed": 0}, {"data": tmp_path / "b"}) == key
    assert stage_key("train", {"seed": 1}, {"data": tmp_path / "a"}) != key
    for name in ("config.yaml", "training.json"):  # settings count by themselves, and seconds do not
        (tmp_path / "b" / "lineage").mkdir(exist_ok=True)
        (tmp_path / "b" / "lineage" / name).write_text("other")
    assert stage_key("train", {"seed": 0}, {"data": tmp_path / "b"}) == key
    (tmp_path / "b" / "data").write_text("other")
    assert stage_key("train", {"seed": 0}, {"data": tmp_path / "b"}) != key


HOLD = """
import sys
from pathlib import Path
from whence.running.workspace import Workspace

with Workspace.open(sys.argv[1], "train", "k" * 64, {"model": Path(sys.argv[1], "model")}).locked():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_same_work_is_done_by_one_process_at_a_time_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    first = subprocess.Popen(command, **pipes)
    assert first.stdout.readline() == "held\n"
    second = subprocess.Popen(command, **pipes)
    assert "another run is doing the same work" in second.stderr.readline()
    assert second.poll() is None
    first.kill()
    first.wait()
    assert second.stdout.readline() == "held\n"
    assert second.communicate("")[1] == ""
