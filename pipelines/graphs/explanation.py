"""From a fine-tuned model to the training examples behind its answers: the part that the pipelines have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kfp.dsl import PipelineTask
from kfp.dsl.graph_component import GraphComponent

from whence.config import RETRAINING_MEASURES, Config
from whence.pipelines.graphs.parallel import parallel_fit, parallel_score, parallel_validate
from whence.pipelines.graphs.placement import Placement
from whence.pipelines.graphs.tasks import Tasks


@dataclass(frozen=True)
class Explanation:
    """Makes the tasks. Build it before the pipeline: kfp wants a pipeline within another to be complete by then."""

    parallel: dict[str, GraphComponent]
    """The pipelines that replace the stages that several tasks share, by the name of the stage."""

    @classmethod
    def build(cls, config: Config, placement: Placement) -> Explanation:
        """With the work shared among tasks where the settings say so, retraining only where any is wanted."""
        if config.general.parallel_tasks is None:
            return cls({})
        parallel = {"fit_factors": parallel_fit(placement), "score": parallel_score(placement)}
        if not set(RETRAINING_MEASURES).isdisjoint(config.validation.measures):
            parallel["validate"] = parallel_validate(placement)
        return cls(parallel)

    def tasks(
        self, tasks: Tasks, numbers: Any, *, model: Any, train_data: Any, generations: Any, benchmark: Any
    ) -> PipelineTask:
        """Factors, spectra, scores, their index and evidence, the comparison and the report, whose task is returned.

        Args:
            numbers: the numbers of the tasks that share the work.
        """
        inputs = {"model": model, "train_data": train_data}

        def shared(name: str, **more_inputs: Any) -> Any:
            if name in self.parallel:
                return self.parallel[name](**inputs, **more_inputs, tasks=numbers, **tasks.form).output
            task = tasks.make(name, **inputs, **more_inputs)
            (output,) = task.outputs
            return task.outputs[output]

        factors = shared("fit_factors")
        inspect = tasks.make("inspect", factors=factors)
        scores = shared("score", factors=factors, generations=generations)
        tasks.make("index", scores=scores)
        compare = tasks.make("compare", generations=generations, scores=scores)
        evidence = shared("validate", factors=factors, scores=scores)
        return tasks.make(
            "report",
            scores=scores,
            comparison=compare.outputs["comparison"],
            spectra=inspect.outputs["spectra"],
            evidence=evidence,
            benchmark=benchmark,
        )
