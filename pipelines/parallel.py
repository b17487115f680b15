"""Fitting, scoring and retraining shared among tasks, each on its own node: pipelines that stand in for the stages.

They are pipelines within the pipeline: in the Kubeflow UI each is one node that opens, and kfp's local runner, which
takes the items of a loop only from a pipeline's own parameters, runs them too. A pipeline within another sees nothing
of the outer one's form, so where their tasks run is given to them again.
"""

from collections.abc import Iterable
from inspect import Parameter, Signature
from typing import Any

from kfp import dsl
from kfp.dsl.graph_component import GraphComponent

from components.fit_covariances.component import fit_covariances
from components.fit_eigenvectors.component import fit_eigenvectors
from components.fit_lambdas.component import fit_lambdas
from components.merge_factors.component import merge_factors
from components.merge_scores.component import merge_scores
from components.retrain_share.component import retrain_share
from components.score_part.component import score_part
from components.validate.component import validate
from pipelines.kubernetes import Placement

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

    needed = ["config", "model", "train_data"]

    def graph(*given: Any) -> Any:
        inputs, tasks, places = _given(needed, given)
        with dsl.ParallelFor(tasks) as task:
            summed = fit_covariances(**inputs, task=task)
        decomposed = fit_eigenvectors(**inputs, covariances=dsl.Collected(summed.outputs["covariances"]))
        eigenvectors = decomposed.outputs["eigenvectors"]
        with dsl.ParallelFor(tasks) as task:
            squared = fit_lambdas(**inputs, eigenvectors=eigenvectors, task=task)
        merged = merge_factors(**inputs, eigenvectors=eigenvectors, lambdas=dsl.Collected(squared.outputs["lambdas"]))
        placement.place(
            _form(placement, places),
            fit_covariances=summed,
            fit_eigenvectors=decomposed,
            fit_lambdas=squared,
            merge_factors=merged,
        )
        return merged.outputs["factors"]

    _declare(graph, needed, placement, dsl.Artifact)
    return dsl.pipeline(name="shared-fit", description="Fit the influence factors in parallel tasks.")(graph)


def shared_score(placement: Placement) -> GraphComponent:
    """Every task scores its share of the training examples, then all together, as ``score`` alone would have."""

    needed = ["config", "model", "train_data", "factors", "generations"]

    def graph(*given: Any) -> Any:
        inputs, tasks, places = _given(needed, given)
        with dsl.ParallelFor(tasks) as task:
            part = score_part(**inputs, task=task)
        merged = merge_scores(**inputs, parts=dsl.Collected(part.outputs["parts"]))
        placement.place(_form(placement, places), score_part=part, merge_scores=merged)
        return merged.outputs["scores"]

    _declare(graph, needed, placement, dsl.Dataset)
    return dsl.pipeline(name="shared-score", description="Score the training examples in parallel tasks.")(graph)


def shared_validate(placement: Placement) -> GraphComponent:
    """Every task does its share of the retrainings, then ``validate`` measures with all of them."""
    needed = list(ARTIFACTS)

    def graph(*given: Any) -> Any:
        inputs, tasks, places = _given(needed, given)
        with dsl.ParallelFor(tasks) as task:
            retrained = retrain_share(**inputs, task=task)
        validated = validate(**inputs, retrainings=dsl.Collected(retrained.outputs["retrainings"]))
        placement.place(_form(placement, places), retrain_share=retrained, validate=validated)
        return validated.outputs["evidence"]

    _declare(graph, needed, placement, dsl.Dataset)
    return dsl.pipeline(name="shared-validate", description="Gather the evidence, retraining in parallel tasks.")(graph)


def _given(artifacts: list[str], values: tuple[Any, ...]) -> tuple[dict[str, Any], Any, tuple[Any, ...]]:
    """The arguments of a graph: its artifacts by name, the tasks' numbers, and the values of the placement's form."""
    count = len(artifacts)
    return dict(zip(artifacts, values[:count], strict=True)), values[count], values[count + 1 :]


def _form(placement: Placement, values: Iterable[Any]) -> dict[str, Any]:
    return dict(zip(placement.form(), values, strict=True))


def _declare(graph: Any, artifacts: list[str], placement: Placement, returns: type) -> None:
    """Give ``graph`` the signature that kfp reads: its artifacts, the tasks' numbers and the placement's form."""
    inputs = {name: ARTIFACTS[name] for name in artifacts} | {"tasks": list[int]}
    inputs |= {name: type(value) for name, value in placement.form().items()}
    graph.__signature__ = Signature(
        [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, annotation=kind) for name, kind in inputs.items()],
        return_annotation=returns,
    )
    graph.__annotations__ = {**inputs, "return": returns}
