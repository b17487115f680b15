"""The peak memory of one way of scoring, in a process of its own: resident, above what the bare process holds."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

PAD = 0


def peak_memory(way: str, factors: Path, queries: int, train: int) -> int:
    """Bytes resident at the peak of a child process that scores ``way``: ``ours`` or ``stock``."""
    command = [sys.executable, __file__, way, str(factors), str(queries), str(train)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def main(way: str, factors: Path, query_count: int, train_count: int) -> None:
    import torch
    from common import WIDE, examples, make_model, quiet, settings
    from stock import Stock

    from whence.influence.scores import pairwise_scores

    torch.set_num_threads(1)
    both = examples(train_count + query_count, WIDE.vocabulary)[0]
    train, queries = both.subset(range(train_count)), both.subset(range(train_count, len(both)))
    if way == "ours":
        config = settings(scores__query_gradient_accumulation_steps=1)  # as few queries at once as stock holds
        with quiet():
            pairwise_scores(make_model(WIDE), factors, queries, train, config, PAD, factors / "parts")
    else:
        Stock(WIDE, factors).score(queries, train)
    print(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
