"""The run of a stage: what stages log goes to MLflow, or to the spool while the server is away."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from whence.config import Config
from whence.errors import TrackingError, scrub
from whence.files import link_or_copy
from whence.tracking.address import Address
from whence.tracking.faults import (
    explained,
    first_line,
    is_mlflow_error,
    is_refusal,
    is_transient,
    refusal_text,
    retrying,
)
from whence.tracking.server import (
    REFUSED_TAG,
    MlflowServer,
    RunDescription,
    RunIds,
    SystemMetrics,
    flat,
    name_of,
    quotable,
    text_of,
)  # fmt: skip
from whence.tracking.spool import Call, Spool

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

PIPELINE_VARIABLE = "KFP_RUN_ID"
RESUME_VARIABLE = "MLFLOW_RUN_ID"
POD_VARIABLE = "KUBERNETES_SERVICE_HOST"
RECONNECT_SECONDS = 30.0  # how often a run that went offline looks whether the server is back


def check_tracking(config: Config) -> None:
    """Check within seconds whether runs can be recorded; changes nothing at a sqlite address.

    Raises:
        TrackingError: no server answers, it refuses, or the sqlite file cannot be written.
    """
    address = Address.parse(config.tracking.uri)
    address.probe()
    if address.database is None:
        with explained(address):
            MlflowServer(address, config.tracking.experiment)


@contextmanager
def stage_run(config: Config, stage: str) -> Iterator[StageRun]:
    """Record a stage: a run nested under the pipeline's, FAILED when the body raises.

    The parent run is the one tagged ``kfp.pipeline_run_id`` = ``$KFP_RUN_ID``, created when there is none; without
    that variable the stage's run stands alone. A stage of a pipeline run that is tried again goes on in the run of its
    first attempt. ``$MLFLOW_RUN_ID``, as Kubeflow's MLflow plugin sets it for each task, is resumed; when it names a
    run that is nested under none, it is taken as the parent.

    Raises:
        TrackingError: the server refuses to open the run. Being unreachable is no error here: see the package.
    """
    run = StageRun(config, stage)
    try:
        yield run
    except BaseException as error:
        run.close("FAILED" if isinstance(error, Exception) else "KILLED", error)
        raise
    run.close("FINISHED")


def settle_run(config: Config, pipeline_run: str, status: str) -> None:
    """End the record of a pipeline run that ended otherwise than well: its last stage may have been killed.

    Args:
        status: FAILED or KILLED.
    """
    address = Address.parse(config.tracking.uri)
    if address.database is not None and not address.database.exists():
        return
    try:
        address.probe()
        MlflowServer(address, config.tracking.experiment).settle(pipeline_run, status, _now())
    except Exception as error:
        if not isinstance(error, TrackingError) and not is_mlflow_error(error):
            raise
        logger.warning("the record of run %s is not ended: %s", pipeline_run, first_line(error))


def upload_spool(config: Config) -> int:
    """Upload what earlier stages of this folder could not deliver, and return how many runs that was.

    Spools that a living stage writes, and those of other tracking addresses, are left alone.

    Raises:
        TrackingError: the server cannot be reached; what has not arrived stays on disk.
    """
    address = Address.parse(config.tracking.uri)
    uploaded, damaged = 0, []
    with Spool.abandoned(spool_folder(config)) as spools:
        for spool in spools:
            try:
                with explained(address):
                    uploaded += _upload(spool, address)
            except (ValueError, TypeError, KeyError) as error:
                damaged.append(f"{spool.folder} is damaged ({error!r}); repair or remove it")
    if damaged:
        raise TrackingError("; ".join(damaged))
    return uploaded


def _upload(spool: Spool, address: Address) -> bool:
    about = RunDescription(**spool.run)
    if about.address != address.uri:
        return False
    pending = spool.pending()
    if pending and pending[-1].name != "finish":  # its writer was killed
        spool.append(Call("finish", {"stage": about.stage, "status": "KILLED", "time": _now(), "refused": []}))
    address.probe()
    server = MlflowServer(address, about.experiment)
    calls = spool.deliver(partial(_send_unless_refused, server, server.open_run(about), []))
    logger.info("uploaded %d calls of an earlier %s run to %s", calls, about.stage, address.uri)
    return True


def spool_folder(config: Config) -> Path:
    """Where calls are kept while the server is away."""
    return Path(config.general.work_dir or Path.cwd()) / ".whence" / "spool"


class StageRun:
    """The MLflow run of one stage. Get it from :func:`stage_run`."""

    def __init__(self, config: Config, stage: str) -> None:
        self._config = config
        self._address = Address.parse(config.tracking.uri)
        pipeline_run = quotable(os.environ.get(PIPELINE_VARIABLE))
        self._about = RunDescription(
            key=f"{pipeline_run}/{stage}" if pipeline_run else uuid.uuid4().hex,
            stage=stage,
            address=self._address.uri,
            experiment=config.tracking.experiment,
            profile=config.profile,
            started=_now(),
            pipeline_run=pipeline_run,
            pipeline_page=_pipeline_page(config),
            resume=quotable(os.environ.get(RESUME_VARIABLE)),
            settings=flat(
                config.model_dump(mode="json", exclude={"tracking", "prompts", "cluster"}, exclude_defaults=True)
            ),
        )
        self.refused: list[str] = []
        self._server: MlflowServer | None = None
        self._ids: RunIds | None = None
        self._spool: Spool | None = None
        self._system = SystemMetrics()
        self._next_try = 0.0
        self._upload_leftovers()  # first: an earlier attempt of this very stage may be among them
        try:
            retrying(self._open, self._config.tracking.retry_seconds)
        except Exception as error:
            if not is_transient(error):
                with explained(self._address):
                    raise
            self._go_offline(error)

    @property
    def run_id(self) -> str | None:
        """MLflow's id; None while the server has never been reached."""
        return self._ids.run_id if self._ids else None

    @property
    def url(self) -> str | None:
        """Where people look at the run; None for a sqlite file, or while the server has never been reached."""
        return self._page(self._ids.run_id) if self._ids else None

    @property
    def pipeline_url(self) -> str | None:
        """Where people look at the parent run (at this one when it stands alone); None as for :attr:`url`."""
        return self._page(self._ids.parent_id or self._ids.run_id) if self._ids else None

    @property
    def kubeflow_url(self) -> str | None:
        """Where people look at the pipeline run in Kubeflow; None where no address is set, or outside a pipeline."""
        return self._about.pipeline_page

    @property
    def pipeline_path(self) -> str | None:
        """The parent run (this one when it stands alone) as a link within MLflow's pages; None as for the id."""
        ids = self._ids
        return None if ids is None else f"#/experiments/{ids.experiment_id}/runs/{ids.parent_id or ids.run_id}"

    def pipeline_tags(self) -> dict[str, str]:
        """The tags of the parent run (of this one when it stands alone) as they are now; none while offline."""
        if self._server is None or self._ids is None or self._spool is not None:
            return {}
        try:
            return retrying(partial(self._server.pipeline_tags, self._ids), self._config.tracking.retry_seconds)
        except Exception as error:
            if not is_mlflow_error(error):
                raise
            return {}

    def not_recorded(self) -> list[str]:
        """What MLflow has refused of the pipeline's stages so far, a line each, with the stage."""
        found = {tag: text for tag, text in self.pipeline_tags().items() if tag.startswith(f"{REFUSED_TAG}.")}
        return [f"{tag.rpartition('.')[2]}: {line}" for tag, text in found.items() for line in text.splitlines()]

    def describe(self, text: str) -> None:
        """What this stage has to say, in Markdown, at the head of the parent run's description."""
        self._record("note", {"section": self._about.stage, "text": text_of(text)})

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Parameters, prefixed by the stage: sections become dotted keys, ``train.training.learning_rate``.

        The prefix keeps them apart from those Kubeflow's MLflow plugin logs: MLflow refuses a second, different value.
        """
        self._record("params", {"values": flat(values, f"{self._about.stage}.")})

    def log_metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Metrics at a step (0 when there are no steps)."""
        self._log_metrics(values, step, parent=False)

    def log_parent_metrics(self, values: Mapping[str, float]) -> None:
        """Headline metrics, on the parent run (on this one when it stands alone)."""
        self._log_metrics(values, None, parent=True)

    def set_tags(self, values: Mapping[str, str]) -> None:
        """Tags of this run."""
        self._set_tags(values, parent=False)

    def set_parent_tags(self, values: Mapping[str, str]) -> None:
        """Tags of the parent run (of this one when it stands alone)."""
        self._set_tags(values, parent=True)

    def log_artifact(
        self, path: Path, folder: str | None = None, name: str | None = None, parent: bool = False
    ) -> None:
        """A file, in ``folder`` of the run's artifacts; ``name`` renames it (``page`` -> ``page.html``).

        Args:
            parent: to the parent run, as in all that follows (to this one when it stands alone).
        """
        arguments = {"folder": folder, "parent": parent}
        if name is None or name == path.name:
            self._record("artifact", arguments, _existing(path))
            return
        with tempfile.TemporaryDirectory() as scratch:
            link_or_copy(_existing(path), f"{scratch}/{name}")
            self._record("artifact", arguments, Path(scratch, name))

    def log_artifacts(self, folder: Path, artifact_path: str | None = None, parent: bool = False) -> None:
        """Everything in a folder."""
        self._record("artifact", {"folder": artifact_path, "parent": parent}, _existing(folder))

    def log_table(self, table: pd.DataFrame, name: str, parent: bool = False) -> None:
        """A table for MLflow's UI to show and compare; ``name`` ends in ``.json``. A second one replaces it."""
        folder, _, file = name.rpartition("/")
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch, file)
            table.to_json(path, orient="split", index=False, date_format="iso")
            self._record("table", {"folder": folder or None, "parent": parent}, path)

    def log_dataset(
        self, name: str, fingerprint: str, source: str, rows: int, context: str, parent: bool = False
    ) -> None:
        """A dataset the run reads or makes; ``context`` says what for (train, eval)."""
        values = {"name": name, "fingerprint": fingerprint, "source": source, "rows": rows, "context": context}
        self._record("dataset", values | {"parent": parent})

    def log_model_version(
        self,
        folder: Path,
        name: str,
        tags: Mapping[str, str],
        content: str | None = None,
        about: str | None = None,
        required: bool = False,
    ) -> str | None:
        """The folder as a logged model and a version of the registered model ``name``.

        Args:
            content: digest of the folder: the same content with the same tags is one version, however often it is
                logged, so that a rerun after a crash finds what it has registered.
            about: the version's description, in Markdown.
            required: whether the pipeline is in vain without it.

        Returns:
            the version number; None while offline.

        Raises:
            TrackingError: it is required, and MLflow refuses it or cannot get it any more.
        """
        clean = {name_of(key): text_of(value) for key, value in tags.items()}
        same = None if content is None else hashlib.sha256(json.dumps([name, content, clean]).encode()).hexdigest()
        refused = len(self.refused)
        version = self._record("model", {"name": name, "tags": clean, "about": about}, _existing(folder), same)
        if required and version is None and (why := self.refused[refused:] or self._lost()):
            raise TrackingError(f"the model cannot become a version of {name!r}, which this run is for: {why[0]}")
        return version

    def _lost(self) -> list[str]:
        """Why what is not delivered by now never will be; nothing where it is kept for later."""
        if POD_VARIABLE not in os.environ or self._config.general.work_dir is not None:
            return []
        return ["MLflow does not answer, and what is kept here is lost with this pod: set general.work_dir to a volume"]

    def close(self, status: str, error: BaseException | None = None) -> None:
        """End the run and deliver what is still on disk. Raises nothing: the stage's own outcome counts."""
        self._system.stop()
        try:
            if error is not None:
                self.set_tags({"whence.error": scrub(f"{type(error).__name__}: {error}")})
            self._next_try = 0.0
            outcome = {"stage": self._about.stage, "status": status, "time": _now(), "refused": self.refused}
            self._record("finish", outcome)
            if self._spool is not None and self._lost():
                self.refused.append(f"all that is not delivered: {self._lost()[0]}")
                logger.error("the record of stage %s is lost: %s", self._about.stage, self._lost()[0])
            elif self._spool is not None:
                logger.warning(
                    "the record of stage %s is kept in %s; it is uploaded when the next stage starts from this "
                    "folder, or by whence.tracking.upload_spool",
                    self._about.stage,
                    self._spool.folder,
                )
        except (OSError, TrackingError) as problem:
            logger.error("the record of stage %s is incomplete: %s", self._about.stage, problem)
        finally:
            if self._spool is not None:
                self._spool.close()

    def _log_metrics(self, values: Mapping[str, float], step: int | None, parent: bool) -> None:
        numbers = {name_of(key): float(value) for key, value in values.items()}
        self._record("metrics", {"values": numbers, "step": int(step or 0), "time": _now(), "parent": parent})

    def _set_tags(self, values: Mapping[str, str], parent: bool) -> None:
        tags = {name_of(key): text_of(value) for key, value in values.items()}
        self._record("tags", {"values": tags, "parent": parent})

    def _record(
        self, name: str, arguments: dict[str, Any], path: Path | None = None, key: str | None = None
    ) -> str | None:
        call = Call(name, arguments, path, key or uuid.uuid4().hex)
        try:
            if self._spool is None or (time.monotonic() >= self._next_try and self._come_online()):
                return retrying(partial(self._send, call), self._config.tracking.retry_seconds)
        except Exception as error:
            if not is_transient(error):
                raise
            self._go_offline(error)
        assert self._spool is not None
        self._spool.append(call)
        return None

    def _open(self) -> None:
        self._address.probe()
        self._server = MlflowServer(self._address, self._about.experiment)
        self._ids = self._server.open_run(self._about)
        self._system.start(self._address.uri, self._ids.run_id)

    def _page(self, run_id: str) -> str | None:
        people = self._config.tracking.ui_url or (None if self._address.database else self._address.uri)
        if people is None or self._ids is None:
            return None
        return f"{people.rstrip('/')}/#/experiments/{self._ids.experiment_id}/runs/{run_id}"

    def _send(self, call: Call) -> str | None:
        assert self._server is not None
        assert self._ids is not None
        return _send_unless_refused(self._server, self._ids, self.refused, call)

    def _go_offline(self, error: Exception) -> None:
        self._next_try = time.monotonic() + RECONNECT_SECONDS
        if self._spool is None:
            self._spool = Spool.create(spool_folder(self._config), self._about.stage, asdict(self._about))
            logger.warning(
                "MLflow at %s does not answer (%s); stage %s goes on and keeps its record in %s",
                self._address.uri,
                first_line(error),
                self._about.stage,
                self._spool.folder,
            )

    def _come_online(self) -> bool:
        """Deliver what is on disk, if the server is back."""
        assert self._spool is not None
        try:
            if self._ids is None:
                self._open()
            else:
                self._address.probe()
                self._system.start(self._address.uri, self._ids.run_id)
            calls = self._spool.deliver(self._send)
        except Exception as error:
            if not is_transient(error):
                raise
            self._go_offline(error)
            return False
        self._spool = None
        logger.warning("MLflow at %s is back; delivered %d calls kept on disk", self._address.uri, calls)
        return True

    def _upload_leftovers(self) -> None:
        try:
            upload_spool(self._config)
        except TrackingError as error:
            logger.warning("records of earlier stages stay on disk for now: %s", error)


def _send_unless_refused(server: MlflowServer, ids: RunIds, refused: list[str], call: Call) -> str | None:
    """Send; what MLflow refuses for good is added to ``refused`` and left out: it must not cost other calls, too."""
    if call.name == "finish":
        known = [*call.arguments["refused"], *refused]
        call = replace(call, arguments=call.arguments | {"refused": list(dict.fromkeys(known))})
    try:
        return server.send(ids, call)
    except Exception as error:
        if not is_mlflow_error(error) or not is_refusal(error):
            raise
        path, values = call.path, call.arguments.get("values", call.arguments)
        what = path.name if path else ", ".join(map(str, values))[:200]
        size = sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file()) if path else 0
        refused.append(refusal_text(error, f"{call.name} {what}", size))
        logger.error("MLflow refuses to record %s", refused[-1])
        return None


def _pipeline_page(config: Config) -> str | None:
    run = os.environ.get(PIPELINE_VARIABLE)
    return config.tracking.run_page(quote(run)) if run else None


def _existing(path: Path) -> Path:
    if not path.exists():
        raise TrackingError(f"cannot log {path}: there is no such file or folder")
    return path


def _now() -> int:
    return time.time_ns() // 1_000_000
