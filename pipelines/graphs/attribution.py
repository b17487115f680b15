"""The attribution pipeline: from data to the training examples behind each answer."""

from __future__ import annotations

from typing import Any

from kfp import dsl
from kfp.dsl.graph_component import GraphComponent

from whence.components import STAGES
from whence.components.generate.component import generate
from whence.components.mmlu.component import mmlu
from whence.components.prepare.component import prepare
from whence.components.train.component import train
from whence.config import Config
from whence.kubeflow import PARALLEL_TASKS
from whence.pipelines.graphs.explanation import Explanation, shown_stages
from whence.pipelines.graphs.form import with_form
from whence.pipelines.graphs.placement import HERE, Placement

SUMMARY = "Fine-tune a language model, fit influence factors, and show which training examples are behind each answer."


def attribution_pipeline(config: Config, settings: str, placement: Placement = HERE) -> GraphComponent:
    """The pipeline with the values of ``config`` as the defaults of its form.

    Args:
        config: the profile.
        settings: the profile as YAML text, baked into the pipeline; it must need no file beside it.
        placement: where its tasks run.
    """
    explanation = Explanation.build(config, placement)

    def graph(parameters: dict[str, Any], places: dict[str, Any]) -> None:
        prepared = prepare(settings=settings, **{PARALLEL_TASKS: 0, **parameters})
        # A hub dataset, a bucket or a tracking server may have changed since the last look.
        prepared.set_caching_options(False)
        config, base_model, train_data, eval_data, tasks = (
            prepared.outputs[name] for name in ("config", "base_model", "train_data", "eval_data", "tasks")
        )
        trained = train(config=config, base_model=base_model, train_data=train_data, eval_data=eval_data)
        model = trained.outputs["model"]
        generated = generate(config=config, base_model=base_model, model=model, eval_data=eval_data)
        explained = explanation.of(
            config=config,
            base_model=base_model,
            model=model,
            train_data=train_data,
            history=trained.outputs["history"],
            generations=generated.outputs["generations"],
            tasks=tasks,
            places=places,
        )
        with dsl.If(parameters["run_mmlu"] == True, name="run_mmlu"):  # noqa: E712  (a pipeline channel, not a bool)
            benchmarked = mmlu(config=config, base_model=base_model, model=model)
            explanation.report(explained, places, benchmark=benchmarked.outputs["benchmark"])
        with dsl.Else(name="without_mmlu"):  # nothing outside a condition can take what is made inside it
            explanation.report(explained, places)
        placement.place(places, prepare=prepared, train=trained, generate=generated, mmlu=benchmarked)

    return with_form(
        graph,
        name="whence-attribution",
        display_name=f"Whence: {config.profile}",
        summary=SUMMARY,
        config=config,
        placement=placement,
    )


def stages_of(config: Config) -> tuple[str, ...]:
    """The stages of the pipeline, in the order they are shown."""
    return shown_stages(STAGES, config)
