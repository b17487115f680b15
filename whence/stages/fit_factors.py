"""Stage ``fit_factors``: fit the influence factors of the fine-tuned model on the analysis samples.

Where several tasks share the fit, each phase is one or more tasks of this stage, which take the parts that others have
made: ``covariance`` (every task its share of the data), ``eigenvectors`` (one task), ``lambda`` (every task its share),
and one without a phase that puts the factors together. They equal those of a single task to the last bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from whence.running import artifacts
from whence.running.declaration import TASK, TOKENS, Artifact, Kind, Parameter, Stage, Work

if TYPE_CHECKING:
    from whence.influence.info import FactorsInfo

EIGENVECTORS = Artifact("eigenvectors", Kind.ARTIFACT, "What the phase eigenvectors has made.", optional=True)
PARTS = Artifact(
    "parts", Kind.ARTIFACT, "What every task of the phase before this one has made.", optional=True, many=True
)
PHASE = Parameter("phase", str, "Only this phase: covariance, eigenvectors or lambda; empty: what is missing yet.", "")


def compute(work: Work) -> dict[str, float]:
    from whence.influence.factors import decompose, fit_factors, fit_step, open_fit, write_factors
    from whence.influence.plan import share
    from whence.models.trained import TrainedModel

    folder, phase = work.outputs["factors"], work.parameters["phase"]
    folder.mkdir(parents=True, exist_ok=True)
    sources = [*work.lists["parts"], *([work.inputs["eigenvectors"]] if "eigenvectors" in work.inputs else [])]
    with TrainedModel.load_team(work.inputs["model"], work.inputs["train_data"], work.config) as (trained, team):
        if not phase and not sources:
            return _metrics(fit_factors(trained, folder, team))
        fit, identity = open_fit(trained, folder if phase else work.scratch, sources)
        if not phase:
            return _metrics(write_factors(fit, identity, folder, seconds={}))
        if phase == "eigenvectors":
            decompose(fit, team, folder, sources)
            return {"modules": float(len(identity.modules))}
        parts = share(fit.plan.data_partitions, work.parameters["task"], work.config.general.parallel_tasks or 1)
        step = {"covariance": "covariances", "lambda": "lambdas"}[phase]
        team.share(parts, getattr(fit, step), fit_step, step, folder, sources)
        return {"data_partitions": float(len(parts))}


def _metrics(info: FactorsInfo) -> dict[str, float]:
    return {
        "modules": float(len(info.modules)),
        "examples": float(info.num_examples),
        "bytes": float(info.size_bytes),
    }


def record(work: Work) -> None:
    if not work.parameters["phase"]:  # parts are kept only until the factors are put together
        work.run.log_artifacts(work.outputs["factors"], "factors")


STAGE = Stage(
    name="fit_factors",
    help="Fit the influence factors of the fine-tuned model.",
    inputs=(artifacts.MODEL, artifacts.TRAIN_DATA, EIGENVECTORS, PARTS),
    outputs=(artifacts.FACTORS,),
    parameters=(PHASE, TASK),
    settings=("general", "factors", *TOKENS),
    compute=compute,
    record=record,
    group="influence",
    gpu=True,
    divided=True,
)
