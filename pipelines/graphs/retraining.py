"""The retraining pipeline: a new model only where something has changed, the champion only where it is better.

kfp's local runner understands a condition only on what a task of the same level returns or on what a level further out
names: hence what ``find_champion`` and ``gate`` return, and that ``passed`` has a name.
"""

from __future__ import annotations

from typing import Any

from kfp import dsl
from kfp.dsl.graph_component import GraphComponent

from whence.config import Config
from whence.config_file import pack
from whence.pipelines.graphs.explanation import Explanation
from whence.pipelines.graphs.form import with_form
from whence.pipelines.graphs.placement import HERE, Placement
from whence.pipelines.graphs.tasks import Tasks, named
from whence.running.form import MMLU_ENABLED, PARALLEL_TASKS

SUMMARY = (
    "Retrain where data or configuration have changed since the champion, compare the candidate with the champion, and "
    "promote it where it passes the gate, with the training examples behind its answers."
)


def retraining_pipeline(config: Config, placement: Placement = HERE) -> GraphComponent:
    """The pipeline with the values of ``config`` as the defaults of its form; arguments as for attribution."""
    explanation = Explanation.build(config, placement)
    # settled when the pipeline is compiled: a guard is nothing to switch off in a form
    settled = {MMLU_ENABLED: config.evaluation.mmlu.enabled}

    def graph(parameters: dict[str, Any], tasks: Tasks) -> None:
        prepare = tasks.make("prepare", settings=pack(config), **{PARALLEL_TASKS: 0, **settled, **parameters})
        inputs = {name: prepare.outputs[name] for name in ("base_model", "train_data", "eval_data")}
        find_champion = tasks.make("find_champion", **inputs)
        with named(dsl.If(find_champion.outputs["Output"] == True), "changed"):  # noqa: E712  (a pipeline channel, not a bool)
            model = tasks.make("train", **inputs).outputs["model"]
            champion, eval_data = find_champion.outputs["champion"], inputs["eval_data"]
            generations = tasks.make("generate", model=model, eval_data=eval_data, champion=champion).output
            benchmark = tasks.make("mmlu", model=model, champion=champion).output
            gate = tasks.make(
                "gate",
                champion_version=find_champion.outputs["champion_version"],
                eval_data=eval_data,
                generations=generations,
                benchmark=benchmark,
            )
            with named(dsl.If(gate.outputs["Output"] == True), "explain"):  # noqa: E712
                report = explanation.tasks(
                    tasks,
                    prepare.outputs["tasks"],
                    model=model,
                    train_data=inputs["train_data"],
                    generations=generations,
                    benchmark=benchmark,
                )
                with named(dsl.If(gate.outputs["passed"] == True), "passed"):  # noqa: E712
                    tasks.make("promote", decision=gate.outputs["decision"]).after(report)

    return with_form(
        graph,
        name="whence-retraining",
        display_name=f"Whence retraining: {config.profile}",
        summary=SUMMARY,
        config=config,
        placement=placement,
        left_out=settled,
    )
