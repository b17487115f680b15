"""The retraining pipeline: a new model only where something has changed, the champion only where it is better.

kfp's local runner understands a condition only on what a task of the same level returns or on what a level further out
gives by name: hence what ``find_champion`` and ``gate`` return, and that ``passed`` has a name.
"""

from __future__ import annotations

from typing import Any

from kfp import dsl
from kfp.dsl.graph_component import GraphComponent

from whence.components.find_champion.component import find_champion
from whence.components.gate.component import gate
from whence.components.generate.component import generate
from whence.components.mmlu.component import mmlu
from whence.components.prepare.component import prepare
from whence.components.promote.component import promote
from whence.components.train.component import train
from whence.config import Config
from whence.kubeflow import PARALLEL_TASKS
from whence.pipelines.graphs.explanation import Explanation, shown_stages
from whence.pipelines.graphs.form import with_form
from whence.pipelines.graphs.placement import HERE, Placement

SUMMARY = (
    "Retrain where data or configuration have changed since the champion, compare the candidate with the champion, and "
    "promote it where it passes the gate, with the training examples behind its answers."
)
STAGES = (
    "prepare", "find_champion", "train", "generate", "mmlu", "gate", "fit_factors", "inspect", "score", "validate",
    "compare", "report", "promote",
)  # fmt: skip
RUN_MMLU = "run_mmlu"  # settled when the pipeline is compiled: a guard is nothing to switch off in a form


def retraining_pipeline(config: Config, settings: str, placement: Placement = HERE) -> GraphComponent:
    """The pipeline with the values of ``config`` as the defaults of its form; arguments as for attribution."""
    explanation = Explanation.build(config, placement)
    run_mmlu = config.evaluation.mmlu.enabled

    def graph(parameters: dict[str, Any], places: dict[str, Any]) -> None:
        prepared = prepare(settings=settings, **{PARALLEL_TASKS: 0, RUN_MMLU: run_mmlu, **parameters})
        config, base_model, train_data, eval_data = (
            prepared.outputs[name] for name in ("config", "base_model", "train_data", "eval_data")
        )
        found = find_champion(config=config, base_model=base_model, train_data=train_data, eval_data=eval_data)
        # The world outside may have changed since the last look: data, tracking server, registry.
        for looking in (prepared, found):
            looking.set_caching_options(False)
        placement.place(places, prepare=prepared, find_champion=found)
        with dsl.If(found.outputs["Output"] == True, name="changed"):  # noqa: E712  (a pipeline channel, not a bool)
            trained = train(config=config, base_model=base_model, train_data=train_data, eval_data=eval_data)
            challenge, model = found.outputs["challenge"], trained.outputs["model"]
            compared = {"config": challenge, "base_model": found.outputs["champion"], "model": model}
            generated = generate(**compared, eval_data=eval_data)
            generations = generated.outputs["generations"]
            benchmark = {}
            if run_mmlu:
                benchmarked = mmlu(**compared)
                benchmark = {"benchmark": benchmarked.outputs["benchmark"]}
                placement.place(places, mmlu=benchmarked)
            judged = gate(
                config=challenge,
                champion_version=found.outputs["champion_version"],
                eval_data=eval_data,
                generations=generations,
                **benchmark,
            )
            placement.place(places, train=trained, generate=generated, gate=judged)
            with dsl.If(judged.outputs["Output"] == True, name="explain"):  # noqa: E712
                explained = explanation.of(
                    config=challenge,
                    base_model=base_model,
                    model=model,
                    train_data=train_data,
                    history=trained.outputs["history"],
                    generations=generations,
                    tasks=prepared.outputs["tasks"],
                    places=places,
                )
                reported = explanation.report(explained, places, **benchmark)
                with dsl.If(judged.outputs["passed"] == True, name="passed"):  # noqa: E712
                    promoted = promote(config=config, decision=judged.outputs["decision"]).after(reported)
                    promoted.set_caching_options(False)  # what it did before may have been undone
                    placement.place(places, promote=promoted)

    return with_form(
        graph,
        name="whence-retraining",
        display_name=f"Whence retraining: {config.profile}",
        summary=SUMMARY,
        config=config,
        placement=placement,
        left_out={RUN_MMLU},
    )


def stages_of(config: Config) -> tuple[str, ...]:
    """The stages of the pipeline, in the order they are shown."""
    stages = STAGES if config.evaluation.mmlu.enabled else tuple(stage for stage in STAGES if stage != "mmlu")
    return shown_stages(stages, config)
