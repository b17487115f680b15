"""How much memory and disk factors and scores need, known before the work starts."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from kronfluence.factor.config import FactorConfig
from kronfluence.module.utils import make_modules_partition
from transformers import PreTrainedModel

from whence.errors import ResourceError
from whence.files import readable
from whence.influence.activations import kept_per_token
from whence.influence.info import Shape
from whence.influence.products import CHUNK_BYTES
from whence.influence.queries import PIECE_BYTES, cheapest_way

logger = logging.getLogger(__name__)

FACTOR_BYTES = 4  # factors are kept in fp32
GRADIENTS = 3  # in the backward pass: a layer's output gradient, and those of both factors of a gated product
LOGITS = 3  # logits, their logarithmic softmax and its gradient; or logits, probabilities and their running sum
# What is freed and taken again in every batch occupies more than it holds: glibc before 2.38 cannot reuse a freed
# aligned block for one of the same size (its bug 14581), and CUDA's caching allocator rounds and splits blocks.
OVERHEAD = {"cpu": 1.5, "cuda": 1.1}
QUERY_BATCH = 8  # queries per batch where their number is not told, the default of scores.query_batch_size
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
CGROUP_USE = Path("/sys/fs/cgroup/memory.current")


@dataclass(frozen=True)
class Phase:
    """What one phase holds at its peak, in bytes by kind."""

    name: str
    parts: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    def __str__(self) -> str:
        parts = ", ".join(f"{kind} {readable(size)}" for kind, size in self.parts.items() if size)
        return f"{self.name}: {readable(self.total)} ({parts})"


Divided = Callable[[int], Phase | None]  # a phase when the modules are divided into so many groups


def factor_sizes(
    shapes: Mapping[str, Shape],
    strategy: str,
    sharing: Mapping[str, str] | None = None,
    width: int = FACTOR_BYTES,
) -> dict[str, int]:
    """Bytes of ``covariances``, ``eigenvectors`` and ``lambda`` that a strategy fits for modules of these shapes.

    Args:
        sharing: to a module the first one that sees the same input, where that is another one and what is of inputs
            is held once for both; None: it is not.
        width: bytes of a number.
    """
    needs = FactorConfig.CONFIGS[strategy]
    inputs = {(sharing or {}).get(name, name): shape.inputs for name, shape in shapes.items()}
    squares = width * (sum(size**2 for size in inputs.values()) + sum(shape.outputs**2 for shape in shapes.values()))
    products = width * sum(shape.size for shape in shapes.values())
    return {
        "covariances": squares if needs.requires_covariance_matrices else 0,
        "eigenvectors": squares if needs.requires_eigendecomposition else 0,
        "lambda": products if needs.requires_lambda_matrices else 0,
    }


class Batch:
    """What is taken for a batch and given back after it, for a model whose ``shapes`` are tracked.

    Args:
        tokens: padded tokens of the largest batch.
        logit_tokens: for how many of them logits are computed: those of every column in which some example's loss
            counts; None: all.
    """

    def __init__(
        self, model: PreTrainedModel, shapes: Mapping[str, Shape], tokens: int, logit_tokens: int | None = None
    ) -> None:
        parameter = next(model.parameters())
        self.device, width = parameter.device.type, parameter.element_size()
        kept = kept_per_token(model, shapes)
        self.sharing = kept.sharing
        self.saved, self.inputs = int(tokens * kept.saved), int(tokens * kept.inputs)
        self.gradients = GRADIENTS * tokens * width * max(max(shape) for shape in shapes.values())
        vocabulary = getattr(model.config, "vocab_size", 0)
        self.logits = LOGITS * FACTOR_BYTES * (tokens if logit_tokens is None else logit_tokens) * vocabulary
        self.rotated = FACTOR_BYTES * tokens * max(shape.inputs + shape.outputs for shape in shapes.values())
        self.chunk = max(CHUNK_BYTES.get(self.device, 0), FACTOR_BYTES * max(shape.size for shape in shapes.values()))

    def parts(self, inputs: bool, work: int = 0) -> dict[str, int]:
        """By kind, with the tracked modules' ``inputs`` where a phase keeps them; ``work`` is what a module takes."""
        activations = self.saved + inputs * self.inputs
        # A module is worked on when the layers after it are done and the gradients within its own are not yet there.
        layers = max(self.gradients, work)
        overhead = OVERHEAD.get(self.device, 1.0) - 1
        return {
            "activations": activations,
            # The logits come before all other gradients; they are few blocks, and so large that they are mapped.
            "gradients": max(layers + int(overhead * layers), self.logits),
            "allocator": int(overhead * activations),
        }


