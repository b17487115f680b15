"""Tasks of a graph: the component of a stage, placed on the cluster."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from kfp.dsl import PipelineTask
from kfp.dsl.tasks_group import TasksGroup

from whence.components import component_of
from whence.pipelines.graphs.placement import Placement
from whence.stages import stage


@dataclass(frozen=True)
class Tasks:
    """Makes the tasks of one graph.

    Attributes:
        placement: where tasks run.
        form: the graph's parameters that say so, by the names of :meth:`Placement.form`.
    """

    placement: Placement
    form: Mapping[str, Any]

    def make(self, name: str, title: str | None = None, **arguments: Any) -> PipelineTask:
        """A task of the stage ``name`` with the arguments of its component, in the graph under another ``title``."""
        component = component_of(name)
        task = (component if title is None else titled(component, title))(
            **arguments, **self.placement.arguments(name, self.form)
        )
        if stage(name).side or not stage(name).reuse:  # a failure that is handed on must not be reused
            task.set_caching_options(False)
        self.placement.place(name, task, self.form)
        return task


def titled(component: Any, title: str) -> Any:
    """A component whose tasks have this name in the graph; kfp would number those of one component."""
    component = copy.copy(component)
    component.component_spec = dataclasses.replace(component.component_spec, name=title)
    return component


@contextmanager
def named(group: TasksGroup, name: str) -> Iterator[Any]:
    """A loop or condition under a name for people: kfp's own ``name=`` does not reach the graph that Kubeflow draws."""
    with group as item:
        group.name = name
        yield item
