"""Pipelines, runs and schedules in Kubeflow: what the commands do there.

Creating is not repeatable: after a fault of the server it may have happened or not. So every creation can be found
again - a version by its content, a run or schedule by a mark in its description - and is looked for before a retry.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import kfp_server_api as api

from whence.errors import PipelineError
from whence.pipelines.cluster.connection import Connection
from whence.pipelines.cluster.package import Package


@dataclass(frozen=True)
class Version:
    """A version of a pipeline in Kubeflow; ``uploaded`` says whether it is new."""

    pipeline_id: str
    version_id: str
    uploaded: bool

    def reference(self) -> api.V2beta1PipelineVersionReference:
        return api.V2beta1PipelineVersionReference(pipeline_id=self.pipeline_id, pipeline_version_id=self.version_id)


def upload(cluster: Connection, package: Package) -> Version:
    """The version of ``package`` in Kubeflow, uploaded (and the pipeline created) only if it is not there."""
    subject = f"pipeline {package.name}"
    pipeline_id = _pipeline_id(cluster, package.name)
    if pipeline_id is None:
        made = api.V2beta1Pipeline(
            name=package.name,
            display_name=package.name,
            description=package.description,
            namespace=cluster.namespace,
        )
        pipeline_id = cluster.ask(
            subject,
            lambda **options: cluster.pipelines.pipeline_service_create_pipeline(pipeline=made, **options).pipeline_id,
            done=lambda: _pipeline_id(cluster, package.name),
        )
    version_id = _version_id(cluster, pipeline_id, package.version)
    if version_id is not None:
        return Version(pipeline_id, version_id, uploaded=False)
    version_id = cluster.ask(
        subject,
        lambda **options: (
            cluster.uploads.upload_pipeline_version(
                str(package.file), name=package.version, pipelineid=pipeline_id, **options
            ).pipeline_version_id
        ),
        done=lambda: _version_id(cluster, pipeline_id, package.version),
    )
    return Version(pipeline_id, version_id, uploaded=True)


def experiment_id(cluster: Connection, name: str) -> str:
    """The experiment of that name, created if it is not there."""

    def find() -> str | None:
        found = cluster.list(
            cluster.experiments.experiment_service_list_experiments, "experiments", **_named(cluster, name)
        )
        return found[0].experiment_id if found else None

    made = api.V2beta1Experiment(display_name=name, namespace=cluster.namespace)
    return find() or cluster.ask(
        f"experiment {name}",
        lambda **options: (
            cluster.experiments.experiment_service_create_experiment(experiment=made, **options).experiment_id
        ),
        done=find,
    )


def create_run(
    cluster: Connection,
    version: Version,
    *,
    name: str,
    experiment: str,
    arguments: Mapping[str, Any],
    service_account: str | None,
) -> str:
    """Start a run and return its id."""
    own = mark()
    run = api.V2beta1Run(
        display_name=name,
        description=own,
        experiment_id=experiment,
        pipeline_version_reference=version.reference(),
        runtime_config=api.V2beta1RuntimeConfig(parameters=dict(arguments)),
        service_account=service_account,
    )

    def find() -> str | None:
        found = cluster.list(cluster.runs.run_service_list_runs, "runs", **_named(cluster, name))
        return next((run.run_id for run in found if run.description == own), None)

    return cluster.ask(
        f"run {name}",
        lambda **options: cluster.runs.run_service_create_run(run=run, **options).run_id,
        done=find,
    )


def get_run(cluster: Connection, run_id: str) -> api.V2beta1Run:
    """A run with its tasks."""
    return cluster.ask(f"run {run_id}", cluster.runs.run_service_get_run, run_id=run_id)


def last_runs(cluster: Connection, count: int, experiment: str | None = None) -> list[api.V2beta1Run]:
    """The newest runs, of one experiment or of all."""
    options: dict[str, Any] = {"namespace": cluster.namespace}
    if experiment is not None:
        found = cluster.list(
            cluster.experiments.experiment_service_list_experiments, "experiments", **_named(cluster, experiment)
        )
        if not found:
            raise PipelineError(f"experiment {experiment}: there is none")
        options = {"experiment_id": found[0].experiment_id}
    page = cluster.ask(None, cluster.runs.run_service_list_runs, page_size=count, sort_by="created_at desc", **options)
    return page.runs or []


def task_names(cluster: Connection, run: api.V2beta1Run) -> dict[str, bool]:
    """The tasks of a run's pipeline by name, and whether each is one that does work (not a loop or condition)."""
    spec = run.pipeline_spec
    reference = run.pipeline_version_reference
    if spec is None and reference is not None and reference.pipeline_version_id:
        version = cluster.ask(
            f"pipeline version {reference.pipeline_version_id}",
            cluster.pipelines.pipeline_service_get_pipeline_version,
            reference.pipeline_id,
            reference.pipeline_version_id,
        )
        spec = version.pipeline_spec
    spec = (spec or {}).get("pipeline_spec", spec or {})  # nested where there is a platform part beside it
    components = spec.get("components", {})
    graphs = [spec.get("root", {}), *components.values()]
    return {
        name: "executorLabel" in components.get(task.get("componentRef", {}).get("name"), {})
        for graph in graphs
        for name, task in graph.get("dag", {}).get("tasks", {}).items()
    }


def _pipeline_id(cluster: Connection, name: str) -> str | None:
    found = cluster.list(cluster.pipelines.pipeline_service_list_pipelines, "pipelines", **_named(cluster, name))
    return found[0].pipeline_id if found else None


def _version_id(cluster: Connection, pipeline_id: str, name: str) -> str | None:
    found = cluster.list(
        lambda **options: cluster.pipelines.pipeline_service_list_pipeline_versions(pipeline_id, **options),
        "pipeline_versions",
        filter=named(name),
    )
    return found[0].pipeline_version_id if found else None


def named(name: str) -> str:
    """The filter of a list for entries of that name."""
    predicate = {"operation": "EQUALS", "key": "display_name", "string_value": name}
    return json.dumps({"predicates": [predicate]})


def _named(cluster: Connection, name: str) -> dict[str, Any]:
    return {"filter": named(name), "namespace": cluster.namespace}


def mark() -> str:
    """A description that no other creation has."""
    return f"Created by whence ({uuid4()})"
