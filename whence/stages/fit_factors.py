"""Stage ``fit_factors``: fit the influence factors of the fine-tuned model on the analysis samples.

Where several tasks share the fit, each phase is one or more tasks of this stage, which take the parts that others have
made: ``covariance`` (every task its share of the data), ``eigenvectors`` (one task), ``lambda`` (every task its share),
and one without a phase that puts the factors together. They equal those of a single task to the last bit.
"""

from __future__ import annotations

from whence.running import artifacts
from whence.running.declaration import TASK, Artifact, Kind, Parameter, Stage, Work

EIGENVECTORS = Artifact("eigenvectors", Kind.ARTIFACT, "What the phase eigenvectors has made.", optional=True)
PARTS = Artifact(
    "parts", Kind.ARTIFACT, "What every task of the phase before this one has made.", optional=True, many=True
)
PHASE = Parameter("phase", str, "Only this phase: covariance, eigenvectors or lambda; empty: what is missing yet.", "")


def compute(work: Work) -> dict[str, float]:
    from whence.influence.factors import fit_factors, write_factors
    from whence.models import tokenizer_fingerprint
    from whence.running.trained import Trained, factor_metrics, share_of

    trained = Trained.load(work.config, work.inputs["model"], work.inputs["train_data"])
    folder, phase = work.outputs["factors"], work.parameters["phase"]
    sources = [*work.lists["parts"], *([work.inputs["eigenvectors"]] if "eigenvectors" in work.inputs else [])]
    if not phase and not sources:
        info = fit_factors(
            trained.network, trained.examples, work.config, folder, trained.pad_token_id,
            tokenizer_fingerprint=tokenizer_fingerprint(trained.tokenizer),
        )  # fmt: skip
        return factor_metrics(info)
    fit, identity = trained.open_fit(folder if phase else work.scratch, sources)
    if not phase:
        return factor_metrics(write_factors(fit, identity, folder, seconds={}))
    if phase == "eigenvectors":
        fit.eigenvectors()
        return {"modules": float(len(identity.modules))}
    parts = share_of(work.config, work.parameters["task"], fit.plan.data_partitions)
    {"covariance": fit.covariances, "lambda": fit.lambdas}[phase](parts)
    return {"data_partitions": float(len(parts))}


def record(work: Work) -> None:
    if not work.parameters["phase"]:  # parts are kept only until the factors are put together
        work.run.log_artifacts(work.outputs["factors"], "factors")


STAGE = Stage(
    name="fit_factors",
    help="Fit the influence factors of the fine-tuned model.",
    inputs=(artifacts.MODEL, artifacts.TRAIN_DATA, EIGENVECTORS, PARTS),
    outputs=(artifacts.FACTORS,),
    parameters=(PHASE, TASK),
    settings=("general", "factors", "dataset.loss_on", "dataset.template"),
    compute=compute,
    record=record,
    group="influence",
    gpu=True,
)
