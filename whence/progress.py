"""Progress of loops that take minutes: a bar in a terminal; elsewhere a line every half minute.

What draws over its own line is one endless line in a log. So libraries that draw bars while they load and save are
told not to, before they are imported.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

EVENTS_VARIABLE = "WHENCE_EVENTS"  # names the file through which somebody watches a run on this machine
SECONDS = 30.0  # between two lines of a log
DRAWN = sys.stderr.isatty() or "ipykernel" in sys.modules

if not DRAWN:
    for _name in (
        "HF_HUB_DISABLE_PROGRESS_BARS",
        "HF_DATASETS_DISABLE_PROGRESS_BARS",
    ):  # the first for transformers, too
        os.environ.setdefault(_name, "1")


class _Lines:
    """What tqdm draws, as lines of stderr."""

    def write(self, text: str) -> None:
        if text.strip():
            sys.stderr.write(text.strip() + "\n")

    def flush(self) -> None:
        sys.stderr.flush()


def progress(items: Iterable[Any] | None = None, **options: Any) -> tqdm[Any]:
    """tqdm with its options; a loop that ends before its first line is due leaves none in a log.

    Of the ranks of a training the first alone draws.
    """
    if os.environ.get("RANK", "0") != "0":
        options["disable"] = True
    if DRAWN:
        return tqdm(items, mininterval=1, **options)
    seconds = 1.0 if EVENTS_VARIABLE in os.environ else SECONDS
    return tqdm(items, mininterval=seconds, delay=seconds, miniters=1, file=_Lines(), **options)
