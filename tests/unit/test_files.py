"""Files and links that several processes write at once."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

POINT = """
import os, sys, time
from pathlib import Path
from whence.files import point
while time.time() < float(sys.argv[2]):
    time.sleep(0.001)
for number in range(200):
    point(Path(sys.argv[1]), f"run-{os.getpid()}-{number}")
"""


def test_runs_that_point_the_same_link_in_one_instant_do_not_disturb_each_other(tmp_path: Path) -> None:
    link, together = tmp_path / "latest", str(time.time() + 1)
    processes = [subprocess.Popen([sys.executable, "-c", POINT, str(link), together]) for _ in range(3)]
    assert [process.wait(timeout=60) for process in processes] == [0, 0, 0]
    assert list(tmp_path.iterdir()) == [link]
    assert link.is_symlink()
