"""The peak memory of one way of scoring, in a process of its own: resident, above what the bare process holds."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PAD = 0
TRAIN_BATCH = 2  # examples of 512 tokens, on both sides: in small batches memory is what the method needs


def peak_memory(way: str, factors: Path, queries: int, train: int) -> int:
    """Peak of resident bytes of a process that scores ``way`` (``ours`` or ``stock``), above the bare one."""
    command = [sys.executable, __file__, way, str(factors), str(queries), str(train)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def main(way: str, factors: Path, query_count: int, train_count: int) -> None:
    import torch
    from common import WIDE, examples, make_model, quiet, settings, trained
    from stock import Stock

    from whence.influence.scores import pairwise_scores

    torch.set_num_threads(1)
    bare = resident_at_most()
    both = examples(train_count + query_count, WIDE.vocabulary)[0]
    train, queries = both.subset(range(train_count)), both.subset(range(train_count, len(both)))
    if way == "ours":
        config = settings(
            scores__train_batch_size=TRAIN_BATCH,
            scores__query_batch_size=3,  # by tokens, which are 8 of these queries at most, as many as stock holds
            scores__query_gradient_accumulation_steps=1,
        )
        with quiet():
            pairwise_scores(trained(make_model(WIDE), train, config), factors, queries, factors / "parts")
    else:
        Stock(WIDE, factors).score(queries, train, query_batch=8, batch=TRAIN_BATCH)
    print(resident_at_most() - bare)


def resident_at_most() -> int:
    """Bytes. Not ``ru_maxrss``, which begins with what the parent process held when it forked."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
