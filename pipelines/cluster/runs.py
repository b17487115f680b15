"""What the commands ask of Kubeflow: a pipeline uploaded, a run started, looked at, ended, tried again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import kfp_server_api as api

from whence.errors import PipelineError
from whence.pipelines.cluster.client import TIMEOUT, Client
from whence.pipelines.cluster.package import Package

ENDED = {"SUCCEEDED", "FAILED", "SKIPPED", "CANCELED"}


class Version(NamedTuple):
    """A version of a pipeline in Kubeflow; ``uploaded`` says whether it is new."""

    pipeline_id: str
    version_id: str
    uploaded: bool


def upload(client: Client, package: Package) -> Version:
    """The version of ``package`` in Kubeflow, uploaded (and the pipeline created) only if it is not there."""
    subject = f"pipeline {package.name}"

    def pipelines() -> set[str]:
        return client.ids("pipelines", package.name)

    def create_pipeline() -> str:  # kfp's own way would call the first version like the pipeline
        pipeline = api.V2beta1Pipeline(
            name=package.name, display_name=package.name, description=package.description, namespace=client.namespace
        )
        return client.pipelines.pipeline_service_create_pipeline(pipeline=pipeline).pipeline_id

    def versions() -> set[str]:
        return client.ids("pipeline_versions", package.version, pipeline_id=pipeline_id)

    def upload_version() -> str:
        version = client.upload_pipeline_version(str(package.file), package.version, pipeline_id=pipeline_id)
        return version.pipeline_version_id

    pipeline_id = next(iter(pipelines()), None) or client.create(subject, pipelines, create_pipeline)
    version_id = next(iter(versions()), None)
    if version_id is not None:
        return Version(pipeline_id, version_id, uploaded=False)
    return Version(pipeline_id, client.create(subject, versions, upload_version), uploaded=True)


def experiment_id(client: Client, name: str) -> str:
    """The experiment of that name, created if it is not there."""
    return client.ask(f"experiment {name}", client.create_experiment, name, namespace=client.namespace).experiment_id


def create_run(
    client: Client,
    version: Version,
    *,
    name: str,
    experiment: str,
    arguments: Mapping[str, Any],
    service_account: str | None,
) -> str:
    """Start a run and return its id."""

    def request() -> str:
        return client.run_pipeline(
            experiment,
            name,
            params=dict(arguments),
            pipeline_id=version.pipeline_id,
            version_id=version.version_id,
            service_account=service_account,
        ).run_id

    return client.create(f"run {name}", lambda: client.ids("runs", name), request)


def get_run(client: Client, run_id: str) -> api.V2beta1Run:
    """A run with its tasks."""
    return client.ask(f"run {run_id}", client.runs.run_service_get_run, run_id, _request_timeout=TIMEOUT)


def last_runs(client: Client, count: int, experiment: str | None = None) -> list[api.V2beta1Run]:
    """The newest runs, of one experiment or of all."""
    options: dict[str, Any] = {"namespace": client.namespace}
    if experiment is not None:
        try:
            found = client.ask(None, client.get_experiment, experiment_name=experiment, namespace=client.namespace)
        except ValueError as error:  # kfp's for none, or several
            raise PipelineError(f"experiment {experiment}: there is none; {error}") from error
        options["experiment_id"] = found.experiment_id
    return client.ask(None, client.list_runs, page_size=count, sort_by="created_at desc", **options).runs or []


def cancel(client: Client, run_id: str) -> None:
    """End a run.

    Raises:
        PipelineError: there is no such run, or it has ended.
    """
    state = state_of(get_run(client, run_id))
    if state in ENDED:
        raise PipelineError(f"run {run_id}: has ended already ({state.lower()})")
    client.ask(f"run {run_id}", client.terminate_run, run_id)


def retry(client: Client, run_id: str) -> None:
    """Go on with a run that failed or was cancelled; what its tasks have finished is kept.

    Raises:
        PipelineError: there is no such run, or it goes on or succeeded.
    """
    state = state_of(get_run(client, run_id))
    if state not in ("FAILED", "CANCELED"):
        raise PipelineError(
            f"run {run_id}: is {state.lower()}", hint="only one that failed or was cancelled is tried again"
        )
    client.ask(f"run {run_id}", client.runs.run_service_retry_run, run_id)


def state_of(run: api.V2beta1Run) -> str:
    """The run's true state: Kubeflow lists one that was terminated as failed."""
    state = run.state or "PENDING"
    last_two = [entry.state for entry in (run.state_history or ())[-2:]]
    return "CANCELED" if last_two == ["CANCELING", "FAILED"] else state
