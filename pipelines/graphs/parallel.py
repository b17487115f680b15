"""Fitting, scoring and retraining shared among tasks, each on its own node: pipelines that stand in for the stages.

They are pipelines within the pipeline: in the Kubeflow UI each is one node that opens, and kfp's local runner, which
takes the items of a loop only from a pipeline's own parameters, runs them too. A pipeline within another sees nothing
of the outer one's form, so where their tasks run is given to them again.
"""

from collections.abc import Callable
from inspect import Parameter, Signature
from typing import Any

from kfp import dsl
from kfp.dsl import PipelineTask
from kfp.dsl.graph_component import GraphComponent

from whence.components.fit_covariances.component import fit_covariances
from whence.components.fit_eigenvectors.component import fit_eigenvectors
from whence.components.fit_lambdas.component import fit_lambdas
from whence.components.merge_factors.component import merge_factors
from whence.components.merge_scores.component import merge_scores
from whence.components.retrain_share.component import retrain_share
from whence.components.score_part.component import score_part
from whence.components.validate.component import validate
from whence.pipelines.graphs.placement import Placement

Made = tuple[Any, dict[str, PipelineTask]]  # an output, and the tasks by the names of their stages

ARTIFACTS = {
    "config": dsl.Input[dsl.Artifact],
    "base_model": dsl.Input[dsl.Artifact],
    "model": dsl.Input[dsl.Model],
    "train_data": dsl.Input[dsl.Dataset],
    "factors": dsl.Input[dsl.Artifact],
    "generations": dsl.Input[dsl.Dataset],
    "scores": dsl.Input[dsl.Dataset],
}


def shared_fit(placement: Placement) -> GraphComponent:
    """Covariances in parallel, their eigenvectors, lambda in parallel, and all together: the factors.

    They are those that ``fit_factors`` alone would have fitted.
    """

    def make(inputs: dict[str, Any], tasks: Any) -> Made:
        with dsl.ParallelFor(tasks) as task:
            summed = fit_covariances(**inputs, task=task)
        decomposed = fit_eigenvectors(**inputs, covariances=dsl.Collected(summed.outputs["covariances"]))
        eigenvectors = decomposed.outputs["eigenvectors"]
        with dsl.ParallelFor(tasks) as task:
            squared = fit_lambdas(**inputs, eigenvectors=eigenvectors, task=task)
        merged = merge_factors(**inputs, eigenvectors=eigenvectors, lambdas=dsl.Collected(squared.outputs["lambdas"]))
        made = {
            "fit_covariances": summed,
            "fit_eigenvectors": decomposed,
            "fit_lambdas": squared,
            "merge_factors": merged,
        }
        return merged.outputs["factors"], made

    description = "Fit the influence factors in parallel tasks."
    return _pipeline("shared-fit", description, ["config", "model", "train_data"], dsl.Artifact, placement, make)


def shared_score(placement: Placement) -> GraphComponent:
    """Every task scores its share of the training examples, then all together, as ``score`` alone would have."""

    def make(inputs: dict[str, Any], tasks: Any) -> Made:
        with dsl.ParallelFor(tasks) as task:
            part = score_part(**inputs, task=task)
        merged = merge_scores(**inputs, parts=dsl.Collected(part.outputs["parts"]))
        return merged.outputs["scores"], {"score_part": part, "merge_scores": merged}

    needed = ["config", "model", "train_data", "factors", "generations"]
    description = "Score the training examples in parallel tasks."
    return _pipeline("shared-score", description, needed, dsl.Dataset, placement, make)


def shared_validate(placement: Placement) -> GraphComponent:
    """Every task does its share of the retrainings, then ``validate`` measures with all of them."""

    def make(inputs: dict[str, Any], tasks: Any) -> Made:
        with dsl.ParallelFor(tasks) as task:
            retrained = retrain_share(**inputs, task=task)
        validated = validate(**inputs, retrainings=dsl.Collected(retrained.outputs["retrainings"]))
        return validated.outputs["evidence"], {"retrain_share": retrained, "validate": validated}

    description = "Gather the evidence, retraining in parallel tasks."
    return _pipeline("shared-validate", description, list(ARTIFACTS), dsl.Dataset, placement, make)


def _pipeline(
    name: str,
    description: str,
    artifacts: list[str],
    returns: type,
    placement: Placement,
    make: Callable[[dict[str, Any], Any], Made],
) -> GraphComponent:
    """What ``make`` makes of the artifacts, by name, and of the tasks' numbers, with every task in its place."""
    form = placement.form()

    def graph(*given: Any) -> Any:
        inputs = dict(zip(artifacts, given, strict=False))  # what follows them is no artifact
        tasks, *places = given[len(artifacts) :]
        output, made = make(inputs, tasks)
        placement.place(dict(zip(form, places, strict=True)), **made)
        return output

    # kfp reads the signature: the artifacts, the tasks' numbers and the placement's form.
    kinds = {name: ARTIFACTS[name] for name in artifacts} | {"tasks": list[int]}
    kinds |= {name: type(value) for name, value in form.items()}
    graph.__signature__ = Signature(  # type: ignore[attr-defined]
        [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, annotation=kind) for name, kind in kinds.items()],
        return_annotation=returns,
    )
    graph.__annotations__ = {**kinds, "return": returns}
    return dsl.pipeline(name=name, description=description)(graph)
