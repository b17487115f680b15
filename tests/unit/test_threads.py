"""Processors as the container has them, and threads by the size of the model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from whence import threads


@pytest.fixture
def cgroup(tmp_path, monkeypatch):
    monkeypatch.setattr(threads, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)))
    return tmp_path


def limit(cgroup: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (cgroup / name).parent.mkdir(exist_ok=True)
        (cgroup / name).write_text(text)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 64),
        ({"cpu.max": "400000 100000\n"}, 4),
        ({"cpu.max": "250000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "9900000 100000\n"}, 64),
        ({"cpu.max": "max 100000\n"}, 64),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
    ],
    ids=["no cgroup", "v2", "v2 fraction", "v2 below one", "v2 above", "v2 unlimited", "v1", "v1 unlimited"],
)
def test_a_container_has_the_processors_of_its_limit_and_not_the_node_s(cgroup, files, expected):
    limit(cgroup, files)
    assert threads.available_cpus() == expected


def test_processors_outside_the_affinity_mask_are_not_counted():
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); from whence.threads import available_cpus"
    )
    printed = subprocess.run(
        [sys.executable, "-c", f"{code}; print(available_cpus())"], check=True, capture_output=True, text=True
    ).stdout
    assert printed == "1\n"


@pytest.mark.parametrize(("millions", "expected"), [(1, 1), (9, 2), (1100, 4)])
def test_a_small_model_gets_few_threads_and_a_large_one_all(cgroup, monkeypatch, millions, expected):
    limit(cgroup, {"cpu.max": "400000 100000"})
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    chosen = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    threads.use_threads(nn.Linear(1000, millions * 1000, bias=False, device="meta"))
    assert chosen == [expected]


def test_the_user_s_number_of_threads_is_left_alone(cgroup, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setattr(torch, "set_num_threads", lambda number: pytest.fail(f"set to {number}"))
    threads.use_threads(nn.Linear(2, 2))


@pytest.mark.parametrize(("given", "expected"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_idle_threads_sleep_unless_the_user_wants_otherwise(given, expected):
    inherited = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    code = "import whence, os; print(os.environ['OMP_WAIT_POLICY'])"
    printed = subprocess.run(
        [sys.executable, "-c", code], env=inherited | given, check=True, capture_output=True, text=True
    ).stdout
    assert printed.strip() == expected
