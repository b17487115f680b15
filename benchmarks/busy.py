"""How much the demo's training slows down beside a busy process: by its share, or by a factor?

    python benchmarks/busy.py

Steps a second in one epoch, alone and while ``--busy`` other processes compute, each with the threads that Whence
chooses for the model, and with a thread per processor, whose idle ones sleep (as Whence has them) or spin (OpenMP's
default). Processes: with as many busy as there are processors, half of the speed is the fair share.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common import quiet
from demo import Demo, demo_config

from whence.threads import available_cpus

ALL = {"OMP_NUM_THREADS": str(available_cpus())}
WAYS = {
    "as chosen": {},
    f"{available_cpus()}, idle ones sleep": ALL | {"OMP_WAIT_POLICY": "PASSIVE"},
    f"{available_cpus()}, idle ones spin": ALL | {"OMP_WAIT_POLICY": "ACTIVE"},
}


def steps_per_second(epochs: float) -> float:
    """Of a training in this process."""
    with tempfile.TemporaryDirectory() as folder, quiet():
        demo = Demo(demo_config([f"training.num_train_epochs={epochs}"]), Path(folder))
        metrics = demo.train().metrics
    return metrics["steps"] / metrics["train_seconds"]


def measure_apart(environment: dict[str, str], epochs: float) -> float:
    """Of a training in a process with this environment."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    command = [sys.executable, __file__, "--here", "--epochs", str(epochs)]
    done = subprocess.run(command, env=inherited | environment, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """While so many other processes compute."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", type=int, default=1, help="busy processes")
    parser.add_argument("--epochs", type=float, default=1.0, help="length of each training")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        print(steps_per_second(given.epochs))
        return
    print(f"{available_cpus()} processors, load {os.getloadavg()[0]:.1f}\n")
    print(f"| threads | steps/s alone | beside {given.busy} busy | ratio |\n|---|---|---|---|", flush=True)
    for name, environment in WAYS.items():
        alone = measure_apart(environment, given.epochs)
        with busy(given.busy):
            beside = measure_apart(environment, given.epochs)
        print(f"| {name} | {alone:.2f} | {beside:.2f} | {beside / alone:.2f} |", flush=True)


if __name__ == "__main__":
    main()
