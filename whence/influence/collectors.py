"""What is taken from one forward and backward pass over examples: everything that is wanted, from the same gradients.

A pass shows every tracked module's activations and output gradients, batch by batch, to each of its collectors once.
In the eigenbasis an example's gradient of a module is ``g = Q_S^T (S^T A) Q_A``, and *whitened* it is
``u = g / sqrt(lambda + damping)``, so that the score of two examples is ``<u_q, u_t>``, summed over modules.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from kronfluence.module.tracked_module import ModuleMode
from kronfluence.utils.constants import LAMBDA_MATRIX_NAME
from torch import nn

from whence.influence.linear import FastLinear
from whence.influence.loader import Loader
from whence.influence.products import Basis, gradient_chunks
from whence.influence.queries import QueryGradients, query_scores
from whence.influence.sketch import Sketch
from whence.influence.task import LanguageModelingTask
from whence.influence.tracked import tracked_modules
from whence.influence.trackers import basis_of

SCORES, OWN, NORMS, CODES, SKETCHES = "scores", "self", "norms", "codes", "sketches"  # examples along dimension 0


class Collector:
    """Takes what it wants of each module in the backward pass of a batch."""

    every_token = False  # whether it wants those tokens, too, that the loss does not reach

    def begin(self, indices: Sequence[int], tokens: int, device: torch.device) -> None:
        """A batch of these examples comes, padded to ``tokens``."""

    def take(self, module: FastLinear, activations: torch.Tensor, gradients: torch.Tensor) -> None:
        """Take in ``[batch, tokens, inputs]`` (with the bias's ones) and ``[batch, tokens, outputs]`` of one module."""
        raise NotImplementedError

    def results(self) -> dict[str, torch.Tensor]:
        """What the batch gave, on the CPU, its examples along dimension 0."""
        raise NotImplementedError


class ScoreCollector(Collector):
    """Scores of the examples on all queries that are held: ``scores`` ``[examples, queries]``."""

    def __init__(self, queries: Mapping[str, QueryGradients]) -> None:
        """``queries`` are preconditioned query gradients by module, as :func:`query_scores` takes them."""
        self.queries = queries

    def begin(self, indices: Sequence[int], tokens: int, device: torch.device) -> None:
        self.total: torch.Tensor | None = None

    def take(self, module: FastLinear, activations: torch.Tensor, gradients: torch.Tensor) -> None:
        scores = query_scores(self.queries[module.name], activations, gradients)
        self.total = scores if self.total is None else self.total.add_(scores)

    def results(self) -> dict[str, torch.Tensor]:
        assert self.total is not None
        return {SCORES: self.total.T.cpu()}


class WhitenedCollector(Collector):
    """Of whitened gradients their squared length, which is self-influence, and with ``sketch`` their sketches.

    Gives ``self`` ``[examples]``; ``norms``, the squared lengths before whitening; and ``codes`` ``[examples, bytes]``
    uint8 or, not ``coded``, the ``sketches`` ``[examples, dimensions]`` fp32 themselves. The factors of all modules are
    held, as every batch needs them.
    """

    def __init__(self, sketch: Sketch | None = None, coded: bool = True) -> None:
        self.sketch, self.coded = sketch, coded
        self.factors: dict[str, tuple[Basis, torch.Tensor | None]] = {}

    def begin(self, indices: Sequence[int], tokens: int, device: torch.device) -> None:
        self.own, self.norms = torch.zeros(2, len(indices), device=device)
        self.sketches = torch.zeros(len(indices), self.sketch.dimensions if self.sketch else 0, device=device)

    def take(self, module: FastLinear, activations: torch.Tensor, gradients: torch.Tensor) -> None:
        basis, root = self._whitening(module, (gradients.shape[-1], activations.shape[-1]))
        for part, piece in gradient_chunks(activations, gradients, basis):
            self.norms[part] += torch.linalg.vector_norm(piece, dim=(1, 2)).square_()
            self.add(module.name, part, piece if root is None else piece.mul_(root))

    def add(self, module: str, part: slice, whitened: torch.Tensor) -> None:
        """Take in whitened gradients ``[examples, outputs, inputs]`` of part of a batch, with the sketch's signs."""
        flat = whitened.flatten(1)
        self.own[part] += torch.linalg.vector_norm(flat, dim=1).square_()
        if self.sketch is not None:
            self.sketch.add(self.sketches[part], flat, module)

    def results(self) -> dict[str, torch.Tensor]:
        found = {OWN: self.own.cpu(), NORMS: self.norms.cpu()}
        if self.sketch is not None:
            sketches = self.sketch.turned(self.sketches).cpu()
            found |= {CODES: self.sketch.encode(sketches)} if self.coded else {SKETCHES: sketches}
        return found

    def _whitening(self, module: FastLinear, shape: tuple[int, int]) -> tuple[Basis, torch.Tensor | None]:
        """The eigenbasis of a module, and the root of its inverse damped lambda with the sketch's signs."""
        if module.name not in self.factors:
            factors = module.prepared_factors(self.own.device)
            inverse = factors.pop(LAMBDA_MATRIX_NAME, None)
            root = None if inverse is None else inverse.sqrt_().view(shape)
            if self.sketch is not None:
                signs = self.sketch.signs(module.name, shape).to(self.own.device)
                root = signs if root is None else root.mul_(signs)
            self.factors[module.name] = basis_of(factors), root
        return self.factors[module.name]


class QueryCollector(WhitenedCollector):
    """Of one query the sketch, and its preconditioned gradient in the basis of the weights.

    Attributes:
        gradients: by module, as :func:`whence.influence.queries.query_scores` takes them.
    """

    def __init__(self, sketch: Sketch) -> None:
        super().__init__(sketch, coded=False)

    def begin(self, indices: Sequence[int], tokens: int, device: torch.device) -> None:
        super().begin(indices, tokens, device)
        self.gradients: dict[str, torch.Tensor] = {}

    def add(self, module: str, part: slice, whitened: torch.Tensor) -> None:
        super().add(module, part, whitened)
        basis, root = self.factors[module]
        self.gradients[module] = basis.back(whitened if root is None else whitened * root)  # no sign is left


def collect(
    network: nn.Module, task: LanguageModelingTask, loader: Loader, collectors: Sequence[Collector]
) -> dict[str, torch.Tensor]:
    """One forward and backward pass over the examples of ``loader``.

    Args:
        network: a model with tracked modules.

    Returns:
        The results of all collectors, in the order of the loader's examples.
    """
    device, found = next(network.parameters()).device, defaultdict(list)
    for module in tracked_modules(network).values():
        module.collectors = collectors
        module.set_mode(ModuleMode.PAIRWISE_SCORE)
    for indices, batch in zip(loader.batches, loader, strict=True):
        network.zero_grad(set_to_none=True)
        for collector in collectors:
            collector.begin(indices, batch["input_ids"].shape[1], device)
        task.compute_train_loss({name: tensor.to(device) for name, tensor in batch.items()}, network).backward()
        for collector in collectors:
            for name, tensor in collector.results().items():
                found[name].append(tensor)
    return {name: torch.cat(tensors) for name, tensors in found.items()}
