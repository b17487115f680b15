"""Fitting, scoring and retraining by several tasks, each on its own node: pipelines that replace the stages.

They are pipelines within the pipeline: in the Kubeflow UI each is one box that opens, and kfp's local runner, which
takes the items of a loop only from a pipeline's own parameters, runs them too. A pipeline within another sees nothing
of the outer one's form, so it is passed on.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, Signature
from typing import Any

from kfp import dsl
from kfp.dsl.graph_component import GraphComponent

from whence.pipelines.graphs.placement import Placement
from whence.pipelines.graphs.tasks import Tasks, named
from whence.stages import stage


def parallel_fit(placement: Placement) -> GraphComponent:
    """The covariances in parallel, their eigenvectors, lambda in parallel, and the factors put together."""

    def graph(tasks: Tasks, inputs: dict[str, Any], numbers: Any) -> Any:
        with named(dsl.ParallelFor(numbers), "covariances") as number:
            part = tasks.make("fit_factors", "covariance", **inputs, phase="covariance", task=number)
        covariances = dsl.Collected(part.outputs["factors"])
        eigenvectors = tasks.make(
            "fit_factors", "eigenvectors", **inputs, phase="eigenvectors", parts=covariances
        ).outputs["factors"]
        with named(dsl.ParallelFor(numbers), "lambdas") as number:
            part = tasks.make("fit_factors", "lambda", **inputs, phase="lambda", task=number, eigenvectors=eigenvectors)
        lambdas = dsl.Collected(part.outputs["factors"])
        return tasks.make("fit_factors", **inputs, eigenvectors=eigenvectors, parts=lambdas).outputs["factors"]

    return _pipeline("fit_factors", placement, graph)


def parallel_score(placement: Placement) -> GraphComponent:
    """Every task scores its part of the training examples, and one puts the scores together."""

    def graph(tasks: Tasks, inputs: dict[str, Any], numbers: Any) -> Any:
        with named(dsl.ParallelFor(numbers), "parts") as number:
            part = tasks.make("score", "score-part", **inputs, task=number)
        return tasks.make("score", **inputs, parts=dsl.Collected(part.outputs["scores"])).outputs["scores"]

    return _pipeline("score", placement, graph)


def parallel_validate(placement: Placement) -> GraphComponent:
    """Every task does its part of the retrainings, and one measures with all of them."""

    def graph(tasks: Tasks, inputs: dict[str, Any], numbers: Any) -> Any:
        with named(dsl.ParallelFor(numbers), "retrainings") as number:
            part = tasks.make("validate", "retrain", **inputs, task=number)
        retrainings = dsl.Collected(part.outputs["evidence"])
        return tasks.make("validate", **inputs, retrainings=retrainings).outputs["evidence"]

    return _pipeline("validate", placement, graph)


def _pipeline(name: str, placement: Placement, make: Callable[[Tasks, dict[str, Any], Any], Any]) -> GraphComponent:
    """The pipeline of ``make``, which takes the inputs that the stage ``name`` needs and the numbers of the tasks."""
    declaration, form = stage(name), placement.form()
    artifacts = {artifact.name: artifact.kind for artifact in declaration.inputs if not artifact.optional}

    def graph(*arguments: Any) -> Any:
        values = dict(zip(kinds, arguments, strict=True))
        inputs = {artifact: values.pop(artifact) for artifact in artifacts}
        numbers = values.pop("tasks")
        return make(Tasks(placement, values), inputs, numbers)

    # kfp reads the signature: the artifacts, the tasks' numbers and the placement's form.
    kinds = {artifact: dsl.Input[getattr(dsl, kind.value)] for artifact, kind in artifacts.items()}
    kinds |= {"tasks": list[int]} | {field: type(value) for field, value in form.items()}
    returns = getattr(dsl, declaration.outputs[0].kind.value)
    graph.__signature__ = Signature(  # type: ignore[attr-defined]
        [Parameter(field, Parameter.POSITIONAL_OR_KEYWORD, annotation=kind) for field, kind in kinds.items()],
        return_annotation=returns,
    )
    graph.__annotations__ = {**kinds, "return": returns}
    return dsl.pipeline(name=f"{declaration.title}-in-parallel", description=declaration.help)(graph)
