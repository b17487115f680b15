"""Whence's requests to MLflow, in MLflow's names and types. Each may be repeated: a second time changes nothing."""

from __future__ import annotations

import getpass
import json
import logging
import os
import posixpath
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from whence import __version__
from whence.errors import TrackingError
from whence.tracking.address import Address
from whence.tracking.spool import Call

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

T = TypeVar("T")

PIPELINE_TAG = "kfp.pipeline_run_id"  # these two as Kubeflow's own MLflow plugin names them
PIPELINE_PAGE_TAG = "kfp.pipeline_run_url"
PARENT_TAG = "mlflow.parentRunId"
KEY_TAG = "whence.key_of_record"
STAGE_TAG = "whence.stage"
AGE_TAG = "whence.created"
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}  # the UI's view for training, not for chat
TABLES_TAG = "mlflow.loggedArtifacts"
# Long enough for another stage that saw no parent before ours existed to have created its own.
SETTLE_SECONDS = 0.5
DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # MLflow's own seven retries take minutes; the caller retries instead
}


@dataclass(frozen=True)
class RunDescription:
    """Which run calls belong to, in terms that hold before the run exists at the server. Plain JSON values.

    Attributes:
        key: identifies the run at the server, so that it is not created twice.
        started: milliseconds since the epoch.
        pipeline_run: Kubeflow's run id, shared by the stages of one pipeline run.
        pipeline_page: where people see that run in Kubeflow's UI.
        resume: MLflow run made for this task by Kubeflow's MLflow plugin, or a parent run made by the user.
        settings: flat parameters of the parent run.
    """

    key: str
    stage: str
    address: str
    experiment: str
    profile: str
    started: int
    pipeline_run: str | None = None
    pipeline_page: str | None = None
    resume: str | None = None
    settings: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RunIds:
    """A run at the server; without a parent, ``parent_id`` is None."""

    run_id: str
    experiment_id: str
    parent_id: str | None


