"""From a fine-tuned model to the training examples behind its answers: the part that the pipelines have in common."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from kfp.dsl import PipelineTask
from kfp.dsl.graph_component import GraphComponent

from whence.components.compare.component import compare
from whence.components.fit_factors.component import fit_factors
from whence.components.inspect.component import inspect
from whence.components.report.component import report
from whence.components.score.component import score
from whence.components.validate.component import validate
from whence.config import RETRAINING_MEASURES, Config
from whence.pipelines.graphs.parallel import shared_fit, shared_score, shared_validate
from whence.pipelines.graphs.placement import Placement


def shown_stages(stages: Iterable[str], config: Config) -> tuple[str, ...]:
    """``stages`` as a run shows them; tasks that share the work of one are added as they start."""
    if config.general.parallel_tasks is None:
        return tuple(stages)
    instead = {"fit_factors": ("fit_eigenvectors", "merge_factors"), "score": ("merge_scores",)}
    return tuple(name for stage in stages for name in instead.get(stage, (stage,)))


@dataclass(frozen=True)
class Explanation:
    """Makes the tasks; build it before the pipeline, since kfp wants one within another to be complete by then."""

    placement: Placement
    shared: tuple[GraphComponent, GraphComponent] | None
    """Fitting and scoring, where tasks share them."""
    shared_evidence: GraphComponent | None
    """The same for evidence."""

    @classmethod
    def build(cls, config: Config, placement: Placement) -> Explanation:
        """With the work shared among tasks where the settings say so, retraining only where any is asked for."""
        if config.general.parallel_tasks is None:
            return cls(placement, None, None)
        retraining = not set(RETRAINING_MEASURES).isdisjoint(config.validation.measures)
        return cls(
            placement,
            (shared_fit(placement), shared_score(placement)),
            shared_validate(placement) if retraining else None,
        )

    def of(
        self,
        *,
        config: Any,
        base_model: Any,
        model: Any,
        train_data: Any,
        history: Any,
        generations: Any,
        tasks: Any,
        places: dict[str, Any],
    ) -> dict[str, Any]:
        """Factors, their spectra, scores, their evidence and the comparison; returns what :meth:`report` takes.

        Args:
            base_model: what the model was trained from.
            history: what was logged while training.
            tasks: the numbers of the tasks that share the work.
            places: the fields of the form that say where tasks run.
        """
        inputs = {"config": config, "model": model, "train_data": train_data}
        if self.shared:
            fit, score_all = self.shared
            factors = fit(**inputs, tasks=tasks, **places).output
            scores = score_all(**inputs, factors=factors, generations=generations, tasks=tasks, **places).output
        else:
            fitted = fit_factors(**inputs)
            factors = fitted.outputs["factors"]
            scored = score(**inputs, factors=factors, generations=generations)
            scores = scored.outputs["scores"]
            self.placement.place(places, fit_factors=fitted, score=scored)
        judged = inputs | {"base_model": base_model, "factors": factors, "generations": generations, "scores": scores}
        if self.shared_evidence:
            evidence = self.shared_evidence(**judged, tasks=tasks, **places).output
        else:
            validated = validate(**judged)
            evidence = validated.outputs["evidence"]
            self.placement.place(places, validate=validated)
        inspected = inspect(config=config, factors=factors)
        compared = compare(config=config, generations=generations, scores=scores, train_data=train_data)
        self.placement.place(places, inspect=inspected, compare=compared)
        return {
            "config": config,
            "train_data": train_data,
            "history": history,
            "generations": generations,
            "scores": scores,
            "comparison": compared.outputs["comparison"],
            "spectra": inspected.outputs["spectra"],
            "evidence": evidence,
        }

    def report(self, explained: dict[str, Any], places: dict[str, Any], **benchmark: Any) -> PipelineTask:
        """The report on what :meth:`of` has made, and on the benchmark where there is one; returns its task."""
        reported = report(**explained, **benchmark)
        reported.set_caching_options(False)  # it links to the record of this very run
        self.placement.place(places, report=reported)
        return reported
