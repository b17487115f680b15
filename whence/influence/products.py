"""Per-example gradients in an eigenbasis, and sums of their squares, at the least cost.

An example's gradient of a linear layer is ``G = S^T A``, with its activations ``A`` ``[tokens, inputs]`` and output
gradients ``S`` ``[tokens, outputs]``. In the eigenbasis of the covariances it is
``Q_S^T G Q_A = (S Q_S)^T (A Q_A)``: each side can be rotated token by token before the product, or as a whole after
it. Per example, rotating the activations costs ``tokens x inputs^2`` before and ``outputs x inputs^2`` after;
rotating the output gradients costs ``tokens x outputs^2`` before and ``inputs x outputs^2`` after. The product costs
the same in any order, so each side is rotated first exactly where an example has fewer tokens than the other side is
wide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch

from whence.errors import FactorError

Rotate = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
CHUNK_BYTES = {"cpu": 1 << 24, "cuda": 1 << 29}  # of gradients held at once: the CPU's cache; enough work for a GPU


class Basis(NamedTuple):
    """Orthonormal columns to express gradients in; None is the basis they are in."""

    left: torch.Tensor | None  # [outputs, outputs]
    right: torch.Tensor | None  # [inputs, inputs]

    def back(self, gradients: torch.Tensor) -> torch.Tensor:
        """From this basis into the one of the weights, ``[..., outputs, inputs]``."""
        if self.right is not None:
            gradients = gradients @ self.right.T
        return gradients if self.left is None else self.left @ gradients


class Order(NamedTuple):
    """Which sides are rotated token by token, before the product."""

    left_first: bool
    right_first: bool


def cheapest_order(tokens: int, outputs: int, inputs: int) -> Order:
    """The order of least operations for examples of ``tokens`` tokens."""
    return Order(left_first=tokens < inputs, right_first=tokens < outputs)


def by_example(values: torch.Tensor, shape: Sequence[int], module: str) -> torch.Tensor:
    """What a module is handed, or gives back, example by example: ``[batch, tokens, width]``.

    Args:
        values: ``[batch, ..., width]``, or ``[batch * tokens, width]`` from a model that puts all tokens in one row.
        shape: ``(batch, tokens)`` of the model's own input.
        module: its name.

    Raises:
        FactorError: neither, as in an expert that sees only the tokens chosen for it.
    """
    batch, tokens = shape
    if values.ndim > 2 and len(values) == batch:
        return values.reshape(batch, -1, values.shape[-1])
    if values.ndim == 2 and len(values) == batch * tokens:
        return values.reshape(batch, tokens, -1)
    raise FactorError(
        f"module {module} works on values of shape {tuple(values.shape)} where the batch has {batch} examples of "
        f"{tokens} tokens, so which of them belong to which example is not known",
        hint="leave it out of factors.modules",
    )


def with_bias(activations: torch.Tensor) -> torch.Tensor:
    """A bias is the weight of one more input that is always 1: ``[batch, tokens, inputs + 1]``."""
    return torch.cat([activations, activations.new_ones(*activations.shape[:-1], 1)], dim=-1)


def gradient_chunks(
    activations: torch.Tensor,
    gradients: torch.Tensor,
    basis: Basis,
    chunk: int | None = None,
    rotate: Rotate = torch.matmul,
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Per-example gradients in ``basis``, a few examples at a time.

    Args:
        activations: ``[batch, tokens, inputs]``, with the bias's ones where there is a bias.
        gradients: ``[batch, tokens, outputs]``, zero where the loss does not reach (padding).
        basis: what to express them in.
        chunk: examples at a time; None: as many as :data:`CHUNK_BYTES` holds.
        rotate: how to come by ``activations @ basis.right``, where another module may have it already.

    Yields:
        The examples' slice of the batch, and their gradients ``[examples, outputs, inputs]`` in fp32 (fp64 where the
        input is); valid until the next ones are asked for.
    """
    batch, tokens, inputs = activations.shape
    outputs = gradients.shape[-1]
    order = cheapest_order(tokens, outputs, inputs)
    if basis.left is not None and order.left_first:
        gradients = gradients @ basis.left
    if basis.right is not None and order.right_first:
        activations = rotate(activations, basis.right)
    after = Basis(
        None if order.left_first else basis.left,
        None if order.right_first else basis.right,
    )
    held = CHUNK_BYTES.get(activations.device.type, CHUNK_BYTES["cuda"])
    size = chunk or max(1, held // (4 * outputs * inputs))
    for start in range(0, batch, size):
        part = slice(start, min(start + size, batch))
        product = wide_bmm(gradients[part].transpose(1, 2), activations[part])
        if after.right is not None:
            product = product @ after.right.to(product.dtype)
        if after.left is not None:
            product = after.left.to(product.dtype).T @ product
        yield part, product


def add_squares(
    total: torch.Tensor,
    activations: torch.Tensor,
    gradients: torch.Tensor,
    basis: Basis,
    rotate: Rotate = torch.matmul,
) -> None:
    """Add every example's squared gradient in ``basis`` to ``total`` ``[outputs, inputs]``."""
    # On the CPU one example at a time: its product is still in the cache when it is squared.
    chunk = 1 if total.device.type == "cpu" else None
    for _, product in gradient_chunks(activations, gradients, basis, chunk, rotate):
        if len(product) == 1:
            total.addcmul_(product[0], product[0])
        else:
            total.add_(product.square_().sum(dim=0))


def add_outer(total: torch.Tensor, rows: torch.Tensor, scale: float = 1.0) -> None:
    """Add ``scale * rows^T rows`` to the upper triangle of ``total`` ``[width, width]``.

    The product is symmetric, so only panels on and above the diagonal are computed, 5/8 of the operations with four
    panels; :func:`symmetric` fills in the rest. ``total`` is fp32 (or fp64) whatever the precision of ``rows``: summed
    in bfloat16, a covariance is lost to rounding after some hundred batches.
    """
    width = len(total)
    panel = -(-width // max(1, min(4, width // 64)))
    for start in range(0, width, panel):
        left, right = rows[:, start : start + panel].T, rows[:, start:]
        if rows.dtype == total.dtype:
            total[start : start + panel, start:].addmm_(left, right, alpha=scale)
        else:
            total[start : start + panel, start:].add_(_wide_mm(left, right).to(total.dtype), alpha=scale)


def symmetric(total: torch.Tensor) -> torch.Tensor:
    """The symmetric matrix whose upper triangle is that of ``total``."""
    return total.triu() + total.triu(diagonal=1).T


def wide_bmm(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Batched product whose result is not rounded to bfloat16: ``[b, n, k] @ [b, k, m]``, fp32 for low precision."""
    if left.dtype not in (torch.bfloat16, torch.float16):
        return torch.bmm(left, right)
    if left.device.type == "cuda":
        return torch.bmm(left, right, out_dtype=torch.float32)
    return torch.bmm(left.float(), right.float())


def _wide_mm(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    if left.device.type == "cuda" and left.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(left, right, out_dtype=torch.float32)
    return torch.mm(left.float(), right.float())


def wide(dtype: torch.dtype) -> torch.dtype:
    """The precision to sum in what is computed in ``dtype``."""
    return dtype if dtype == torch.float64 else torch.float32


def live_tokens(gradients: torch.Tensor) -> slice:
    """The span of tokens in which some example's output gradient ``[batch, tokens, outputs]`` is not zero.

    One token at least, also in a dead module: products of none are no products to every kernel.
    """
    live = gradients.ne(0).any(dim=2).any(dim=0).nonzero()
    return slice(int(live[0]), int(live[-1]) + 1) if len(live) else slice(0, 1)
