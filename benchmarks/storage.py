"""Folders to and from S3 beside ``aws s3 cp --recursive``, on the same folder and server, taking turns.

    python benchmarks/storage.py                                  # OpenStack Swift on this machine
    python benchmarks/storage.py --address s3://bucket/scratch    # storage as the AWS variables name it

Both are processes of their own, from their start to their end. Whence also computes the SHA-256 of every file and, on
the way back, checks it.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
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
UP = "from whence.storage import upload_folder; import sys; upload_folder(sys.argv[1], sys.argv[2])"
DOWN = "from whence.storage import download_folder; import sys; download_folder(sys.argv[2], sys.argv[1])"


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
    """``address``, or that of a bucket on a server started here."""
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


def measure(root: str, folder: Path, back: Path, repeats: int) -> dict[tuple[str, str], list[float]]:
    """Seconds of every transfer, by direction and by who did it."""
    aws = programs(f"awscli-{AWSCLI}", [f"awscli=={AWSCLI}"]) / "aws"
    seconds: dict[tuple[str, str], list[float]] = {}
    for turn in range(repeats):
        commands = {
            "Whence": {"up": [sys.executable, "-c", UP], "down": [sys.executable, "-c", DOWN]},
            "aws": {"up": [aws, "s3", "cp", "--recursive"], "down": [aws, "s3", "cp", "--recursive"]},
        }
        for who in sorted(commands, reverse=bool(turn % 2)):  # nobody is always first
            address = f"{root}/{who}-{turn}"
            down = [str(back), address] if who == "Whence" else [address, str(back)]
            for direction, ends in (("up", [str(folder), address]), ("down", down)):
                command = [*commands[who][direction], *ends]
                seconds.setdefault((direction, who), []).append(timed(lambda command=command: run(*command))[0])
            shutil.rmtree(back)
            run(aws, "s3", "rm", "--recursive", "--quiet", address)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--address", metavar="s3://...", help="an empty place; a server is started here by default")
    parser.add_argument("--size", type=int, default=1024, help="MiB of the folder (default 1024)")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        make_folder(work / "folder", given.size)
        size = sum(path.stat().st_size for path in (work / "folder").rglob("*.bin")) / 1e6
        (work / "server").mkdir()
        with storage(given.address, work / "server") as root:
            print(f"{size:,.0f} MB in 112 files, awscli {AWSCLI}, load {os.getloadavg()[0]:.1f}\n")
            seconds = measure(root, work / "folder", work / "back", given.repeats)
    print("| direction | Whence | aws s3 cp --recursive | ratio | goal |\n|---|---|---|---|---|")
    for direction in ("up", "down"):
        ours, theirs = (size / statistics.median(seconds[direction, who]) for who in ("Whence", "aws"))
        print(f"| {direction} | {ours:.0f} MB/s | {theirs:.0f} MB/s | {ours / theirs:.2f}x | {GOAL} |")


if __name__ == "__main__":
    main()
