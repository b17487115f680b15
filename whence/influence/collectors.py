"""What is taken from one forward and backward pass over examples: everything that is wanted, from the same gradients.

A pass shows every tracked module's activations and output gradients, batch by batch, to each of its collectors once.
In the eigenbasis an example's gradient of a module is ``g = Q_S^T (S^T A) Q_A``, and *whitened* it is
``u = g / sqrt(lambda + damping)``, so that the score of two examples is ``<u_q, u_t>``, summed over modules.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from kronfluence.module.tracked_module import ModuleMode
from kronfluence.utils.constants import LAMBDA_MATRIX_NAME
from torch import nn
from torch.nn.functional import normalize
from transformers import PreTrainedModel

from whence.influence.linear import FastLinear
from whence.influence.loader import Loader
from whence.influence.products import Basis, gradient_chunks
from whence.influence.queries import PLAIN, QueryGradients, cut_to_rank, query_scores
from whence.influence.sketch import Sketch
from whence.influence.task import LanguageModelingTask
from whence.influence.tracked import tracked_modules
from whence.influence.trackers import basis_of

OWN, NORMS, CODES, SKETCHES, VECTORS = "self", "norms", "codes", "sketches", "vectors"  # [examples, ...]
SCORES, PRODUCTS, COSINES = "scores", "products", "cosines"  # [examples, queries]


class Collector:
    """Takes what it wants of each module in the backward pass of a batch."""

    every_token = False  # whether it wants those tokens, too, that the loss does not reach

    sees_states = False  # whether it wants the states of the last layer

    def begin(self, indices: Sequence[int], mask: torch.Tensor) -> None:
        """A batch of these examples comes; ``mask`` ``[batch, tokens]``, on the device, is 1 at their tokens."""

    def see(self, states: torch.Tensor) -> None:
        """Take in the states ``[batch, tokens, width]`` that the last layer hands to the output layer."""

    def take(self, module: FastLinear, activations: torch.Tensor, gradients: torch.Tensor) -> None:
        """Take in ``[batch, tokens, inputs]`` (with the bias's ones) and ``[batch, tokens, outputs]`` of one module."""

    def results(self) -> dict[str, torch.Tensor]:
        """What the batch gave, on the CPU, its examples along dimension 0."""
        raise NotImplementedError


class ScoreCollector(Collector):
    """Scores of the examples on all queries that are held: ``scores`` ``[examples, queries]``.

    Where plain query gradients are held behind the preconditioned ones, also the ``products`` of plain gradients.
    """

    def __init__(self, gradients: Mapping[str, QueryGradients], queries: int) -> None:
        """``gradients`` are those of ``queries`` queries by module, as :func:`query_scores` takes them."""
        self.gradients, self.queries = gradients, queries

    def begin(self, indices: Sequence[int], mask: torch.Tensor) -> None:
        self.total: torch.Tensor | None = None

    def take(self, module: FastLinear, activations: torch.Tensor, gradients: torch.Tensor) -> None:
        scores = query_scores(self.gradients[module.name], activations, gradients)
        self.total = scores if self.total is None else self.total.add_(scores)

    def results(self) -> dict[str, torch.Tensor]:
        assert self.total is not None
        return dict(zip((SCORES, PRODUCTS), self.total.T.cpu().split(self.queries, dim=1), strict=False))


class EmbeddingCollector(Collector):
    """Means of the last layer's states over an example's tokens, of length 1: ``vectors`` ``[examples, width]`` fp64.

    With those of ``queries``, their products with these instead: ``cosines`` ``[examples, queries]``.
    """

    sees_states = True

    def __init__(self, queries: torch.Tensor | None = None) -> None:
        self.queries = queries

    def begin(self, indices: Sequence[int], mask: torch.Tensor) -> None:
        self.mask = mask

    def see(self, states: torch.Tensor) -> None:
        sums = (self.mask.unsqueeze(1).float() @ states.float()).squeeze(1)
        self.vectors = normalize((sums / self.mask.sum(dim=1, keepdim=True)).double())

    def results(self) -> dict[str, torch.Tensor]:
        vectors = self.vectors.cpu()
        return {VECTORS: vectors} if self.queries is None else {COSINES: (vectors @ self.queries.T).float()}


class Whitening:
    """What whitens a module's gradients: its eigenbasis, and the root of its inverse damped lambda.

    The root carries the signs of the ``sketch``, if there is one. Factors are read when they are first needed and,
    where they are ``held``, kept for the next batch in ``dtype``.
    """

    def __init__(self, sketch: Sketch | None = None, held: bool = True, dtype: torch.dtype = torch.float32) -> None:
        self.sketch, self.held, self.dtype = sketch, held, dtype
        self._known: dict[str, tuple[Basis, torch.Tensor | None]] = {}
        self._rights: dict[str, torch.Tensor | None] = {}  # once for modules that see the same input

    def of(self, module: FastLinear, shape: tuple[int, int], device: torch.device) -> tuple[Basis, torch.Tensor | None]:
        """Of a module whose gradients have this ``shape``; the root is None where nothing is divided by."""
        if module.name in self._known:
            return self._as_used(*self._known[module.name])
        factors = module.prepared_factors(device)
        inverse = factors.pop(LAMBDA_MATRIX_NAME, None)
        root = None if inverse is None else inverse.sqrt_().view(shape)
        if self.sketch is not None:
            signs = self.sketch.signs(module.name, shape).to(device)
            root = signs if root is None else root.mul_(signs)
        basis = basis_of(factors)
        if self.held:
            left, right, root = (None if tensor is None else tensor.to(self.dtype) for tensor in (*basis, root))
            basis = Basis(left, self._rights.setdefault(module.input_of, right))
            self._known[module.name] = basis, root
        return self._as_used(basis, root)

    def _as_used(self, basis: Basis, root: torch.Tensor | None) -> tuple[Basis, torch.Tensor | None]:
        """In the precision that is computed in; the same tensors where that is the one they are held in."""
        left, right, root = (None if tensor is None else tensor.float() for tensor in (*basis, root))
        return Basis(left, right), root


class WhitenedCollector(Collector):
    """Of whitened gradients their squared length, which is self-influence, and their sketches, where there are any.

    Gives ``self`` ``[examples]``; ``norms``, the squared lengths before whitening; and ``codes`` ``[examples, bytes]``
    uint8 or, not ``coded``, the ``sketches`` ``[examples, dimensions]`` fp32 themselves.
    """

    def __init__(self, whitening: Whitening, coded: bool = True) -> None:
        self.whitening, self.sketch, self.coded = whitening, whitening.sketch, coded

    def begin(self, indices: Sequence[int], mask: torch.Tensor) -> None:
        self.own, self.norms = torch.zeros(2, len(indices), device=mask.device)
        dimensions = self.sketch.dimensions if self.sketch else 0
        self.sketches = torch.zeros(len(indices), dimensions, device=mask.device)

    def take(self, module: FastLinear, activations: torch.Tensor, gradients: torch.Tensor) -> None:
        shape = gradients.shape[-1], activations.shape[-1]
        basis, root = self.whitening.of(module, shape, self.own.device)
        for part, piece in gradient_chunks(activations, gradients, basis, rotate=module.rotated):
            self.norms[part] += torch.linalg.vector_norm(piece, dim=(1, 2)).square_()
            whitened = piece if root is None else piece.mul_(root)
            flat = whitened.flatten(1)
            self.own[part] += torch.linalg.vector_norm(flat, dim=1).square_()
            if self.sketch is not None:
                self.sketch.add(self.sketches[part], flat, module.name)
            self.precondition(module.name, part, whitened, basis, root)

    def precondition(
        self, module: str, part: slice, whitened: torch.Tensor, basis: Basis, root: torch.Tensor | None
    ) -> None:
        """Go on with whitened gradients ``[examples, outputs, inputs]`` of part of a batch."""

    def results(self) -> dict[str, torch.Tensor]:
        found = {OWN: self.own.cpu(), NORMS: self.norms.cpu()}
        if self.sketch is not None:
            sketches = self.sketch.turned(self.sketches).cpu()
            found |= {CODES: self.sketch.encode(sketches)} if self.coded else {SKETCHES: sketches}
        return found


class QueryCollector(WhitenedCollector):
    """Of queries the same, their sketches as they are, and their preconditioned gradients in the basis of the weights.

    Attributes:
        gradients: by module, in the order of the pass, as :func:`whence.influence.queries.query_scores` takes them.
    """

    def __init__(
        self,
        whitening: Whitening,
        queries: int,
        rank: int | None = None,
        plain: bool = False,
        seeds: Iterable[int] = (),
    ) -> None:
        """Prepare for a pass over all queries.

        Args:
            queries: how many will come.
            rank: to cut the gradients of a module to, where they have more.
            plain: also hold the gradients as they are, behind the preconditioned ones.
            seeds: of the random choices in every batch, when gradients are cut.
        """
        super().__init__(whitening, coded=False)
        self.queries, self.rank, self.plain, self.seeds = queries, rank, plain, iter(seeds)
        self.gradients: dict[str, QueryGradients] = {}
        self.start = self.end = 0  # of the batch among the queries

    def begin(self, indices: Sequence[int], mask: torch.Tensor) -> None:
        super().begin(indices, mask)
        self.start, self.end = self.end, self.end + len(indices)
        self.seed = next(self.seeds, 0)

    def take(self, module: FastLinear, activations: torch.Tensor, gradients: torch.Tensor) -> None:
        if self.rank is not None:
            torch.manual_seed(self.seed)  # for every module anew, as plain gradients are cut between
        super().take(module, activations, gradients)
        for part, piece in gradient_chunks(activations, gradients, PLAIN) if self.plain else ():
            self._hold(module.name, self.queries + part.start, piece)

    def precondition(
        self, module: str, part: slice, whitened: torch.Tensor, basis: Basis, root: torch.Tensor | None
    ) -> None:
        # The signs cancel out. Put away piece by piece: a whole batch's gradients would take as much memory again.
        self._hold(module, part.start, basis.back(whitened if root is None else whitened * root))

    def _hold(self, module: str, place: int, gradients: torch.Tensor) -> None:
        """Put gradients into memory taken once for all that are expected."""
        cut = cut_to_rank(gradients, self.rank)
        new = cut if isinstance(cut, list) else [cut]
        if module not in self.gradients:
            room = [part.new_empty((1 + self.plain) * self.queries, *part.shape[1:]) for part in new]
            self.gradients[module] = room if isinstance(cut, list) else room[0]
        held = self.gradients[module]
        for whole, part in zip(held if isinstance(held, list) else [held], new, strict=True):
            whole[self.start + place : self.start + place + len(part)] = part


def collect(
    network: PreTrainedModel, task: LanguageModelingTask, loader: Loader, collectors: Sequence[Collector]
) -> dict[str, torch.Tensor]:
    """One forward and backward pass over the examples of ``loader``.

    Args:
        network: a model with tracked modules.

    Returns:
        The results of all collectors, in the order of the loader's examples.
    """
    device, found = network.device, defaultdict(list)
    for module in tracked_modules(network).values():
        module.collectors = collectors
        module.set_mode(ModuleMode.PAIRWISE_SCORE)
    with _seen(network, [collector for collector in collectors if collector.sees_states]):
        for indices, batch in zip(loader.batches, loader, strict=True):
            network.zero_grad(set_to_none=True)
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            for collector in collectors:
                collector.begin(indices, batch["attention_mask"])
            task.compute_train_loss(batch, network).backward()
            for collector in collectors:
                for name, tensor in collector.results().items():
                    found[name].append(tensor)
    return {name: torch.cat(tensors) for name, tensors in found.items()}


@contextmanager
def _seen(network: PreTrainedModel, collectors: Sequence[Collector]) -> Iterator[None]:
    """Show the states that the last layer hands to the output layer to these collectors."""

    def show(module: nn.Module, inputs: Any, output: Any) -> None:
        for collector in collectors:
            collector.see(output.last_hidden_state.detach())

    decoder = network.get_decoder() if hasattr(network, "get_decoder") else network.base_model
    hook = decoder.register_forward_hook(show) if collectors else None
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()