class FitPhases:
    """Memory of the phases of a fit, by how the modules are divided; None where a strategy has no such phase."""

    def __init__(
        self,
        model: PreTrainedModel,
        shapes: Mapping[str, Shape],
        strategy: str,
        batch_tokens: int,
        logit_tokens: int | None = None,
    ) -> None:
        self.shapes, self.strategy = dict(shapes), strategy
        self.needs = FactorConfig.CONFIGS[strategy]
        self.weights = {"weights": weight_bytes(model)}
        self.batch = Batch(model, shapes, batch_tokens, logit_tokens)

    def covariance(self, groups: int) -> Phase | None:
        if not self.needs.requires_covariance_matrices:
            return None
        held = {"covariances": self._largest_group(groups)["covariances"]}
        return Phase("covariance", self.weights | held | self.batch.parts(inputs=False))

    def eigendecomposition(self) -> Phase | None:
        if not self.needs.requires_eigendecomposition:
            return None
        widest = max(max(shape) for shape in self.shapes.values())
        # One covariance at a time in fp64: matrix, regularised copy, vectors and the solver's own two.
        return Phase("eigendecomposition", self.weights | {"workspace": 5 * 2 * FACTOR_BYTES * widest**2})

    def lambdas(self, groups: int) -> Phase | None:
        if not self.needs.requires_lambda_matrices:
            return None
        sizes = self._largest_group(groups)
        if not self.needs.requires_eigendecomposition_for_lambda:
            sizes["eigenvectors"] = 0
        held = {kind: sizes[kind] for kind in ("eigenvectors", "lambda")}
        work = self.batch.rotated + self.batch.chunk
        return Phase("lambda", self.weights | held | self.batch.parts(inputs=True, work=work))

    def _largest_group(self, groups: int) -> dict[str, int]:
        divided = make_modules_partition(list(self.shapes), groups)
        members = [{name: self.shapes[name] for name in names} for names in divided]
        sizes = [factor_sizes(group, self.strategy, self.batch.sharing) for group in members]
        return max(sizes, key=lambda group: sum(group.values()))


def score_phase(
    model: PreTrainedModel,
    shapes: Mapping[str, Shape],
    batch_tokens: int,
    queries: int,
    low_rank: int | None,
    query_batch: int = QUERY_BATCH,
    logit_tokens: int | None = None,
    strategy: str | None = None,
    sketches: int = 0,
    factor_width: int = FACTOR_BYTES,
) -> Phase:
    """Memory of a pass that scores ``queries`` at once, their gradients cut to ``low_rank`` where that is smaller.

    For query gradients factors are read one module at a time, so only the largest counts: its eigenvectors, and lambda
    as it is read, in fp64 and inverted. Self-influence needs all factors for every batch.

    Args:
        query_batch: queries of the largest batch in which their gradients are computed; training examples as well.
        logit_tokens: as for :class:`Batch`.
        strategy: of the factors, where the pass also takes self-influence.
        sketches: numbers in all sketches of the largest batch.
        factor_width: bytes of a number of the factors that are held for all modules.
    """
    batch = Batch(model, shapes, batch_tokens, logit_tokens)
    gradients = sum(gradient_size(shape, low_rank) for shape in shapes.values())
    widest = max(shape.inputs**2 + shape.outputs**2 + 4 * shape.size for shape in shapes.values())
    held = {"weights": weight_bytes(model)}
    work = 0
    if queries:
        reduced = any(gradient_size(shape, low_rank) < shape.size for shape in shapes.values())
        # A piece of a module's query gradients: as it was, preconditioned, and factored by rank.
        preconditioned = batch.chunk * (3 if reduced else 2)
        work = max(preconditioned, low_rank_work(shapes, batch_tokens, query_batch, queries, low_rank), batch.chunk)
        held |= {"factors of a module": FACTOR_BYTES * widest, "query gradients": FACTOR_BYTES * queries * gradients}
    if strategy is not None:
        sizes = factor_sizes(shapes, strategy, batch.sharing, factor_width)
        held |= {"eigenvectors": sizes["eigenvectors"], "lambda": sizes["lambda"], "sketches": FACTOR_BYTES * sketches}
        work = max(work, batch.rotated + batch.chunk)
    return Phase("scores" if queries else "self-influence", held | batch.parts(inputs=True, work=work))


