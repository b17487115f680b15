"""Fitting influence factors: covariances, eigenvectors and lambda, in kronfluence's terms and on its engine.

EKFAC (George et al. 2018, arXiv:1806.03884; Grosse et al. 2023, arXiv:2308.03296) approximates the Fisher of each
tracked module in the eigenbasis of its activations' and output gradients' covariances:
``F ~ (Q_A x Q_S) diag(lambda) (Q_A x Q_S)^T``, lambda being the mean squared per-example gradient in that basis.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from kronfluence.arguments import FactorArguments
from kronfluence.factor.config import FactorConfig
from kronfluence.utils.constants import EIGENDECOMPOSITION_FACTOR_NAMES, LAMBDA_FACTOR_NAMES

from whence.config import Config
from whence.errors import DataError
from whence.files import digest_of, write_json
from whence.influence import layout
from whence.influence.fit import Factors, Fit
from whence.influence.info import FactorsInfo, FitIdentity, load_factors_info, require_same
from whence.influence.modules import coverage, select_modules
from whence.influence.parts import Parts
from whence.influence.plan import plan_fit
from whence.influence.tracked import module_shapes
from whence.models.language import LanguageModel
from whence.models.trained import TrainedModel
from whence.processes import ALONE, Team

logger = logging.getLogger(__name__)

WORK = "work"  # below the output while the fit is unfinished


def fit_factors(trained: TrainedModel, output: str | Path, team: Team = ALONE) -> FactorsInfo:
    """Fit the factors of ``config.factors`` on the first ``factors.num_samples`` training examples.

    ``output`` receives ``factors.json`` and kronfluence's own folder ``factors_<strategy>``, which plain kronfluence
    reads with ``Analyzer(output.name, model, task, output_dir=output.parent).load_all_factors("<strategy>")``.
    Covariances are deleted once they are decomposed. ``factors.json`` is written last: without it the folder is
    unfinished, and the same call goes on from the parts it finds there.

    Args:
        trained: a causal language model on the device to work on, unchanged afterwards, with its training examples; of
            its settings ``factors``, ``general`` and ``dataset.loss_on`` are read.
        output: folder to write to, made when missing.
        team: processes that share the parts of the data; what the others load must be equal to ``trained``.

    Raises:
        ConfigError: modules or layers match nothing, or cannot be tracked.
        DataError: there are no examples, or none has a token whose loss counts.
        ResourceError: too little memory or disk, before anything is fitted.
        FactorError: NaN or Inf in a factor, naming module and batch; or a module that has not seen every example once.
        ProcessError: a process of the team was killed.
    """
    output, started = Path(output), time.monotonic()
    (output / layout.INFO).unlink(missing_ok=True)
    fit, identity = open_fit(trained, output / WORK)
    seconds: dict[str, float] = {}
    parts = range(fit.plan.data_partitions)
    with _timed(seconds, "covariance"):
        team.share(parts, fit.covariances, fit_step, "covariances", output / WORK, ())
    with _timed(seconds, "eigendecomposition"):
        decompose(fit, team, output / WORK)
    with _timed(seconds, "lambda"):
        team.share(parts, fit.lambdas, fit_step, "lambdas", output / WORK, ())
    info = write_factors(fit, identity, output, seconds | {"total": time.monotonic() - started})
    fit.parts.clear()
    return info


def open_fit(trained: TrainedModel, work: Path, sources: Sequence[Path] = ()) -> tuple[Fit, FitIdentity]:
    """A fit ready to take its steps one by one, as :func:`fit_factors` takes all; errors are the same.

    Args:
        work: folder for the parts that its steps make.
        sources: such folders of other tasks of the same fit, whose parts are used.
    """
    config, examples = trained.config, trained.examples
    modules = select_modules(trained.model, config.factors)
    analysed = examples.subset(range(min(len(examples), config.factors.num_samples or len(examples))))
    if not len(analysed):
        raise DataError("there are no examples to fit factors on", hint="check the training data")
    trained = trained.with_examples(analysed)
    arguments = factor_arguments(config)
    shapes = module_shapes(trained.model, modules)
    identity = FitIdentity(
        strategy=arguments.strategy,
        modules=modules,
        shapes=shapes,
        num_examples=len(analysed),
        num_tokens=sum(analysed.lengths),
        model=trained.model_fingerprint,
        tokenizer=trained.tokenizer_fingerprint,
        data=analysed.fingerprint,
        loss_on=config.dataset.loss_on,
        arguments=arguments.to_dict(),
        seed=config.general.seed,
    )
    plan = plan_fit(trained, shapes, work)
    decided_by = {"fit": identity.fingerprint, "batches": plan.batches, "data_partitions": plan.data_partitions}
    return Fit(trained, arguments, modules, plan, Parts(work, digest_of(decided_by), sources)), identity


def decompose(fit: Fit, team: Team, work: Path, sources: Sequence[Path] = ()) -> None:
    """The eigendecompositions, a share of the modules in each process of ``team``; covariances are deleted then.

    Args:
        work, sources: as for :func:`open_fit`.
    """
    team.share(range(len(fit.modules)), fit.eigenvectors, fit_step, "eigenvectors", work, sources)
    if fit.needs.requires_eigendecomposition:
        fit.drop_covariances()


def fit_step(trained: TrainedModel, step: str, work: Path, sources: Sequence[Path], parts: Sequence[int]) -> None:
    """One step of a fit on ``parts`` of the data or of the modules, in a process of a team.

    The other arguments are those of :func:`open_fit`.
    """
    fit, _ = open_fit(trained, work, sources)
    getattr(fit, step)(parts)


def write_factors(fit: Fit, identity: FitIdentity, output: Path, seconds: dict[str, float]) -> FactorsInfo:
    """Put the finished parts of a fit together in ``output``; ``factors.json`` comes last.

    Raises:
        FactorError: a part is missing or damaged, or a module has not seen every example once.
    """
    folder = layout.factors_folder(output, identity.strategy)
    write_json(folder / layout.ARGUMENTS, identity.arguments)
    fit.assemble(folder)
    info = FactorsInfo(
        **identity.model_dump(),
        coverage=coverage(fit.model, fit.modules),
        shared_inputs=fit.sharing,
        size_bytes=sum(file.stat().st_size for file in folder.glob("*.safetensors")),
        seconds=seconds,
        versions=versions(),
    )
    write_json(output / layout.INFO, info.model_dump(mode="json"))
    return info


def versions() -> dict[str, str]:
    """Versions of the packages that a result hangs on."""
    return {package: version(package) for package in ("whence", "kronfluence", "torch", "transformers")}


@contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    seconds[phase] = time.monotonic() - started
    logger.info("%s took %.1f s", phase, seconds[phase])


def factor_arguments(config: Config) -> FactorArguments:
    """kronfluence's arguments for these settings: all examples given are used, factors are fp32."""
    return FactorArguments(
        strategy=config.factors.strategy,
        use_empirical_fisher=config.factors.use_empirical_fisher,
        covariance_max_examples=None,
        lambda_max_examples=None,
    )