class MlflowServer:
    """One experiment at one tracking address.

    Raises:
        mlflow.exceptions.MlflowException, OSError: from every method, when MLflow cannot be reached or refuses.
        TrackingError: the experiment has been deleted.
    """

    def __init__(self, address: Address, experiment: str) -> None:
        self.address = address
        self._client = open_client(address)
        self.experiment_id = self._find_or_create_experiment(experiment)

    def open_run(self, about: RunDescription) -> RunIds:
        """Find or create the stage's run, and the parent it is nested under."""
        parent_id = None
        if about.resume:
            resumed = self._client.get_run(about.resume)
            if PARENT_TAG in resumed.data.tags:  # the task's own run
                self._client.update_run(about.resume, status="RUNNING")
                self._client.set_tag(about.resume, STAGE_TAG, about.stage)
                return RunIds(about.resume, resumed.info.experiment_id, resumed.data.tags[PARENT_TAG])
            parent_id, experiment_id = about.resume, resumed.info.experiment_id
        else:
            experiment_id = self.experiment_id
            if about.pipeline_run:
                parent_id = self._find_or_create_parent(about, about.pipeline_run)
        known = self._search(experiment_id, KEY_TAG, about.key)
        if known:
            return RunIds(known[0].info.run_id, experiment_id, parent_id)
        tags = {KEY_TAG: about.key, STAGE_TAG: about.stage, "whence.profile": about.profile} | _source_tags(about.stage)
        if parent_id:
            tags[PARENT_TAG] = parent_id
        created = self._client.create_run(experiment_id, start_time=about.started, tags=tags, run_name=about.stage)
        return RunIds(created.info.run_id, experiment_id, parent_id)

    def send(self, run: RunIds, call: Call) -> str | None:
        """Deliver one call; the answer is the version number for a model, else None."""
        answer: str | None = getattr(self, f"_send_{call.name}")(run, call)
        return answer

    def _send_params(self, run: RunIds, call: Call) -> None:
        self._log_params(run.run_id, call.arguments["values"])

    def _send_metrics(self, run: RunIds, call: Call) -> None:
        from mlflow.entities import Metric

        time_stamp, step = call.arguments["time"], call.arguments["step"]
        metrics = [Metric(name, value, time_stamp, step) for name, value in call.arguments["values"].items()]
        for part in _parts(metrics, 1000):
            self._client.log_batch(_target(run, call), metrics=part)

    def _send_tags(self, run: RunIds, call: Call) -> None:
        from mlflow.entities import RunTag

        for part in _parts([RunTag(name, value) for name, value in call.arguments["values"].items()], 100):
            self._client.log_batch(_target(run, call), tags=part)

    def _send_artifact(self, run: RunIds, call: Call) -> None:
        assert call.path is not None
        log = self._client.log_artifacts if call.path.is_dir() else self._client.log_artifact
        log(run.run_id, str(call.path), call.arguments["folder"])

    def _send_table(self, run: RunIds, call: Call) -> None:
        # MlflowClient.log_table appends to what is there, so it cannot be repeated; here are the same file and tag.
        self._send_artifact(run, call)
        assert call.path is not None
        entry = {"path": posixpath.join(call.arguments["folder"] or "", call.path.name), "type": "table"}
        tables = json.loads(self._client.get_run(run.run_id).data.tags.get(TABLES_TAG, "[]"))
        if entry not in tables:
            self._client.set_tag(run.run_id, TABLES_TAG, json.dumps([*tables, entry]))

    def _send_dataset(self, run: RunIds, call: Call) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        arguments, source = call.arguments, call.arguments["source"]
        dataset = Dataset(
            name=arguments["name"],
            digest=arguments["fingerprint"][:36],  # MLflow's limit; the whole one is in the profile
            source_type=source.partition(":")[0] if ":" in source else "local",
            source=json.dumps({"uri": source}),
            profile=json.dumps({"num_rows": arguments["rows"], "fingerprint": arguments["fingerprint"]}),
        )
        tags = [InputTag("mlflow.data.context", arguments["context"])]
        self._client.log_inputs(run.run_id, datasets=[DatasetInput(dataset, tags)])

    def _send_model(self, run: RunIds, call: Call) -> str:
        """A logged model with the folder's files, and a version of the registered model that points to it.

        MLflow 3 shows a logged model under the run's outputs and artifacts, in the experiment's Models tab and beside
        the model version; a version made from plain run artifacts appears in the registry only.
        """
        from mlflow.entities import LoggedModelOutput

        assert call.path is not None
        name, tags = call.arguments["name"], call.arguments["tags"]
        model_id = self._logged_model(run, call)
        outputs = self._client.get_run(run.run_id).outputs
        if model_id not in [output.model_id for output in (outputs.model_outputs if outputs else [])]:
            self._client.log_outputs(run.run_id, [LoggedModelOutput(model_id, 0)])
        version = self._model_version(run, name, tags | {KEY_TAG: call.key}, model_id)
        # What the server does for its own clients, and nobody for those of a sqlite file.
        self._client.set_logged_model_tags(
            model_id, {"mlflow.modelVersions": json.dumps([{"name": name, "version": version}])}
        )
        return version

    def _send_finish(self, run: RunIds, call: Call) -> None:
        ended = call.arguments["time"]
        self._client.set_terminated(run.run_id, call.arguments["status"], ended)
        if run.parent_id:
            parent = self._nest_under_oldest(run, self._client.get_run(run.parent_id))
            if STAGE_TAG in parent.data.tags:
                self._settle_parent(run, str(parent.info.run_id), ended)

    def _nest_under_oldest(self, run: RunIds, parent: Run) -> Run:
        """The one parent of the pipeline run, also where a slow server showed an older one only after ours was chosen.

        A parent that the last of its stages has left is deleted; its metrics go along.
        """
        pipeline_run = parent.data.tags.get(PIPELINE_TAG)
        parents = self._parents(pipeline_run) if pipeline_run else []
        if not parents or parents[0].info.run_id == parent.info.run_id:
            return parent
        left, oldest = str(parent.info.run_id), str(parents[0].info.run_id)
        self._client.set_tag(run.run_id, PARENT_TAG, oldest)
        for name, value in parent.data.metrics.items():
            self._client.log_metric(oldest, name, value)
        if not self._search(run.experiment_id, PARENT_TAG, left):
            self._client.delete_run(left)
        return parents[0]

    def _settle_parent(self, run: RunIds, parent_id: str, ended: int) -> None:
        """The parent is over while none of its stages runs: failed when the last attempt of any stage failed."""
        children = self._search(run.experiment_id, PARENT_TAG, parent_id)
        last = {child.data.tags.get(STAGE_TAG, child.info.run_id): child.info.status for child in children}
        if "RUNNING" not in last.values():
            status = "FINISHED" if set(last.values()) == {"FINISHED"} else "FAILED"
            self._client.set_terminated(parent_id, status, ended)

    def _find_or_create_experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        for _ in range(2):
            experiment = self._client.get_experiment_by_name(name)
            if experiment is not None and experiment.lifecycle_stage == "deleted":
                raise TrackingError(
                    f"tracking.experiment: {name!r} at {self.address.uri} has been deleted; restore it there "
                    "(mlflow experiments restore), or choose another name"
                )
            if experiment is not None:
                return str(experiment.experiment_id)
            try:
                return str(self._client.create_experiment(name, self._artifact_location(), EXPERIMENT_TAGS))
            except MlflowException as error:  # another stage was faster
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
        raise TrackingError(f"tracking.experiment: {name!r} at {self.address.uri} can be neither found nor created")

    def _artifact_location(self) -> str | None:
        # Not "mlruns": a folder of that name makes a plain `mlflow ui` look there and not into the sqlite file.
        database = self.address.database
        return None if database is None else (database.parent / "mlartifacts").as_uri()

    def _find_or_create_parent(self, about: RunDescription, pipeline_run: str) -> str:
        """The oldest parent; stages that start at once may each create one, look again, and drop all but the oldest."""
        parents, own = self._parents(pipeline_run), None
        if not parents:
            own = self._create_parent(about, pipeline_run)
            time.sleep(SETTLE_SECONDS)
            parents = self._parents(pipeline_run)
        parent = parents[0]
        parent_id = str(parent.info.run_id)
        if own is not None and own != parent_id:
            self._client.delete_run(own)
        if parent.info.status != "RUNNING" and STAGE_TAG in parent.data.tags:
            self._client.update_run(parent_id, status="RUNNING")
        return parent_id

    def _create_parent(self, about: RunDescription, pipeline_run: str) -> str:
        created_at = str(time.time_ns())  # not the start: how long it takes from there to here differs between stages
        tags = {PIPELINE_TAG: pipeline_run, STAGE_TAG: "pipeline", "whence.profile": about.profile, AGE_TAG: created_at}
        if about.pipeline_page:
            tags[PIPELINE_PAGE_TAG] = about.pipeline_page
        created = self._client.create_run(
            self.experiment_id,
            start_time=about.started,
            tags=tags | _source_tags("run"),
            run_name=f"{about.profile} {pipeline_run}"[:60],
        )
        run_id = str(created.info.run_id)
        self._log_params(run_id, about.settings)
        return run_id

    def _parents(self, pipeline_run: str) -> list[Run]:
        """The runs of a pipeline run that are nested under none, oldest first."""
        runs = self._search(self.experiment_id, PIPELINE_TAG, pipeline_run)
        parents = [run for run in runs if PARENT_TAG not in run.data.tags]
        return sorted(parents, key=lambda run: (int(run.data.tags.get(AGE_TAG, 0)), run.info.run_id))

    def _search(self, experiment_id: str, tag: str, value: str) -> list[Run]:
        """Runs by a tag's value, in the order of their start."""
        query, order = f"tags.`{tag}` = '{value}'", ["attributes.start_time ASC"]
        return list(self._client.search_runs([experiment_id], query, max_results=1000, order_by=order))

    def _log_params(self, run_id: str, values: dict[str, str]) -> None:
        from mlflow.entities import Param

        for part in _parts([Param(name, value) for name, value in values.items()], 100):
            self._client.log_batch(run_id, params=part)

    def _logged_model(self, run: RunIds, call: Call) -> str:
        name, tags = call.arguments["name"], call.arguments["tags"]
        known = self._client.search_logged_models([run.experiment_id], f"tags.`{KEY_TAG}` = '{call.key}'")
        model: LoggedModel = (
            known[0]
            if known
            else self._client.create_logged_model(
                run.experiment_id, name, source_run_id=run.run_id, tags=tags | {KEY_TAG: call.key}
            )
        )
        model_id = str(model.model_id)
        if str(model.status) != "READY":
            self._client.log_model_artifacts(model_id, str(call.path))
            self._client.finalize_logged_model(model_id, "READY")
        return model_id

    def _model_version(self, run: RunIds, name: str, tags: dict[str, str], model_id: str) -> str:
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        known = self._client.search_model_versions(f"name = '{name}' and tags.`{KEY_TAG}` = '{tags[KEY_TAG]}'")
        if known:
            return str(known[0].version)
        # The location, not "models:/<id>": MLflow resolves that through its global tracking URI, which is another one.
        source = self._client.get_logged_model(model_id).artifact_location
        version = self._client.create_model_version(
            name, source, run_id=run.run_id, tags=tags, await_creation_for=0, model_id=model_id
        )
        return str(version.version)


