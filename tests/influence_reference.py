"""EKFAC scores by autograd and plain linear algebra: what the influence tests compare with."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from influence_helpers import trained
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.utils.dataset import DataLoaderKwargs
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from whence.config import Config
from whence.data.tokenization import IGNORED, TokenizedExamples
from whence.influence.factors import fit_factors
from whence.influence.fit import COVARIANCE_STREAM, LAMBDA_STREAM
from whence.influence.loader import uniforms_of
from whence.influence.scores import pairwise_scores
from whence.influence.task import LanguageModelingTask

RELATIVE = 1e-4
Gradients = dict[str, torch.Tensor]
Process = Callable[[str, torch.Tensor], torch.Tensor]


class Reference:
    """EKFAC as in the papers, one example at a time, with nothing of kronfluence's or Whence's engine."""

    def __init__(self, model: PreTrainedModel, modules: list[str], process: Process | None = None) -> None:
        """``process`` is applied to every example's gradient, given the module's name."""
        self.model, self.modules = model, modules
        self.process = process or (lambda name, gradient: gradient)

    def run(
        self, input_ids: list[int], labels: list[int], uniforms: torch.Tensor | None = None
    ) -> tuple[Gradients, Gradients, Gradients]:
        """Weight gradients (with the bias as last column), inputs and output gradients of every module."""
        inputs, outputs, hooks = {}, {}, []
        for name in self.modules:

            def keep(_, args, output, name=name):  # type: ignore[no-untyped-def]
                output.retain_grad()
                inputs[name], outputs[name] = args[0].detach().reshape(-1, args[0].shape[-1]), output

            hooks.append(self.model.get_submodule(name).register_forward_hook(keep))
        self.model.zero_grad()
        logits = self.model(torch.tensor([input_ids])).logits[0, :-1]
        targets = torch.tensor(labels[1:])
        counted = targets != IGNORED
        logits, targets = logits[counted], targets[counted]
        if uniforms is not None:
            shares = logits.detach().softmax(-1).numpy()
            drawn = [
                int(np.searchsorted(np.cumsum(row), u, side="right"))
                for row, u in zip(shares, uniforms[1:][counted].numpy(), strict=True)
            ]
            targets = torch.tensor(drawn)
        functional.cross_entropy(logits, targets, reduction="sum").backward()
        for hook in hooks:
            hook.remove()
        weights = {}
        for name in self.modules:
            module = self.model.get_submodule(name)
            weights[name] = module.weight.grad.clone()
            if isinstance(module, Conv1D):  # which stores its weight transposed
                weights[name] = weights[name].T
            if getattr(module, "bias", None) is not None:
                weights[name] = torch.cat([weights[name], module.bias.grad.clone()[:, None]], 1)
                ones = torch.ones(len(input_ids), 1, dtype=inputs[name].dtype)
                inputs[name] = torch.cat([inputs[name], ones], 1)
        weights = {name: self.process(name, gradient) for name, gradient in weights.items()}
        return weights, inputs, {name: outputs[name].grad.flatten(end_dim=-2) for name in self.modules}

    def gradients(self, examples: TokenizedExamples) -> list[Gradients]:
        return [self.run(**examples[index])[0] for index in range(len(examples))]

    def inverse_ekfac(self, examples: TokenizedExamples, seed: int | None):  # type: ignore[no-untyped-def]
        """A function that applies the damped inverse; labels are sampled when a seed is given."""
        passes = []
        for stream in (COVARIANCE_STREAM, LAMBDA_STREAM):
            runs = []
            for index, length in enumerate(examples.lengths):
                uniforms = None if seed is None else uniforms_of(index, length, (seed, stream))
                runs.append(self.run(**examples[index], uniforms=uniforms))
            passes.append(runs)
        bases, curvature = {}, {}
        for name in self.modules:
            activations = torch.cat([run[1][name] for run in passes[0]])
            outputs = torch.cat([run[2][name] for run in passes[0]])
            left = torch.linalg.eigh(outputs.T @ outputs / len(outputs)).eigenvectors
            right = torch.linalg.eigh(activations.T @ activations / len(activations)).eigenvectors
            rotated = torch.stack([left.T @ run[0][name] @ right for run in passes[1]])
            bases[name], curvature[name] = (left, right), rotated.square().mean(0)

        def apply(gradient: Gradients, name: str, damping: float | None) -> torch.Tensor:
            left, right = bases[name]
            added = 0.1 * curvature[name].mean() if damping is None else damping
            return left @ ((left.T @ gradient[name] @ right) / (curvature[name] + added)) @ right.T

        return apply


def expected_scores(reference: Reference, queries: TokenizedExamples, train: TokenizedExamples) -> torch.Tensor:
    """``[queries, train]`` by the empirical Fisher and the default damping."""
    inverse = reference.inverse_ekfac(train, None)
    asked, seen = reference.gradients(queries), reference.gradients(train)
    scores = [[sum((inverse(q, n, None) * z[n]).sum() for n in reference.modules) for z in seen] for q in asked]
    return torch.tensor(scores)


def close(found: torch.Tensor, expected: torch.Tensor, relative: float = RELATIVE) -> None:
    torch.testing.assert_close(found.double(), expected.double(), rtol=relative, atol=relative * float(expected.std()))


def fit_and_score(
    model: PreTrainedModel, config: Config, folder: Path, queries: TokenizedExamples, train: TokenizedExamples
) -> torch.Tensor:
    fit_factors(trained(model, train, config), folder)
    return pairwise_scores(trained(model, train, config), folder, queries, folder)


def stock_analyzer(model: PreTrainedModel, modules: list[str], folder: Path, **loading: Any) -> Analyzer:
    """kronfluence as its documentation shows it, with nothing of Whence's engine, on the factors in ``folder``.

    ``loading`` are settings of its data loaders.
    """
    gc.freeze()  # it collects garbage at every step, and the tests' imports alone are a million objects
    task = LanguageModelingTask(model, modules)
    prepared = prepare_model(model, task)
    analyzer = Analyzer(folder.name, prepared, task, cpu=True, output_dir=str(folder.parent), disable_tqdm=True)
    analyzer.set_dataloader_kwargs(DataLoaderKwargs(**loading))
    return analyzer
