"""The attribution pipeline: from data to the training examples behind each answer."""

from __future__ import annotations

from inspect import Parameter, Signature
from typing import Any

from kfp import dsl
from kfp.dsl.graph_component import GraphComponent

from components import STAGES
from components.compare.component import compare
from components.fit_factors.component import fit_factors
from components.generate.component import generate
from components.inspect.component import inspect
from components.mmlu.component import mmlu
from components.prepare.component import prepare
from components.score.component import score
from components.train.component import train
from components.validate.component import validate
from pipelines.kubernetes import FORM_HELP, HERE, Placement
from pipelines.parallel import shared_fit, shared_score
from whence.config import Config
from whence.kubeflow import PARALLEL_TASKS, form_default, form_help, form_of

NAME = "whence-attribution"
SUMMARY = "Fine-tune a language model, fit influence factors, and show which training examples are behind each answer."
OVERRIDES_HELP = "Any other settings by dotted key, e.g. training.warmup_steps; `prepare` refuses wrong ones."


def attribution_pipeline(config: Config, settings: str, placement: Placement = HERE) -> GraphComponent:
    """The pipeline with the values of ``config`` as the defaults of its form.

    Args:
        config: the profile.
        settings: the profile as YAML text, baked into the pipeline; it must need no file beside it.
        placement: where its tasks run.
    """

    form, places = form_of(config), placement.form()
    names = [*form, *places, "overrides"]
    # kfp wants a pipeline within a pipeline to be complete before the outer one is begun.
    shared = (shared_fit(placement), shared_score(placement)) if PARALLEL_TASKS in form else None

    def graph(*arguments: Any) -> None:
        given = dict(zip(names, arguments, strict=True))
        chosen = {name: given.pop(name) for name in places}
        _graph(settings, given, shared, placement, chosen)

    # The form is derived from one table, so the signature and the docstring that kfp reads are made, not written.
    graph.__signature__ = Signature(  # type: ignore[attr-defined]
        [
            *_form_parameters(config),
            *(_parameter(name, type(value), value) for name, value in places.items()),
            _parameter("overrides", dict, {}),
        ]
    )
    described = [f"    {name}: {form_help(parameter)}" for name, parameter in form.items()]
    described += [f"    {name}: {FORM_HELP[name]}" for name in places]
    graph.__doc__ = "\n".join([SUMMARY, "", "Args:", *described, f"    overrides: {OVERRIDES_HELP}"])
    return dsl.pipeline(name=NAME, display_name=f"Whence: {config.profile}")(graph)


def stages_of(config: Config) -> tuple[str, ...]:
    """The stages of the pipeline, in the order they are shown; tasks that share one are added as they start."""
    if config.general.parallel_tasks is None:
        return STAGES
    instead = {"fit_factors": ("fit_eigenvectors", "merge_factors"), "score": ("merge_scores",)}
    return tuple(name for stage in STAGES for name in instead.get(stage, (stage,)))


def _graph(
    settings: str,
    parameters: dict[str, Any],
    shared: tuple[GraphComponent, GraphComponent] | None,
    placement: Placement,
    places: dict[str, Any],
) -> None:
    prepared = prepare(settings=settings, **{PARALLEL_TASKS: 0, **parameters})
    # A hub dataset, a bucket or a tracking server may have changed since the last look.
    prepared.set_caching_options(False)
    config, base_model, train_data, eval_data, tasks = (
        prepared.outputs[name] for name in ("config", "base_model", "train_data", "eval_data", "tasks")
    )
    trained = train(config=config, base_model=base_model, train_data=train_data, eval_data=eval_data)
    model = trained.outputs["model"]
    generated = generate(config=config, base_model=base_model, model=model, eval_data=eval_data)
    generations = generated.outputs["generations"]
    inputs = {"config": config, "model": model, "train_data": train_data}
    if shared:
        fit, score_all = shared
        factors = fit(**inputs, tasks=tasks, **places).output
        scores = score_all(**inputs, factors=factors, generations=generations, tasks=tasks, **places).output
    else:
        fitted = fit_factors(**inputs)
        factors = fitted.outputs["factors"]
        scored = score(**inputs, factors=factors, generations=generations)
        scores = scored.outputs["scores"]
        placement.place(places, fit_factors=fitted, score=scored)
    validated = validate(**inputs, base_model=base_model, factors=factors, generations=generations, scores=scores)
    inspected = inspect(config=config, factors=factors)
    compared = compare(config=config, generations=generations, scores=scores, train_data=train_data)
    with dsl.If(parameters["run_mmlu"] == True, name="run_mmlu"):  # noqa: E712  (a pipeline channel, not a bool)
        benchmarked = mmlu(config=config, base_model=base_model, model=model)
    placement.place(
        places,
        prepare=prepared,
        train=trained,
        inspect=inspected,
        generate=generated,
        validate=validated,
        compare=compared,
        mmlu=benchmarked,
    )


def _form_parameters(config: Config) -> list[Parameter]:
    return [_parameter(name, field.type, form_default(config, field)) for name, field in form_of(config).items()]


def _parameter(name: str, kind: type, default: Any) -> Parameter:
    return Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, annotation=kind, default=default)