def open_client(address: Address) -> MlflowClient:
    """MLflow's client for an address, with its retries, prints and telemetry off."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for noisy in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=address.uri, registry_uri=address.uri)


class SystemMetrics:
    """CPU, memory, disk, network and GPU of the machine while a stage runs, by MLflow's own monitor.

    Its samples are neither retried nor kept for later: a gap in them is no loss of results.

    MLflow's own variables say whether and how often: ``MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING`` (here on unless it says
    false), ``MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL`` (10 seconds).
    """

    def __init__(self) -> None:
        self._monitor: SystemMetricsMonitor | None = None

    def start(self, uri: str, run_id: str) -> None:
        """Sample from now on; called again after an outage, the samples are continued."""
        from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING
        from mlflow.system_metrics import system_metrics_monitor

        self.stop()
        if not MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.get():
            return
        # That the server is away is reported once, by the run, and not for every sample.
        logging.getLogger(system_metrics_monitor.__name__).setLevel(logging.CRITICAL)
        self._monitor = system_metrics_monitor.SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=uri)
        self._monitor.start()

    def stop(self) -> None:
        """Deliver the last samples and end."""
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as parameters with dotted names; values that are not text become JSON."""
    result: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
            result[name_of(f"{prefix}{key}")] = text_of(text)
    return result


def name_of(key: str) -> str:
    """A name that MLflow accepts: letters, digits, and ``_ - . space /``, at most 250 characters."""
    return re.sub(r"[^\w\-. /]", "_", key, flags=re.ASCII)[:250]


def text_of(value: Any) -> str:
    """Text that every database takes: lone surrogates and NUL characters replaced."""
    return str(value).encode("utf-8", "replace").decode("utf-8").replace("\x00", "\N{REPLACEMENT CHARACTER}")


def quotable(value: str | None) -> str | None:
    """A run id that can stand in a search filter; None when there is none."""
    return re.sub(r"[^\w\-.:/ ]", "_", value) or None if value else None


def _target(run: RunIds, call: Call) -> str:
    """The run that metrics or tags are for: the parent when the call says so and there is one."""
    return run.parent_id if call.arguments.get("parent") and run.parent_id else run.run_id


def _parts(items: list[T], size: int) -> Iterator[list[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _source_tags(what: str) -> dict[str, str]:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user id without a name
        user = str(os.getuid())
    return {
        "mlflow.user": user,
        "mlflow.source.name": f"whence {what}",
        "mlflow.source.type": "LOCAL",
        "whence.version": __version__,
    }
