"""The attribution pipeline: from data to the training examples behind each answer."""

from __future__ import annotations

from typing import Any

from kfp.dsl.graph_component import GraphComponent

from whence.config import Config
from whence.config_file import pack
from whence.pipelines.graphs.explanation import Explanation
from whence.pipelines.graphs.form import with_form
from whence.pipelines.graphs.placement import HERE, Placement
from whence.pipelines.graphs.tasks import Tasks
from whence.running.form import PARALLEL_TASKS

SUMMARY = "Fine-tune a language model, fit influence factors, and show which training examples are behind each answer."


def attribution_pipeline(config: Config, placement: Placement = HERE) -> GraphComponent:
    """The pipeline with the values of ``config`` as the defaults of its form.

    Args:
        config: the profile, baked into the pipeline as YAML; it must need no file beside it.
        placement: where its tasks run.
    """
    explanation = Explanation.build(config, placement)

    def graph(parameters: dict[str, Any], tasks: Tasks) -> None:
        prepare = tasks.make("prepare", settings=pack(config), **{PARALLEL_TASKS: 0, **parameters})
        base_model, train_data, eval_data = (
            prepare.outputs[name] for name in ("base_model", "train_data", "eval_data")
        )
        train = tasks.make("train", base_model=base_model, train_data=train_data, eval_data=eval_data)
        model = train.outputs["model"]
        generate = tasks.make("generate", model=model, eval_data=eval_data)
        mmlu = tasks.make("mmlu", model=model)
        explanation.tasks(
            tasks,
            prepare.outputs["tasks"],
            model=model,
            train_data=train_data,
            generations=generate.outputs["generations"],
            benchmark=mmlu.outputs["benchmark"],
        )

    return with_form(
        graph,
        name="whence-attribution",
        display_name=f"Whence: {config.profile}",
        summary=SUMMARY,
        config=config,
        placement=placement,
    )
