"""Progress of long loops: lines in a log, a bar in a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

from whence import progress

LOOPS = """
import time
from whence import progress

progress.SECONDS = 0.2
for _ in progress.progress(range(3), desc="short"):
    pass
with progress.progress(total=100, desc="training", unit="step") as bar:
    for _ in range(10):
        time.sleep(0.1)
        bar.update(10)
with progress.progress(desc="upload", unit="B", unit_scale=True) as bar:
    for _ in range(5):
        time.sleep(0.1)
        bar.update(2_000_000)
"""
LIBRARIES = """
import whence.progress
from huggingface_hub.utils import are_progress_bars_disabled
from transformers.utils.logging import is_progress_bar_enabled
print(are_progress_bars_disabled(), is_progress_bar_enabled())
"""


def printed(code: str, **variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if "PROGRESS" not in name} | variables
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    return done.stdout + done.stderr


def test_a_log_gets_lines_with_share_rate_and_time_left() -> None:
    text = printed(LOOPS)
    assert "\r" not in text
    lines = text.splitlines()
    assert any(line.startswith("training:") for line in lines)
    for line in lines:
        assert re.match(r"training: +\d+%\|.*\| \d+/100 \[\d\d:\d\d<\d\d:\d\d, .*step/s\]$|upload: .*MB/s\]$", line), (
            line
        )
    assert not any(line.startswith("short") for line in lines), "it was over before a line was due"
    assert lines[-1].startswith("upload: 10.0MB")


def test_whoever_watches_a_run_here_hears_of_it_each_second() -> None:
    text = printed(LOOPS.replace("SECONDS", "OTHER"), WHENCE_EVENTS="/dev/null")
    assert "training: 100%" in text


def test_a_terminal_gets_a_bar() -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with open(ours, "rb", buffering=0) as screen:
        subprocess.run([sys.executable, "-c", LOOPS], check=True, stderr=theirs)
        os.close(theirs)
        shown = screen.read(100_000).decode()
    assert shown.count("\rtraining: ") > 1
    assert "\rshort: 100%" in shown


def test_libraries_draw_no_bars_in_a_log() -> None:
    assert printed(LIBRARIES).split()[-2:] == ["True", "False"]


def test_no_other_module_draws_bars_of_its_own() -> None:
    library = Path(progress.__file__).parent
    drawing = {file.stem for file in library.rglob("*.py") if "import tqdm" in file.read_text(encoding="utf-8")}
    assert drawing == {"progress"}
