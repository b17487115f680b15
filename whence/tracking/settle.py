"""The MLflow run of a pipeline ends in the state in which the pipeline has ended, and says what failed.

Stages see to that as far as they can (``whence.tracking.server``). A process that was killed, a run that was terminated
and a pod that never started leave no word, so ``whence run`` looks after its own run, and a CronJob after Kubeflow's:
it runs this file in MLflow's image every few minutes. Hence nothing of Whence is imported here.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

PIPELINE_TAG = "kfp.pipeline_run_id"  # as Kubeflow's own MLflow plugin names it
PARENT_TAG = "mlflow.parentRunId"
NOTE_TAG = "mlflow.note.content"  # the description, in Markdown
STAGE_TAG = "whence.stage"
PIPELINE = "pipeline"  # its value for the run of a pipeline
ERROR_TAG, FAILED_TAG = "whence.error", "whence.failed_stage"
FAILURE = "failure"  # the section of the description
NOTE_LENGTH = 8000  # of any tag at MLflow
ENDED = {"SUCCEEDED": "FINISHED", "SKIPPED": "FINISHED", "FAILED": "FAILED", "CANCELED": "KILLED"}
TERMINATED = ["CANCELING", "FAILED"]  # the last states of a run that Kubeflow then lists as failed
TASK = re.compile(r"(?!root$|executor$|iteration|(?:condition|for-loop|exit-handler)\b)[a-z][a-z-]*?(?:-driver)?")
TIMEOUT = 30  # seconds


def children_of(client: MlflowClient, parent: Run) -> list[Run]:
    """The runs of the stages of a pipeline's run."""
    query = f"tags.`{PARENT_TAG}` = '{parent.info.run_id}'"
    return list(client.search_runs([parent.info.experiment_id], query, max_results=1000))


def settle(client: MlflowClient, parent: Run, status: str, ended: int, failed_tasks: Sequence[str] = ()) -> None:
    """End the run of a pipeline, and those of its stages that were killed; may be repeated.

    Args:
        status: FINISHED, FAILED or KILLED.
        ended: milliseconds since the epoch.
        failed_tasks: what Kubeflow calls those that failed, for a failure that no stage has recorded.
    """
    run_id, stages = parent.info.run_id, children_of(client, parent)
    killed = [stage for stage in stages if stage.info.status == "RUNNING"]
    for stage in killed:
        client.set_terminated(stage.info.run_id, "FAILED" if status == "FAILED" else "KILLED", ended)
    if status != "FINISHED":
        word = "failed" if status == "FAILED" else "was stopped"
        failed = [stage for stage in stages if stage.info.status == status] or killed
        names = ", ".join([stage.data.tags[STAGE_TAG] for stage in failed] or failed_tasks)
        what, why = f"{names or 'the run'} {word}", ""
        if status == "FAILED" and failed:
            errors = [stage.data.tags.get(ERROR_TAG) for stage in failed]
            why = next(filter(None, errors), "it left no word, as one that is killed for its memory")
        quoted = " ".join(why.replace("`", "'").split())
        shown = f"**{what[:1].upper()}{what[1:]}**" + (f": `{quoted[:1000]}`" if why else "")
        set_tags(client, run_id, {FAILED_TAG: names, ERROR_TAG: f"{what}: {why}" if why else what})
        describe(client, run_id, FAILURE, shown)
    client.set_terminated(run_id, status, ended)


def reopen(client: MlflowClient, run: Run) -> None:
    """Let a run go on that may have ended, without what made it end."""
    run_id = run.info.run_id
    if run.info.status != "RUNNING":
        client.update_run(run_id, status="RUNNING")
    if run.data.tags.get(ERROR_TAG):
        describe(client, run_id, FAILURE, "")
        set_tags(client, run_id, dict.fromkeys({ERROR_TAG, FAILED_TAG} & run.data.tags.keys(), ""))


def describe(client: MlflowClient, run_id: str, section: str, text: str) -> None:
    """Put a section at the head of a run's description, in place of what it said before; empty it goes."""
    note = client.get_run(run_id).data.tags.get(NOTE_TAG, "")
    changed = with_section(note, section, text)
    if changed != note:
        set_tags(client, run_id, {NOTE_TAG: changed})


def set_tags(client: MlflowClient, run_id: str, tags: Mapping[str, str]) -> None:
    """In one request, which the server repeats by itself where another sets the same tag at that moment."""
    from mlflow.entities import RunTag

    client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])


def with_section(note: str, section: str, text: str) -> str:
    """``note`` with a section; what people have written above all sections stays there, what is too much is cut.

    Comments, which Markdown does not show, say where sections begin.
    """
    written, *parts = re.split(r"<!-- (\w+) -->\n", note)
    others = {name: old for name, old in zip(parts[::2], parts[1::2], strict=True) if name != section}
    sections = {section: text, **others}
    texts = [f"<!-- {name} -->\n{content.strip()}" for name, content in sections.items() if content.strip()]
    return "\n\n".join(filter(None, [written.strip(), *texts]))[:NOTE_LENGTH]


def main() -> None:
    """Settle every run at ``MLFLOW_TRACKING_URI`` that still runs there and has ended at ``KF_PIPELINES_ENDPOINT``.

    Exit code 1 when Kubeflow would not say how one of them stands, which holds up no other.
    """
    from mlflow import MlflowClient

    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    query = f"attributes.status = 'RUNNING' and tags.`{STAGE_TAG}` = '{PIPELINE}'"
    known = [_settle_as_in_kubeflow(client, run) for run in client.search_runs(experiments, query, max_results=1000)]
    sys.exit(0 if all(known) else 1)


def _settle_as_in_kubeflow(client: MlflowClient, parent: Run) -> bool:
    """Settle a run that has ended in Kubeflow, and say whether Kubeflow would tell."""
    try:
        run = _kubeflow_run(parent.data.tags[PIPELINE_TAG])
    except requests.RequestException as error:
        print(f"{parent.info.run_name}: Kubeflow does not say how it stands: {error}", file=sys.stderr)
        return False
    states = [entry["state"] for entry in run.get("state_history", [])]
    status = ENDED.get("CANCELED" if states[-2:] == TERMINATED else run.get("state", ""))
    if status is not None:
        ended = round(datetime.fromisoformat(run["finished_at"]).timestamp() * 1000)
        settle(client, parent, status, ended, _failed_tasks(run))
        print(f"{parent.info.run_name}: {status.lower()}", file=sys.stderr)
    return True


def _kubeflow_run(run_id: str) -> dict[str, Any]:
    """A run as Kubeflow has it; empty where it knows none, as of one on somebody's own machine."""
    headers, token = {}, os.environ.get("KF_PIPELINES_SA_TOKEN_PATH")
    if token:
        headers["Authorization"] = f"Bearer {Path(token).read_text(encoding='utf-8').strip()}"
    endpoint = os.environ["KF_PIPELINES_ENDPOINT"].rstrip("/")
    answer = requests.get(f"{endpoint}/apis/v2beta1/runs/{run_id}", headers=headers, timeout=TIMEOUT)
    if answer.status_code == requests.codes.not_found:
        return {}
    answer.raise_for_status()
    run: dict[str, Any] = answer.json()
    return run


def _failed_tasks(run: dict[str, Any]) -> list[str]:
    """The names of tasks that failed, without the nodes that Kubeflow puts around them."""
    details = run.get("run_details", {}).get("task_details", [])
    failed = [detail.get("display_name", "") for detail in details if detail.get("state") == "FAILED"]
    return sorted({name.removesuffix("-driver") for name in failed if TASK.fullmatch(name)})


if __name__ == "__main__":
    main()
