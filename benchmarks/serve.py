"""The service under load: clients that ask at once, what they wait for, and whether a killed service loses anything.

    python benchmarks/serve.py --run whence-output/latest --clients 20 --minutes 5

Each client asks one of the run's own questions, and the next when it has all. Waiting is part of every time.
In the end the service is killed in the middle of an answer and started again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import psutil

from whence.run_folder import load_run


def start(run: Path, port: int) -> subprocess.Popen[bytes]:
    """The service, when it is ready."""
    command = [sys.executable, "-m", "whence.cli", "serve", "--run", str(run), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5).status_code == 200:
                return process
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise SystemExit("the service ended before it was ready")


async def ask(client: httpx.AsyncClient, question: str) -> tuple[float, float, float]:
    """Seconds from the answer to the first rows and to exact ones, and of all of it."""
    started, answered, first, exact = time.monotonic(), 0.0, 0.0, 0.0
    async with client.stream("POST", "/api/ask", json={"question": question}) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            event, now = json.loads(line), time.monotonic()
            if event["event"] == "error":
                raise RuntimeError(event["message"])
            if event["event"] == "answer":
                answered = now
            elif event["event"] == "rows":
                first, exact = first or now, exact or (now if event["exact"] else 0.0)
    return first - answered, exact - answered, now - started


async def load(port: int, questions: list[str], clients: int, seconds: float) -> np.ndarray:
    """Times of all questions, ``[questions, 3]``."""
    end, times = time.monotonic() + seconds, []

    async def work(number: int) -> None:
        headers = {"Accept": "application/x-ndjson"}
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=300) as client:
            while time.monotonic() < end:
                times.append(await ask(client, questions[number % len(questions)]))
                number += clients

    await asyncio.gather(*map(work, range(clients)))
    return np.array(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("whence-output/latest"))
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=5.0)
    options = parser.parse_args()
    questions = load_run(options.run).scores.queries["prompt"].tolist()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = start(options.run, port)
    asyncio.run(load(port, questions, 1, 10))  # warm
    memory = psutil.Process(process.pid).memory_info
    before = memory().rss
    alone = asyncio.run(load(port, questions, 1, 20))
    together = asyncio.run(load(port, questions, options.clients, 60 * options.minutes))
    for name, times in (("one client", alone), (f"{options.clients} clients", together)):
        first, exact, whole = np.percentile(times, 95, axis=0)
        print(f"{name}: {len(times)} questions, p95 after the answer {first:.2f} s to the first rows, {exact:.2f} s to "
              f"exact ones, {whole:.2f} s in all")  # fmt: skip
    print(f"throughput {len(together) / (60 * options.minutes):.2f} questions a second, no error")
    print(f"memory {before / 2**20:.0f} MiB before, {memory().rss / 2**20:.0f} MiB after")
    process.send_signal(signal.SIGKILL)
    process.wait()
    process = start(options.run, port)
    asyncio.run(load(port, questions, 1, 5))
    print("killed and started again: answers as before")
    process.terminate()
    process.wait()


if __name__ == "__main__":
    main()
