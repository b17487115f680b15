"""A folder to S3 beside ``aws s3 cp --recursive``, on the same folder and server, taking turns.

    python benchmarks/storage.py                                  # OpenStack Swift on this machine
    python benchmarks/storage.py --address s3://bucket/scratch    # storage as the AWS variables name it

Both are processes of their own, from their start to their end. Whence also computes the SHA-256 of every file.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common import timed
from environments import programs

ROOT = Path(__file__).resolve().parent.parent
AWSCLI = "1.46.3"
MIB = 2**20
GOAL = 0.7
UPLOAD = "from whence.storage import upload_folder; import sys; upload_folder(sys.argv[1], sys.argv[2])"


def make_folder(folder: Path, size: int) -> None:
    """Files as a run leaves them: half of ``size`` MiB in one, most of the rest in tens, a hundred of 64 KiB."""
    sizes = [size * MIB // 2, *[size * MIB // 24] * 11, *[64 * 1024] * 100]
    generator = random.Random(0)
    for number, length in enumerate(sizes):
        path = folder / f"part-{number % 3}" / f"{number:03}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            while length > 0:
                length -= file.write(generator.randbytes(min(length, 8 * MIB)))


@contextmanager
def storage(address: str | None, folder: Path) -> Iterator[str]:
    """``address``, or a bucket on a server that is started here."""
    if address is not None:
        yield address.rstrip("/")
        return
    sys.path.append(str(ROOT / "tests" / "integration"))
    from swift import running

    with running(folder) as swift:
        os.environ.update(swift.environment)
        from whence import s3

        s3.make_client().create_bucket(Bucket="benchmark")
        yield "s3://benchmark"


def run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    if done.returncode:
        raise SystemExit(f"{command[0]} failed:\n{done.stderr[-2000:]}")


def measure(root: str, folder: Path, repeats: int) -> dict[str, list[float]]:
    """Seconds of every upload, by the program that did it."""
    aws = programs(f"awscli-{AWSCLI}", [f"awscli=={AWSCLI}"]) / "aws"
    commands = {"Whence": [sys.executable, "-c", UPLOAD], "aws": [aws, "s3", "cp", "--recursive"]}
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(repeats):
        for name in sorted(commands, reverse=bool(turn % 2)):  # neither is always first
            address = f"{root}/{name}-{turn}"
            command = [*commands[name], str(folder), address]
            seconds[name].append(timed(lambda command=command: run(*command))[0])
            run(aws, "s3", "rm", "--recursive", "--quiet", address)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--address", metavar="s3://...", help="an unused prefix; by default a server is started here")
    parser.add_argument("--size", type=int, default=1024, help="MiB of the folder (default 1024)")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        make_folder(work / "folder", arguments.size)
        size = sum(path.stat().st_size for path in (work / "folder").rglob("*.bin")) / 1e6
        (work / "server").mkdir()
        with storage(arguments.address, work / "server") as root:
            print(f"{size:,.0f} MB in 112 files, awscli {AWSCLI}, load {os.getloadavg()[0]:.1f}\n")
            seconds = measure(root, work / "folder", arguments.repeats)
    ours, theirs = (size / statistics.median(seconds[name]) for name in ("Whence", "aws"))
    print("| Whence | aws s3 cp --recursive | ratio | goal |\n|---|---|---|---|")
    print(f"| {ours:.0f} MB/s | {theirs:.0f} MB/s | {ours / theirs:.2f}x | {GOAL} |")


if __name__ == "__main__":
    main()
