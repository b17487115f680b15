"""How a fit is divided for the memory there is: batches, parts of the data, groups of modules."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedModel

from whence.config import Config
from whence.data.batching import Batches, plan_batches
from whence.data.tokenization import TokenizedExamples
from whence.files import require_disk
from whence.influence import memory
from whence.influence.info import Shape
from whence.influence.task import LanguageModelingTask
from whence.models.loading import count_processes
from whence.models.trained import TrainedModel

logger = logging.getLogger(__name__)

PART_BATCHES = 64  # in each part of the data, where their number is not set
MOST_PARTS = 4  # every part costs the disk as much as all factors
HINT = "track fewer modules (factors.modules, factors.layers) or lower factors.batch_size"


class FitPlan(NamedTuple):
    """The division of a fit. Batches and parts of the data decide its result to the last bit; groups do not.

    Attributes:
        batches: the examples' indices, longest first.
        data_partitions: parts the batches are dealt to; each is saved when done.
        covariance_module_partitions: groups of modules whose covariances are held in memory one after another.
        lambda_module_partitions: the same for eigenvectors and lambda.
    """

    batches: Batches
    data_partitions: int
    covariance_module_partitions: int
    lambda_module_partitions: int


def batch_tokens(config: Config) -> int:
    """Most padded tokens of a batch when fitting."""
    return config.factors.batch_size * config.general.max_length


def plan_fit(trained: TrainedModel, shapes: Mapping[str, Shape], output: Path) -> FitPlan:
    """Divide a fit on all examples of ``trained`` so that every phase fits into memory.

    What the settings say is taken as it is. The plan is logged with what each phase needs.

    Raises:
        ResourceError: too little memory even with one module at a time, or too little disk.
    """
    model, examples, config, factors = trained.model, trained.examples, trained.config, trained.config.factors
    batches = plan_batches(examples.lengths, batch_tokens(config))
    data_partitions = count_parts(len(batches), factors.data_partitions, workers(config))
    room = memory.room(model, count_processes(config.general))
    logits = logit_tokens(model, shapes, examples, batches)
    phases = memory.FitPhases(model, shapes, factors.strategy, batch_tokens(config), logits)
    covariance = factors.covariance_module_partitions or _fewest(phases.covariance, len(shapes), room)
    lambdas = factors.lambda_module_partitions or _fewest(phases.lambdas, len(shapes), room)
    plan = FitPlan(
        batches=batches,
        data_partitions=data_partitions,
        covariance_module_partitions=min(covariance, len(shapes)),
        lambda_module_partitions=min(lambdas, len(shapes)),
    )
    logger.info(
        "plan: %d batches in %d parts; covariances in %d and lambda in %d groups of modules",
        len(batches), plan.data_partitions, plan.covariance_module_partitions, plan.lambda_module_partitions,
    )  # fmt: skip
    chosen = [
        phases.covariance(plan.covariance_module_partitions),
        phases.eigendecomposition(),
        phases.lambdas(plan.lambda_module_partitions),
    ]
    memory.require_memory([phase for phase in chosen if phase is not None], room, HINT)
    kept = sum(file.stat().st_size for file in output.rglob("*.safetensors"))  # by a fit that is to go on
    disk = memory.fit_disk(shapes, factors.strategy, plan.data_partitions) - kept
    require_disk(output, disk, "the factors", "track fewer modules (factors.modules, factors.layers)")
    return plan


def logit_tokens(
    model: PreTrainedModel, modules: Iterable[str], examples: TokenizedExamples, batches: Batches
) -> int | None:
    """Most tokens of a batch whose logits are computed, those of every column in which a loss counts; None: all."""
    if not LanguageModelingTask(model, list(modules)).keeps_logits:
        return None
    return max(len(batch) * len(set().union(*(examples.counted(index) for index in batch))) for batch in batches)


def workers(config: Config) -> int:
    """Processes that share the parts of the data: those of every parallel task."""
    return (config.general.parallel_tasks or 1) * count_processes(config.general)


def count_parts(batches: int, wanted: int | None, workers: int) -> int:
    """Parts of the data: those asked for, or a few, as many for each of the ``workers``; none is empty."""
    if wanted is None:
        wanted = -(-min(MOST_PARTS, max(1, batches // PART_BATCHES)) // workers) * workers
    return min(wanted, batches)


def share(parts: int, task: int, tasks: int) -> range:
    """The parts of the data that one of the parallel tasks takes (counted from 0)."""
    return range(task, parts, tasks)


def _fewest(phase: memory.Divided, most: int, room: int) -> int:
    """The fewest groups of modules with which a phase fits into ``room``, or as many as there are modules."""
    for groups in range(1, most):
        divided = phase(groups)
        if divided is None or divided.total <= room:
            return groups
    return most
