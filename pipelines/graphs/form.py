"""A pipeline whose form shows the values of a profile: what the pipelines are made with."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from inspect import Parameter, Signature
from typing import Any

from kfp import dsl
from kfp.dsl.graph_component import GraphComponent

from whence.components.notify import STAGE, notify
from whence.config import Config
from whence.pipelines.graphs.placement import FORM_HELP, Placement
from whence.pipelines.graphs.tasks import Tasks, named
from whence.running.form import GUIDE, form_default, form_help, form_of

OVERRIDES_HELP = "Any other settings by dotted key, e.g. training.warmup_steps; `prepare` refuses wrong ones."


def with_form(
    graph: Callable[[dict[str, Any], Tasks], None],
    *,
    name: str,
    display_name: str,
    summary: str,
    config: Config,
    placement: Placement,
    left_out: Container[str] = (),
) -> GraphComponent:
    """The pipeline of ``graph``, with the values of ``config`` as the defaults of its form.

    Args:
        graph: makes the tasks, from the form's fields for ``prepare``.
        left_out: fields that this pipeline's form does not have.
    """
    form = {field: parameter for field, parameter in form_of(config).items() if field not in left_out}
    placement_form = placement.form()
    names = [*form, *placement_form, "overrides"]

    def pipeline(*arguments: Any) -> None:
        values = dict(zip(names, arguments, strict=True))
        placing = {field: values.pop(field) for field in placement_form}
        with notified(config, placement, placing):
            graph(values, Tasks(placement, placing))

    # kfp reads the signature and the docstring, which are generated since the form is derived from one table.
    pipeline.__signature__ = Signature(  # type: ignore[attr-defined]
        [
            *(_parameter(field, parameter.type, form_default(config, parameter)) for field, parameter in form.items()),
            *(_parameter(field, type(value), value) for field, value in placement_form.items()),
            _parameter("overrides", dict, {}),
        ]
    )
    helps = [f"    {field}: {form_help(parameter)}" for field, parameter in form.items()]
    helps += [f"    {field}: {FORM_HELP[field]}" for field in placement_form]
    pipeline.__doc__ = "\n".join([f"{summary} {GUIDE}", "", "Args:", *helps, f"    overrides: {OVERRIDES_HELP}"])
    return dsl.pipeline(name=name, display_name=display_name)(pipeline)


@contextmanager
def notified(config: Config, placement: Placement, placing: Mapping[str, Any]) -> Iterator[None]:
    """Have a webhook told how the graph within ended; kfp's local runner knows no exit handlers."""
    variable = placement.cluster and placement.cluster.notify
    if not variable:
        yield
        return
    run = dsl.PIPELINE_JOB_ID_PLACEHOLDER
    page = config.tracking.run_page(run) or ""
    task = notify(variable=variable, profile=config.profile, run=run, page=page)
    task.set_caching_options(False)
    placement.place(STAGE, task, placing)
    with named(dsl.ExitHandler(task), "run"):
        yield


def _parameter(name: str, kind: type, default: Any) -> Parameter:
    return Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, annotation=kind, default=default)