def low_rank_work(shapes: Mapping[str, Shape], tokens: int, batch: int, queries: int, low_rank: int | None) -> int:
    """What a batch's scores on low-rank queries take between: tokens projected on both factors of every query, or
    queries multiplied out, whichever is cheaper to compute; in pieces."""
    most = 0
    for shape in shapes.values():
        if low_rank is not None and low_rank < min(shape):
            way = cheapest_way(queries, low_rank, batch, tokens // batch, *shape)
            between = 2 * tokens * queries * low_rank if way == "tokens" else (queries + batch) * shape.size
            most = max(most, FACTOR_BYTES * between)
    return min(PIECE_BYTES, most)


def gradient_size(shape: Shape, low_rank: int | None) -> int:
    """Numbers that a query's gradient of one module takes."""
    if low_rank is None or low_rank >= min(shape):
        return shape.size
    return low_rank * (shape.outputs + shape.inputs)


def weight_bytes(model: PreTrainedModel) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def fit_disk(shapes: Mapping[str, Shape], strategy: str, data_partitions: int) -> int:
    """Bytes of disk a fit takes at its peak, with the parts it can resume from."""
    sizes = factor_sizes(shapes, strategy)
    decomposing = data_partitions * sizes["covariances"] + sizes["eigenvectors"]
    assembling = 2 * sizes["eigenvectors"] + (data_partitions + 1) * sizes["lambda"]
    return max(decomposing, assembling)


def require_memory(phases: Sequence[Phase], room: int, hint: str) -> None:
    """Log what the phases need, and refuse when one does not fit into ``room`` bytes.

    Raises:
        ResourceError: naming the phase, what it needs, what there is, and ``hint``.
    """
    for phase in phases:
        logger.info("memory of %s", phase)
    worst = max(phases, key=lambda phase: phase.total, default=None)
    if worst is not None and worst.total > room:
        raise ResourceError(f"not enough memory for {worst}, but {readable(room)} are there", hint=hint)


def room(model: PreTrainedModel, processes: int) -> int:
    """Bytes that this process may hold with the weights it has: all its device has left, or its share of the machine's.

    Args:
        processes: those that compute on this machine, each with weights of its own.
    """
    device = next(model.parameters()).device
    there = available_memory(device) + weight_bytes(model)
    return there if device.type == "cuda" else there // processes


def available_memory(device: torch.device) -> int:
    """Bytes that can still be taken on ``device``; on the CPU within the container's limit."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = int(psutil.virtual_memory().available)
    try:
        limit, used = int(CGROUP_LIMIT.read_text()), int(CGROUP_USE.read_text())
    except (OSError, ValueError):  # no cgroup v2, or the limit is "max"
        return free
    return min(free, max(limit - used, 0))


def give_back_freed() -> None:
    """Hand freed memory back to the system, so that one phase's is not held through the next.

    After its first large block is freed, glibc takes blocks of that size from its heap, which shrinks only at its end.
    Elsewhere (musl, macOS) there is nothing to call and nothing happens.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
