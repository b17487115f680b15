"""bergson 2.5.1 in an environment of its own, on the same model and the same token ids.

The environment (about 1.6 GB with a CPU torch) has the versions of torch, transformers and so on that Whence runs
with. bergson declares torchvision, torchaudio and bitsandbytes and imports none of them, so they are left out.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from common import LONGEST, quiet
from datasets import Dataset
from datasets.utils.logging import disable_progress_bar
from environments import programs
from transformers import PreTrainedModel

from whence.data.tokenization import TokenizedExamples
from whence.models.builtin import train_tokenizer

VERSION = "2.5.1"
OURS = ("torch", "transformers", "datasets", "accelerate", "numpy", "scipy", "pyarrow", "pyyaml", "jinja2")
THEIRS = ("jaxtyping==0.3.11", "ml_dtypes==0.6.0", "natsort==8.4.0", "peft==0.21.2", "petname==2.9",
          "simple-parsing==0.1.9", "torchopt==0.7.3")  # fmt: skip
UNTRACKED = "*self_attn*"  # bergson takes every linear layer but the output layer: leaves the MLP's
BUDGET = 8 * LONGEST


def interpreter() -> Path:
    """bergson's interpreter, installed on the first call.

    Raises:
        Unavailable: it could not be installed.
    """
    requirements = (*(f"{name}=={version(name)}" for name in OURS), *THEIRS)
    return programs(f"bergson-{VERSION}", requirements, ("--no-deps", f"bergson=={VERSION}")) / "python"


class Bergson:
    """A process of bergson's, on a model and on examples, all written to ``folder``."""

    def __init__(
        self, model: PreTrainedModel, folder: Path, train: TokenizedExamples, queries: TokenizedExamples
    ) -> None:
        self.folder = folder
        with quiet():
            self._write(model, train, queries)
        # -P: the worker's folder is not searched for modules
        command = [interpreter(), "-P", Path(__file__).with_name("bergson_worker.py"), str(torch.get_num_threads())]
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        with open(folder / "bergson.log", "w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=inherited | {"HF_HUB_OFFLINE": "1"},
                text=True,
            )

    def __enter__(self) -> Bergson:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()
        self.process.wait()

    def fit(self, empirical: bool = False) -> float:
        """Seconds of an EKFAC fit; ``empirical`` takes the dataset's labels and not sampled ones."""
        return self._ask("fit", empirical)

    def score(self) -> tuple[float, torch.Tensor]:
        """Seconds of query gradients and scores with the last fit's factors, and the scores, a row for each query."""
        return self._scores("score")

    def store(self) -> tuple[float, int]:
        """Seconds of making the store of projected gradients that ``bergson query`` searches, and its bytes."""
        seconds = self._ask("store", False)
        return seconds, sum(file.stat().st_size for file in (self.folder / "store").rglob("*.bin"))

    def query(self) -> torch.Tensor:
        """The scores of ``bergson query``."""
        return self._scores("query")[1]

    def trackstar(self) -> tuple[float, torch.Tensor]:
        """Seconds of ``bergson trackstar``, and its scores."""
        return self._scores("trackstar")

    def _scores(self, work: str) -> tuple[float, torch.Tensor]:
        seconds = self._ask(work, False)
        return seconds, torch.load(self.folder / "scores.pt").T

    def _ask(self, work: str, empirical: bool) -> float:
        request: dict[str, Any] = {
            "work": work,
            "folder": str(self.folder),
            "untracked": UNTRACKED,
            "batch_tokens": BUDGET,
            "empirical": empirical,
        }
        print(json.dumps(request), file=self.process.stdin, flush=True)
        for line in self.process.stdout:
            if line.startswith("{"):  # and not what a library says when it is imported
                return json.loads(line)["seconds"]
        log = (self.folder / "bergson.log").read_text(encoding="utf-8")
        raise RuntimeError(f"bergson stopped:\n{log[-2000:]}")

    def _write(self, model: PreTrainedModel, train: TokenizedExamples, queries: TokenizedExamples) -> None:
        disable_progress_bar()
        model = copy.deepcopy(model)
        # bergson refuses batches of more tokens than the model has positions; rotary ones have no weights.
        model.config.max_position_embeddings = BUDGET
        model.save_pretrained(self.folder / "model")
        train_tokenizer(["It asks for one, and the token ids are there already."], 300).save_pretrained(
            self.folder / "model"
        )
        for name, examples in (("train", train), ("queries", queries)):
            rows = [examples[i] for i in range(len(examples))]
            columns = {key: [list(map(int, row[key])) for row in rows] for key in ("input_ids", "labels")}
            Dataset.from_dict(columns | {"length": examples.lengths}).save_to_disk(self.folder / name)
