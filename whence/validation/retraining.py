"""Retrainings that counterfactuals ask for: each is done once, kept when done, and several run at a time.

They are fine-tunings as :func:`whence.training.train` does them, with the run's own settings, on other data.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from whence.config import Config
from whence.data.tokenization import TokenizedExamples
from whence.evaluation.outcomes import answer_logprobs
from whence.files import digest_of, write_json
from whence.models.loading import choose_device, load_trainable
from whence.processes import pool
from whence.progress import progress
from whence.threads import available_cpus
from whence.training import train
from whence.validation.counterfactual import Change

NEVER = 2**31


@dataclass(frozen=True)
class Retrainer:
    """Retrains the base model on changed data and notes what becomes of the queries.

    Attributes:
        base_model: the base-model artifact.
        folder: receives a file per finished retraining; the same ones are read from there, whoever asks for them.
        scratch: where retrainings work; nothing in it is needed afterwards.
        processes: retrainings at a time; None: one per core, or one per accelerator where there is any.
    """

    base_model: Path
    train: TokenizedExamples
    queries: TokenizedExamples
    config: Config
    folder: Path
    scratch: Path
    processes: int | None = None

    def outcomes(self, changes: Iterable[Change]) -> dict[Change, np.ndarray]:
        """The log-probability of each query's answer after each retraining, ``[queries]``.

        Args:
            changes: the retrainings; equal ones are done once.
        """
        distinct = list(dict.fromkeys(changes))
        self.folder.mkdir(parents=True, exist_ok=True)
        missing = [change for change in distinct if not self.file(change).exists()]
        if missing:
            self._retrain(missing, len(distinct))
        return {change: np.array(json.loads(self.file(change).read_text())["logprobs"]) for change in distinct}

    def adopt(self, folders: Iterable[Path]) -> None:
        """Take over the retrainings that other tasks have finished."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for file in (file for folder in folders for file in folder.glob("*.json")):
            write_json(self.folder / file.name, json.loads(file.read_text(encoding="utf-8")))

    def file(self, change: Change) -> Path:
        """Where the outcome of a retraining is kept, named by all that decides it."""
        decided_by = {
            "change": asdict(change),
            "train": self.train.fingerprint,
            "queries": self.queries.fingerprint,
            "training": self.config.training.model_dump(mode="json"),
            "base": self.config.models.base.model_dump(mode="json"),
        }
        return self.folder / f"{digest_of(decided_by)[:24]}.json"

    def _retrain(self, changes: Sequence[Change], of: int) -> None:
        cuda = torch.cuda.device_count() if choose_device(self.config.general).type == "cuda" else 0
        # A small model leaves cores idle when it is given several, so each retraining gets one of its own.
        workers = min(self.processes or cuda or available_cpus(), len(changes))
        devices = [number % cuda if cuda else None for number in range(workers)]
        done = of - len(changes)
        with (
            progress(total=of, initial=done, desc="retrainings", unit="retraining") as bar,
            pool(devices, workers) as executor,
        ):
            for future in as_completed([executor.submit(self._one, change) for change in changes]):
                future.result()
                bar.update()

    def _one(self, change: Change) -> None:
        """Retrain once; the file comes last and whole, so that a killed retraining leaves none."""
        file = self.file(change)
        work = self.scratch / f"{file.stem}.{os.getpid()}"
        examples = change.examples(self.train)
        config = self.config.model_copy(
            update={
                "general": self.config.general.model_copy(update={"seed": change.seed}),
                "training": self.config.training.model_copy(
                    update={"dataloader_num_workers": 0, "save_steps": NEVER}  # a killed one is done anew
                ),
                "tracking": self.config.tracking.model_copy(update={"wandb": False}),
            }
        )
        base = load_trainable(self.base_model, config)
        try:
            train(
                base, examples, self.queries,
                output=work / "model", checkpoints=work / "checkpoints", on_log=lambda step, metrics: None,
            )  # fmt: skip
            outcome = answer_logprobs(base.model, self.queries)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        write_json(file, {"change": asdict(change), "logprobs": outcome.tolist()})
