"""One fit in steps: sums of covariances, eigendecompositions, sums of lambda, and what is put together of them.

Every step leaves a finished part for each module and part of the data, and skips those it finds, so a fit that was
killed goes on where it was, with the memory of the day, and the parts of a phase can be made by several tasks.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import torch
from kronfluence.arguments import FactorArguments
from kronfluence.factor import fit_covariance_matrices_with_loader
from kronfluence.factor.config import FactorConfig
from kronfluence.factor.eigen import fit_lambda_matrices_with_loader
from kronfluence.module.utils import make_modules_partition
from kronfluence.utils.constants import (
    ACTIVATION_COVARIANCE_MATRIX_NAME,
    ACTIVATION_EIGENVALUES_NAME,
    ACTIVATION_EIGENVECTORS_NAME,
    EIGENDECOMPOSITION_FACTOR_NAMES,
    GRADIENT_COVARIANCE_MATRIX_NAME,
    GRADIENT_EIGENVALUES_NAME,
    GRADIENT_EIGENVECTORS_NAME,
    LAMBDA_FACTOR_NAMES,
    LAMBDA_MATRIX_NAME,
    NUM_LAMBDA_PROCESSED,
)
from safetensors.torch import save_file
from torch import nn

from whence.errors import FactorError
from whence.files import replacing
from whence.influence.activations import kept_per_token
from whence.influence.eigen import SIDES, symmetric_eigen
from whence.influence.layout import factor_file
from whence.influence.loader import Loader, finite_check
from whence.influence.memory import give_back_freed
from whence.influence.parts import Parts
from whence.influence.plan import FitPlan
from whence.influence.shared import share_inputs
from whence.influence.task import LanguageModelingTask
from whence.influence.tracked import engine_state, tracked_model, tracked_modules
from whence.models.trained import TrainedModel
from whence.progress import progress

logger = logging.getLogger(__name__)

Tensors = dict[str, torch.Tensor]
Factors = dict[str, Tensors]  # factor name -> module name -> tensor, as everywhere in kronfluence

OF_INPUTS = (ACTIVATION_EIGENVALUES_NAME, ACTIVATION_EIGENVECTORS_NAME)  # alike for modules that share an input
COVARIANCE_STREAM, LAMBDA_STREAM = 1, 2  # labels are sampled anew for lambda, as in kronfluence


class Fit:
    """The steps of one fit, to be taken in order: covariances, eigenvectors, lambdas, assemble."""

    def __init__(
        self,
        trained: TrainedModel,
        arguments: FactorArguments,
        modules: list[str],
        plan: FitPlan,
        parts: Parts,
    ) -> None:
        self.model, self.examples, self.seed = trained.model, trained.examples, trained.config.general.seed
        self.arguments, self.modules, self.plan, self.parts = arguments, modules, plan, parts
        self.needs = FactorConfig.CONFIGS[arguments.strategy]
        self.task = LanguageModelingTask(self.model, modules)
        self.sharing = kept_per_token(self.model, modules).sharing
        self.state = engine_state(trained.device)

    def covariances(self, data_parts: Iterable[int] | None = None) -> None:
        """Sum the covariances over every part of the data (or ``data_parts``), where they are not decomposed yet."""
        if not self.needs.requires_covariance_matrices:
            return
        needed = [module for module in self.modules if not self.parts.has(_eigen_part(module))]
        watched = (ACTIVATION_COVARIANCE_MATRIX_NAME, GRADIENT_COVARIANCE_MATRIX_NAME)
        for part, names in self._missing("covariance", data_parts, needed, self.plan.covariance_module_partitions):
            with self._tracked(names) as network:
                _, factors = fit_covariance_matrices_with_loader(
                    model=network,
                    state=self.state,
                    task=self.task,
                    loader=self._loader("covariance", part, COVARIANCE_STREAM, network, names, watched),
                    factor_args=self.arguments,
                    tracked_module_names=names,
                    disable_tqdm=True,
                )
            self._keep("covariance", part, names, factors)

    def eigenvectors(self, numbers: Iterable[int]) -> None:
        """Decompose the summed covariances of the modules of these numbers."""
        if not self.needs.requires_eigendecomposition:
            return
        modules = [self.modules[number] for number in numbers]
        for module in progress(modules, desc="eigendecomposition", unit="module"):
            if not self.parts.has(_eigen_part(module)):
                self.parts.put(_eigen_part(module), self._decompose(module))

    def drop_covariances(self) -> None:
        """Delete them, once all are decomposed."""
        for part, module in product(range(self.plan.data_partitions), self.modules):
            self.parts.drop(_part("covariance", part, module))

    def lambdas(self, data_parts: Iterable[int] | None = None) -> None:
        """Sum lambda over every part of the data (or ``data_parts``)."""
        if not self.needs.requires_lambda_matrices:
            return
        for part, names in self._missing("lambda", data_parts, self.modules, self.plan.lambda_module_partitions):
            with self._tracked(names) as network:
                if self.needs.requires_eigendecomposition_for_lambda:
                    self._install_eigenvectors(network, names)
                _, factors = fit_lambda_matrices_with_loader(
                    model=network,
                    state=self.state,
                    task=self.task,
                    loader=self._loader("lambda", part, LAMBDA_STREAM, network, names, (LAMBDA_MATRIX_NAME,)),
                    factor_args=self.arguments,
                    tracked_module_names=names,
                    disable_tqdm=True,
                )
            self._keep("lambda", part, names, factors)

    def assemble(self, folder: Path) -> None:
        """Write the factors in kronfluence's layout to ``folder``, one file at a time; the log names dead modules.

        Raises:
            FactorError: a part is missing or damaged, or a module has not seen every example once.
        """
        names: list[str] = []
        if self.needs.requires_eigendecomposition:
            names += EIGENDECOMPOSITION_FACTOR_NAMES
        if self.needs.requires_lambda_matrices:
            names += LAMBDA_FACTOR_NAMES
        lambdas, eigenvalues = {LAMBDA_MATRIX_NAME}, {ACTIVATION_EIGENVALUES_NAME, GRADIENT_EIGENVALUES_NAME}
        curvature = lambdas if self.needs.requires_lambda_matrices else eigenvalues
        dead: set[str] = set()
        for factor in names:
            tensors = {module: self._whole(factor, module) for module in self.modules}
            if factor == NUM_LAMBDA_PROCESSED:
                self._require_all_examples(tensors)
            if factor in curvature:
                dead |= {module for module, values in tensors.items() if not values.any()}
            _save(folder, factor, tensors)
        for module in sorted(dead):
            logger.warning("module %s has no gradient on any example; it contributes nothing to any score", module)

    def _require_all_examples(self, counts: Tensors) -> None:
        """Every module has seen every example once.

        Raises:
            FactorError: naming the first that has not.
        """
        expected = len(self.examples)
        for module, count in counts.items():
            if int(count) != expected:
                raise FactorError(
                    f"module {module} has seen {int(count)} examples of {expected}: it is used more or less than once "
                    "in a forward pass, so its gradients are not those of its weights",
                    hint="leave it out of factors.modules",
                )

    def _missing(
        self, phase: str, data_parts: Iterable[int] | None, modules: list[str], groups: int
    ) -> Iterator[tuple[int, list[str]]]:
        """Parts of the data, each with those modules of a group for which it is not done.

        A module's sums are the same whatever modules are summed beside it.
        """
        parts = range(self.plan.data_partitions) if data_parts is None else data_parts
        divided = make_modules_partition(modules, min(groups, len(modules))) if modules else []
        for part, names in product(parts, divided):
            missing = [name for name in names if not self.parts.has(_part(phase, part, name))]
            if missing:
                yield part, missing

    def _keep(self, phase: str, part: int, names: Sequence[str], factors: Factors) -> None:
        """Write what a pass summed, and let go of it: the next pass, or phase, needs its room."""
        for name in names:
            own = {factor: tensors.pop(name) for factor, tensors in factors.items() if name in tensors}
            self.parts.put(_part(phase, part, name), own)
        give_back_freed()

    def _decompose(self, module: str) -> Tensors:
        results: Tensors = {}
        for covariance_name, count_name, vectors_name, values_name in SIDES:
            if covariance_name == ACTIVATION_COVARIANCE_MATRIX_NAME and module in self.sharing:
                continue  # it is that of the module it shares its input with
            count = self._summed("covariance", count_name, module)
            covariance = self._summed("covariance", covariance_name, module)
            covariance = covariance.to(device=self.model.device, dtype=torch.float64) / int(count)
            values, vectors = symmetric_eigen(covariance, f"{covariance_name} of {module}")
            results[vectors_name] = vectors.to(device="cpu", dtype=torch.float32)
            results[values_name] = values.to(device="cpu", dtype=torch.float32)
        return results

    def _install_eigenvectors(self, network: nn.Module, names: Sequence[str]) -> None:
        """Straight into the modules: kronfluence's own way holds every factor twice."""
        tracked, of_inputs = tracked_modules(network), {}
        for module in names:
            owner = self.sharing.get(module, module)
            if owner not in of_inputs:
                of_inputs[owner] = self._whole(ACTIVATION_EIGENVECTORS_NAME, module).to(self.model.device)
            tracked[module].storage[ACTIVATION_EIGENVECTORS_NAME] = of_inputs[owner]
            tracked[module].storage[GRADIENT_EIGENVECTORS_NAME] = self._whole(GRADIENT_EIGENVECTORS_NAME, module)

    @contextmanager
    def _tracked(self, names: Sequence[str]) -> Iterator[nn.Module]:
        """The model, with these of its modules ready for a pass."""
        with tracked_model(self.model, self.task) as network:
            tracked = tracked_modules(network)
            share_inputs([tracked[name] for name in names], self.sharing)
            yield network

    def _whole(self, factor: str, module: str) -> torch.Tensor:
        if factor in OF_INPUTS:
            module = self.sharing.get(module, module)
        if factor in EIGENDECOMPOSITION_FACTOR_NAMES:
            return self.parts.tensor(_eigen_part(module), factor)
        return self._summed("lambda", factor, module)

    def _summed(self, phase: str, factor: str, module: str) -> torch.Tensor:
        """A factor of a module over all parts of the data, summed in their order."""
        names = [_part(phase, part, module) for part in range(self.plan.data_partitions)]
        total = self.parts.tensor(names[0], factor)
        for name in names[1:]:
            total += self.parts.tensor(name, factor)
        return total

    def _loader(
        self, phase: str, part: int, stream: int, network: nn.Module, names: Sequence[str], watched: Sequence[str]
    ) -> Loader:
        modules = tracked_modules(network)
        return Loader(
            self.examples,
            self.plan.batches[part :: self.plan.data_partitions],  # every part gets long and short ones
            key=None if self.arguments.use_empirical_fisher else (self.seed, stream),
            check=finite_check([modules[name] for name in names], watched),
            description=phase,
        )


def _save(folder: Path, factor: str, tensors: Tensors) -> None:
    """One file per factor, whole or not there."""
    with replacing(factor_file(folder, factor)) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)


def _part(phase: str, part: int, module: str) -> str:
    return f"{phase}_data_partition{part}_{module}"


def _eigen_part(module: str) -> str:
    return f"eigen_{module}"
