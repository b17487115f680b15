"""Whence's requests to MLflow, in MLflow's names and types. Each may be repeated: a second time changes nothing."""

from __future__ import annotations

import getpass
import json
import logging
import os
import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from whence import __version__
from whence.errors import TrackingError
from whence.tracking.address import Address
from whence.tracking.faults import is_mlflow_error, is_refusal, none_if_absent
from whence.tracking.lock import Lock
from whence.tracking.settle import (
    NOTE_TAG,
    PARENT_TAG,
    PIPELINE,
    PIPELINE_TAG,
    STAGE_TAG,
    children_of,
    describe,
    reopen,
    settle,
)  # fmt: skip
from whence.tracking.spool import Call

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

T = TypeVar("T")

PIPELINE_PAGE_TAG = "kfp.pipeline_run_url"  # as Kubeflow's own MLflow plugin names it
VERSION_TAG, CHAMPION_TAG = "whence.model_version", "whence.champion"  # candidate, refused or promoted
KEY_TAG = "whence.key_of_record"
ENDS_WITH_TAG = "whence.ends_with"  # the stage after which a pipeline's run is over
REFUSED_TAG = "whence.not_recorded"  # and the stage's name: what MLflow refused of it for good
TABLES_TAG = "mlflow.loggedArtifacts"
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}  # the UI's view for training, not for chat
VIEW = "whence"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"  # as MLflow's UI keeps the views that people save
COLUMNS = (
    *(f"metrics.`{name}`" for name in ("base.accuracy", "finetuned.accuracy", "final_eval_loss", "gate.passed")),
    *(f"tags.`whence.{name}`" for name in ("evidence", "champion", "model_version", "failed_stage")),
)
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
        settings: flat parameters of the parent run: what differs from the defaults.
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
        """Find or create the stage's run, and the parent it is nested under.

        A task of a pipeline that is tried again takes over the run of its first attempt, by the key.

        Raises:
            TrackingError: the run to resume has been deleted, or there is none.
        """
        parent_id = None
        if about.resume:
            resumed = self._run_to_resume(about.resume)
            if PARENT_TAG in resumed.data.tags:  # the task's own run
                reopen(self._client, resumed)
                self._client.set_tag(about.resume, STAGE_TAG, about.stage)
                return RunIds(about.resume, resumed.info.experiment_id, resumed.data.tags[PARENT_TAG])
            parent_id, experiment_id = about.resume, resumed.info.experiment_id
        else:
            experiment_id = self.experiment_id
            if about.pipeline_run:
                parent_id = self._open_parent(about, about.pipeline_run)
        known = self._search(experiment_id, KEY_TAG, about.key)
        if known:
            reopen(self._client, known[0])
            return RunIds(known[0].info.run_id, experiment_id, parent_id)
        tags = {KEY_TAG: about.key, STAGE_TAG: about.stage, "whence.profile": about.profile} | _source_tags(about.stage)
        if parent_id:
            tags[PARENT_TAG] = parent_id
        created = self._client.create_run(experiment_id, start_time=about.started, tags=tags, run_name=about.stage)
        return RunIds(created.info.run_id, experiment_id, parent_id)

    def _run_to_resume(self, run_id: str) -> Run:
        found = none_if_absent(lambda: self._client.get_run(run_id))()
        if found is None or found.info.lifecycle_stage == "deleted":
            state = "is not known" if found is None else "has been deleted"
            raise TrackingError(
                f"MLFLOW_RUN_ID: the run {run_id} {state} at {self.address.uri}", hint="unset it, or name another run"
            )
        return found

    def settle(self, pipeline_run: str, status: str, ended: int) -> None:
        """End the run of a pipeline run, if there is one."""
        parent = self._parent(pipeline_run)
        if parent is not None:
            settle(self._client, parent, status, ended)

    def pipeline_tags(self, run: RunIds) -> dict[str, str]:
        """The tags of the parent run; of this one when it stands alone."""
        return dict(self._client.get_run(run.parent_id or run.run_id).data.tags)

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
        log(_target(run, call), str(call.path), call.arguments["folder"])

    def _send_table(self, run: RunIds, call: Call) -> None:
        # MlflowClient.log_table appends to what is there, so it cannot be repeated; here are the same file and tag.
        self._send_artifact(run, call)
        assert call.path is not None
        entry = {"path": posixpath.join(call.arguments["folder"] or "", call.path.name), "type": "table"}
        run_id = _target(run, call)
        tables = json.loads(self._client.get_run(run_id).data.tags.get(TABLES_TAG, "[]"))
        if entry not in tables:
            self._client.set_tag(run_id, TABLES_TAG, json.dumps([*tables, entry]))

    def _send_note(self, run: RunIds, call: Call) -> None:
        describe(self._client, run.parent_id or run.run_id, call.arguments["section"], call.arguments["text"])

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
        self._client.log_inputs(_target(run, call), datasets=[DatasetInput(dataset, tags)])

    def _send_model(self, run: RunIds, call: Call) -> str:
        """A logged model with the folder's files, and a version of the registered model that points to it.

        MLflow 3 shows a logged model under the run's outputs and artifacts, in the experiment's Models tab and beside
        the model version; a version made from plain run artifacts appears in the registry only.
        """
        from mlflow.entities import LoggedModelOutput

        name = call.arguments["name"]
        model_id = self._logged_model(run, call)
        for run_id in filter(None, (run.run_id, run.parent_id)):
            outputs = self._client.get_run(run_id).outputs
            if model_id not in [output.model_id for output in (outputs.model_outputs if outputs else [])]:
                self._client.log_outputs(run_id, [LoggedModelOutput(model_id, 0)])
        version = self._model_version(run, call, model_id)
        # What the server does for its own clients, and nobody for those of a sqlite file.
        self._client.set_logged_model_tags(
            model_id, {"mlflow.modelVersions": json.dumps([{"name": name, "version": version}])}
        )
        return version

    def _send_finish(self, run: RunIds, call: Call) -> None:
        ended, stage = call.arguments["time"], call.arguments["stage"]
        self._client.set_terminated(run.run_id, call.arguments["status"], ended)
        parent = self._client.get_run(run.parent_id or run.run_id)
        refused, tag = call.arguments["refused"], f"{REFUSED_TAG}.{stage}"
        if refused:
            self._client.set_tag(parent.info.run_id, tag, text_of("\n".join(refused)))
        elif tag in parent.data.tags:  # of an earlier attempt
            self._client.delete_tag(parent.info.run_id, tag)
        if parent.data.tags.get(STAGE_TAG) == PIPELINE:
            self._settle_parent(parent, ended)

    def _settle_parent(self, parent: Run, ended: int) -> None:
        """The pipeline's run is over when none of its stages runs and one has failed, or the last one has finished."""
        children = children_of(self._client, parent)
        states = {child.data.tags.get(STAGE_TAG): child.info.status for child in children}
        bad = {"FAILED", "KILLED"} & set(states.values())
        if "RUNNING" not in states.values() and (bad or states.get(parent.data.tags.get(ENDS_WITH_TAG)) == "FINISHED"):
            settle(self._client, parent, min(bad, default="FINISHED"), ended)

    def _find_or_create_experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        for _ in range(2):
            experiment = self._client.get_experiment_by_name(name)
            if experiment is not None and experiment.lifecycle_stage == "deleted":
                raise TrackingError(
                    f"tracking.experiment: {name!r} at {self.address.uri} has been deleted",
                    hint="restore it there (mlflow experiments restore), or choose another name",
                )
            if experiment is not None:
                return str(experiment.experiment_id)
            try:
                self._client.create_experiment(name, self._artifact_location(), EXPERIMENT_TAGS)
            except MlflowException as error:  # another stage was faster
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
        raise TrackingError(f"tracking.experiment: {name!r} at {self.address.uri} can be neither found nor created")

    def _artifact_location(self) -> str | None:
        # Not "mlruns": a folder of that name makes a plain `mlflow ui` look there and not into the sqlite file.
        database = self.address.database
        return None if database is None else (database.parent / "mlartifacts").as_uri()

    def _introduce(self) -> None:
        """The view of the columns that matter, once; and a description that leads to it where people wrote none."""
        experiment_id = self.experiment_id
        tags = self._client.get_experiment(experiment_id).tags
        if VIEW_TAG in tags:
            return
        now = round(datetime.now(UTC).timestamp() * 1000)
        view = {"name": "Whence", "createdAt": now, "updatedAt": now, "state": json.dumps({"selectedColumns": COLUMNS})}
        page = f"#/experiments/{experiment_id}/runs?viewStateShareKey={VIEW}&workflowType=machine_learning"
        if NOTE_TAG not in tags:
            note = f"[Pipeline runs, with the columns that matter]({page}). Each has its stages nested below it."
            self._client.set_experiment_tag(experiment_id, NOTE_TAG, note)
        self._client.set_experiment_tag(experiment_id, VIEW_TAG, json.dumps(view))

    def _open_parent(self, about: RunDescription, pipeline_run: str) -> str:
        """The one run of a pipeline run, created under a lock where there is none, and running."""
        parent = self._parent(pipeline_run)
        if parent is None:
            name, why = f"whence.runs.{self.experiment_id}", "Somebody is beginning a pipeline run at this moment."
            with Lock(self._client, name, why, lambda action: action()).held() as is_held:
                parent = self._parent(pipeline_run)
                if parent is None and is_held():
                    self._introduce()
                    return self._create_parent(about, pipeline_run)
            if parent is None:
                raise TimeoutError(f"MLflow at {self.address.uri} took too long to begin a run")
        if parent.data.tags.get(STAGE_TAG) == PIPELINE:
            reopen(self._client, parent)
        return str(parent.info.run_id)

    def _create_parent(self, about: RunDescription, pipeline_run: str) -> str:
        from mlflow.entities import ViewType

        day = datetime.fromtimestamp(about.started / 1000, UTC)
        midnight = round(day.replace(hour=0, minute=0, second=0, microsecond=0).timestamp() * 1000)
        query = f"tags.`{STAGE_TAG}` = '{PIPELINE}' and attributes.start_time >= {midnight}"
        earlier = self._client.search_runs([self.experiment_id], query, ViewType.ALL, max_results=1000)
        number = 1 + sum(run.data.tags.get("whence.profile") == about.profile for run in earlier)
        tags = {PIPELINE_TAG: pipeline_run, STAGE_TAG: PIPELINE, "whence.profile": about.profile}
        if about.pipeline_page:
            tags[PIPELINE_PAGE_TAG] = about.pipeline_page
        created = self._client.create_run(
            self.experiment_id,
            start_time=about.started,
            tags=tags | _source_tags("run"),
            run_name=f"{about.profile} #{number} of {day:%Y-%m-%d}",  # the list of runs shows 18 letters
        )
        run_id = str(created.info.run_id)
        self._log_params(run_id, about.settings)
        return run_id

    def _parent(self, pipeline_run: str) -> Run | None:
        """The run of a pipeline run: the one that is nested under none."""
        runs = self._search(self.experiment_id, PIPELINE_TAG, pipeline_run)
        return next((run for run in runs if PARENT_TAG not in run.data.tags), None)

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
            try:
                self._client.log_model_artifacts(model_id, str(call.path))
            except Exception as error:
                if is_mlflow_error(error) and is_refusal(error):
                    self._client.finalize_logged_model(model_id, "FAILED")
                raise
            self._client.finalize_logged_model(model_id, "READY")
        return model_id

    def _model_version(self, run: RunIds, call: Call, model_id: str) -> str:
        from mlflow.exceptions import MlflowException

        name, tags = call.arguments["name"], call.arguments["tags"] | {KEY_TAG: call.key}
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
            name, source, run.parent_id or run.run_id, tags, description=call.arguments.get("about"),
            await_creation_for=0, model_id=model_id,
        )  # fmt: skip
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
