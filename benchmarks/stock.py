"""Stock kronfluence, used as its documentation shows it, and on the batches of another."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import LONGEST, Shape, make_model, mlp_modules, quiet, timed
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from kronfluence.utils.dataset import DataLoaderKwargs
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset

from whence.data.tokenization import IGNORED, TokenizedExamples

Examples = TokenizedExamples | Dataset[Any]


class PlainTask(Task):
    """Language modeling as kronfluence's own examples write it: all logits, labels from ``torch.multinomial``."""

    def __init__(self, modules: list[str]) -> None:
        self.modules = modules

    def compute_train_loss(self, batch: dict[str, torch.Tensor], model: nn.Module, sample: bool = False) -> Any:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
        logits = logits[:, :-1].float().reshape(-1, logits.shape[-1])
        labels = batch["labels"][:, 1:].reshape(-1)
        if sample:
            with torch.no_grad():
                drawn = torch.multinomial(functional.softmax(logits.detach(), dim=-1), 1).flatten()
                labels = torch.where(labels == IGNORED, labels, drawn)
        return functional.cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORED)

    def compute_measurement(self, batch: dict[str, torch.Tensor], model: nn.Module) -> Any:
        return self.compute_train_loss(batch, model)

    def get_influence_tracked_modules(self) -> list[str]:
        return self.modules

    def get_attention_mask(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return batch["attention_mask"]


class Batched(Dataset[dict[str, torch.Tensor]]):
    """A dataset whose items are whole batches, so that kronfluence's loops take batches of differing counts."""

    def __init__(self, examples: TokenizedExamples, batches: Sequence[Sequence[int]]) -> None:
        self.examples, self.batches = examples, batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.examples.batch(self.batches[index])


def pad_to(length: int, items: list[Any]) -> dict[str, torch.Tensor]:
    """Collate as most users of kronfluence do: every example as long as the longest there may be."""
    batch = TokenizedExamples([], 0).collate(items)
    missing = length - batch["input_ids"].shape[1]
    fills = {"input_ids": 0, "attention_mask": 0, "labels": IGNORED}
    return {name: functional.pad(value, (0, missing), value=fills[name]) for name, value in batch.items()}


class Stock:
    """Plain kronfluence on a model of its own; its factors are named ``ekfac``, as Whence names them.

    Datasets are padded to :data:`LONGEST` in batches of a fixed count, or are taken batch by batch where they are
    :class:`Batched`.
    """

    def __init__(self, shape: Shape, folder: Path) -> None:
        modules = mlp_modules(shape)
        task = PlainTask(modules)
        with quiet():
            self.analyzer = Analyzer(
                folder.name,
                prepare_model(make_model(shape), task),
                task,
                cpu=True,
                output_dir=str(folder.parent),
                disable_tqdm=True,
                log_level=40,
            )

    def fit(self, train: Examples, batch: int = 8, **arguments: Any) -> dict[str, float]:
        """Seconds of every phase."""
        factor_args = FactorArguments(**arguments)
        size = self._collating(train, batch)
        given = {"dataset": train, "per_device_batch_size": size}
        phases = {
            "covariance": partial(self.analyzer.fit_covariance_matrices, **given),
            "eigendecomposition": self.analyzer.perform_eigendecomposition,
            "lambda": partial(self.analyzer.fit_lambda_matrices, **given),
        }
        seconds = {}
        for name, work in phases.items():
            with quiet():
                seconds[name], _ = timed(partial(work, "ekfac", factor_args=factor_args, overwrite_output_dir=True))
        return seconds

    def factors(self) -> dict[str, dict[str, torch.Tensor]]:
        return self.analyzer.load_all_factors("ekfac")

    def score(
        self, queries: TokenizedExamples, train: Examples, query_batch: int = 8, batch: int = 8, **arguments: Any
    ) -> tuple[float, torch.Tensor]:
        """Seconds, and scores in the order in which the training examples come."""
        size = self._collating(train, batch)
        if isinstance(train, Batched):
            queries, query_batch = Batched(queries, [list(range(len(queries)))]), 1
        with quiet():
            seconds, _ = timed(
                lambda: self.analyzer.compute_pairwise_scores(
                    "scores", "ekfac", queries, train, query_batch, size,
                    score_args=ScoreArguments(damping_factor=None, **arguments), overwrite_output_dir=True,
                )
            )  # fmt: skip
        return seconds, self.analyzer.load_pairwise_scores("scores")["all_modules"]

    def _collating(self, train: Examples, batch: int) -> int:
        """Set how examples are joined, and give the number of items of a batch."""
        whole = isinstance(train, Batched)
        collator = (lambda items: items[0]) if whole else partial(pad_to, LONGEST)
        self.analyzer.set_dataloader_kwargs(DataLoaderKwargs(collate_fn=collator))
        return 1 if whole else batch