def load_factors(folder: Path) -> Factors:
    """What scoring needs of the factors in ``folder``: by factor name, then by module.

    Raises:
        FactorError: a file is missing or damaged.
    """
    info = load_factors_info(folder)
    needs = FactorConfig.CONFIGS[info.strategy]
    names: list[str] = []
    if needs.requires_eigendecomposition_for_precondition:
        names += EIGENDECOMPOSITION_FACTOR_NAMES
    if needs.requires_lambda_matrices_for_precondition:
        names += LAMBDA_FACTOR_NAMES
    factors: Factors = {}
    for name in names:
        with layout.opened(layout.factor_file(layout.factors_folder(folder, info.strategy), name), "pt") as file:
            factors[name] = {module: file.get_tensor(module) for module in file.keys()}  # noqa: SIM118
    return factors


def require_matching_model(info: FactorsInfo, language: LanguageModel) -> None:
    """Refuse factors that were fitted on another model, tokenizer, loss mask or choice of modules.

    Raises:
        FactorError: naming what differs.
    """
    found = {
        "model": language.model_fingerprint,
        "modules": select_modules(language.model, language.config.factors),
        "loss_on": language.config.dataset.loss_on,
        "strategy": language.config.factors.strategy,
        "tokenizer": language.tokenizer_fingerprint,
    }
    expected = {name: getattr(info, name) for name in found}
    require_same(found, expected, "factors", "Fit the factors again for this model and these settings.")
