"""Processors and threads: as many as the container may use, and no more than a model's size pays for.

That idle threads sleep is settled in :mod:`whence`, before torch is loaded.
"""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

CGROUP = Path("/sys/fs/cgroup")
QUOTA_FILES = (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"))  # of cgroup v2 and v1
UNLIMITED = ("max", "-1")
PARAMETERS_PER_THREAD = 4_000_000


def available_cpus() -> int:
    """Processors that this process may use: those of its affinity mask, fewer where its container has less CPU time.

    ``os.cpu_count()`` counts the node's: in a pod with 4 of 64 cores it would start 64 processes. A fraction of a
    processor is left out, because the kernel stops a container that has used up its time, all of its threads at once.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.floor(min(allowed, _cpu_limit())))


def use_threads(model: nn.Module) -> None:
    """Compute on as many threads as pay for a model of this size; ``OMP_NUM_THREADS`` wins where it is set.

    A step of a tiny model consists of hundreds of operations that take microseconds each. Threads wait for one another
    after every one of them, and beside another busy process they wait for the whole time slice of that process.
    """
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        size = sum(parameter.numel() for parameter in model.parameters())
        torch.set_num_threads(max(1, min(available_cpus(), size // PARAMETERS_PER_THREAD)))


def _cpu_limit() -> float:
    """The CPU time that the container may use, in processors; infinite without a limit."""
    for files in QUOTA_FILES:
        with suppress(OSError):
            quota, period = " ".join((CGROUP / file).read_text() for file in files).split()
            return math.inf if quota in UNLIMITED else int(quota) / int(period)
    return math.inf
