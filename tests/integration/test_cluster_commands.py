"""The cluster commands as a user types them, against an API server that checks every request against kfp's models."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import tenacity
import yaml
from kfp_server import HANG_UP, RECORDINGS, Call, KubeflowState, serving
from kubernetes.config import kube_config

from whence.cli import main
from whence.cli.settings import find_profile
from whence.config_file import load_config
from whence.pipelines.cluster import client, progress
from whence.pipelines.cluster.workflow import nodes_of, pod_name
from whence.pipelines.graphs.catalog import PipelineKind
from whence.running import cluster_checks

COMPILED = Path(__file__).parents[2] / "pipelines" / "compiled"
TOKEN = "eyJ-not-to-be-shown"
PIPELINE = """
pipelineInfo: {name: two-steps, displayName: "Two steps: small", description: Trains.}
root:
  dag:
    tasks:
      prepare: {componentRef: {name: comp-prepare}, taskInfo: {name: prepare}}
      condition-1: {componentRef: {name: comp-condition-1}, taskInfo: {name: condition-1}}
  inputDefinitions:
    parameters:
      epochs: {parameterType: NUMBER_INTEGER, defaultValue: 3, isOptional: true}
      rate: {parameterType: NUMBER_DOUBLE, defaultValue: 0.1, isOptional: true}
      title: {parameterType: STRING, defaultValue: "", isOptional: true}
      mmlu: {parameterType: BOOLEAN, defaultValue: true, isOptional: true}
      tasks: {parameterType: LIST, defaultValue: [], isOptional: true}
      overrides: {parameterType: STRUCT, defaultValue: {}, isOptional: true}
components:
  comp-prepare: {executorLabel: exec-prepare}
  comp-condition-1: {dag: {tasks: {train: {componentRef: {name: comp-train}, taskInfo: {name: train}}}}}
  comp-train: {executorLabel: exec-train}
deploymentSpec: {executors: {exec-prepare: {container: {image: one}}, exec-train: {container: {image: one}}}}
schemaVersion: 2.1.0
sdkVersion: kfp-2.17.0
"""


class Outcome(SimpleNamespace):
    code: int
    out: str
    err: str


@pytest.fixture
def state() -> Iterator[KubeflowState]:
    """A Kubeflow with one user; at the end it has seen no request that the models do not know."""
    state = KubeflowState(token=TOKEN)
    yield state
    assert state.violations == []


@pytest.fixture
def host(state: KubeflowState) -> Iterator[str]:
    with serving(state) as address:
        yield address


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No Kubeflow of this machine's, short waits, and a terminal wide enough for tables."""
    for name in [name for name in os.environ if name.startswith(("KF_PIPELINES", "KUBE"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "no-kubeconfig"))
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "no-kubeconfig"))
    monkeypatch.setenv("KF_PIPELINES_TOKEN", TOKEN)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(client, "PAUSE", tenacity.wait_none())
    monkeypatch.setattr(progress, "POLL", 0.01)


@pytest.fixture
def kubeconfig(host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kubeconfig whose user may read the objects of the runs."""
    file = write_kubeconfig(tmp_path / "kubeconfig", host)
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(file))
    return file


def write_kubeconfig(file: Path, address: str) -> Path:
    content = {
        "clusters": [{"name": "c", "cluster": {"server": address}}],
        "users": [{"name": "u", "user": {"token": TOKEN}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    file.write_text(yaml.safe_dump(content))
    return file


@pytest.fixture
def compiled(tmp_path: Path) -> Path:
    file = tmp_path / "pipeline.yaml"
    file.write_text(PIPELINE)
    return file


@pytest.fixture
def whence(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest):
    """Run the command; its output holds the token never."""

    def call(*arguments: object) -> Outcome:
        if "host" in request.fixturenames:
            monkeypatch.setenv("KF_PIPELINES_ENDPOINT", os.environ.get("KF_PIPELINES_ENDPOINT", _host()))
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert TOKEN not in captured.out + captured.err
        return Outcome(code=int(ended.value.code or 0), out=captured.out, err=captured.err)

    def _host() -> str:
        return request.getfixturevalue("host")

    return call


def failing(times: int, status: int, method: str = "", ending: str = "") -> Callable[[Call], int | None]:
    """The first ``times`` requests of that method and path are answered with ``status``."""
    left = [times]

    def fault(call: Call) -> int | None:
        if call.method.startswith(method) and call.path.endswith(ending) and left[0] > 0:
            left[0] -= 1
            return status
        return None

    return fault


def only(entries: dict) -> dict:
    [entry] = entries.values()
    return entry


# upload


def test_a_pipeline_is_uploaded_once_and_again_when_it_changed(whence, host, state, compiled: Path) -> None:
    first = whence("pipelines", "upload", "--file", compiled)
    assert first.code == 0, first.err
    assert only(state.pipelines)["display_name"] == "two-steps-small"
    version = only(state.versions)
    assert version["pipeline_spec"] == yaml.safe_load(PIPELINE)
    assert f"uploaded version {version['display_name']}" in first.out
    assert f"{host}/#/pipelines/details/{version['pipeline_id']}/version/{version['pipeline_version_id']}" in first.out

    compiled.write_text("# another header\n" + yaml.safe_dump(yaml.safe_load(PIPELINE), sort_keys=True))
    again = whence("pipelines", "upload", "--file", compiled)
    assert "unchanged" in again.out
    assert len(state.versions) == 1

    compiled.write_text(PIPELINE.replace("image: one", "image: two"))
    changed = whence("pipelines", "upload", "--file", compiled)
    assert changed.code == 0
    assert len(state.pipelines) == 1
    assert [
        entry["pipeline_spec"]["deploymentSpec"]["executors"]["exec-train"] for entry in state.versions.values()
    ] == [
        {"container": {"image": "one"}},
        {"container": {"image": "two"}},
    ]
    names = {entry["display_name"] for entry in state.versions.values()}
    assert all(re.fullmatch(r"two-steps-small-[0-9a-f]{12}", name) for name in names)
    assert len(names) == 2


def test_a_profile_is_compiled_and_its_settings_make_another_version(whence, host, state) -> None:
    assert whence("pipelines", "upload", "--profile", "demo").code == 0
    assert "unchanged" in whence("pipelines", "upload", "--profile", "demo").out
    outcome = whence("pipelines", "upload", "--profile", "demo", "--set", "dataset.num_samples=5")
    assert "sqlite:///mlflow.db would be a file inside each pod" in outcome.err
    assert only(state.pipelines)["display_name"] == "whence-demo"
    defaults = [
        version["pipeline_spec"]["pipeline_spec"]["root"]["inputDefinitions"]["parameters"][
            "data_train_rows_0_for_all"
        ]["defaultValue"]
        for version in state.versions.values()
    ]
    assert defaults == [0, 5]


def test_a_pipeline_without_the_version_it_was_made_for_is_gone_on_with(whence, host, state, compiled: Path) -> None:
    state.faults = failing(99, 403, "POST", "upload_version")
    assert whence("pipelines", "upload", "--file", compiled).code == 1
    state.faults = lambda call: None
    assert whence("pipelines", "upload", "--file", compiled).code == 0
    assert (len(state.pipelines), len(state.versions)) == (1, 1)


# submit


def test_submit_sends_each_parameter_in_its_type(whence, host, state, compiled: Path) -> None:
    values = {"epochs": 5, "rate": 1e-3, "title": "5", "mmlu": False, "tasks": ["a", 1], "overrides": {"a.b": None}}
    given = [f"--param={name}={value if name == 'title' else json.dumps(value)}" for name, value in values.items()]
    outcome = whence("submit", "--file", compiled, *given, "--experiment", "weekly", "--name", "mine")
    assert outcome.code == 0, outcome.err
    run = only(state.runs)
    assert run["runtime_config"]["parameters"] == values
    assert run["display_name"] == "mine"
    assert only(state.experiments)["display_name"] == "weekly"
    assert run["pipeline_version_reference"]["pipeline_version_id"] in state.versions
    assert f"run {run['run_id']}" in outcome.out
    assert f"{host}/#/runs/details/{run['run_id']}" in outcome.out


def test_submitting_twice_uploads_once_and_shares_the_experiment(whence, host, state, compiled: Path) -> None:
    whence("submit", "--file", compiled)
    assert "(unchanged)" in whence("submit", "--file", compiled).out
    assert (len(state.versions), len(state.experiments), len(state.runs)) == (1, 1, 2)
    assert only(state.experiments)["display_name"] == "Default"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("epoch=5", "--param epoch: pipeline two-steps-small has no such parameter; did you mean epochs?"),
        ("epochs=many", "--param epochs: 'many' is not of its type, number integer"),
        ("epochs=1.5", "'1.5' is not of its type"),
        ("mmlu=1", "'1' is not of its type, boolean"),
        ("epochs=true", "'true' is not of its type"),
        ("epochs", "is not of the form name=value"),
    ],
)
def test_a_wrong_parameter_is_refused_before_any_request(whence, host, state, compiled, given: str, said: str) -> None:
    outcome = whence("submit", "--file", compiled, "--param", given)
    assert outcome.code == 1
    assert said in outcome.err
    assert state.calls == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("finetune_learning_rate=-1", "training.learning_rate: Input should be greater than 0, got -1"),
        ("influence_factors_strategy=ekfak", "factors.strategy: Input should be 'ekfac'"),
        (
            "overrides={training.warmup_step: 1}",
            "training.warmup_step: unknown key; did you mean training.warmup_steps?",
        ),
        ("overrides={a: 1, a: 2}", "the key 'a' is given twice"),
        ("data_max_tokens=010", "'010' is not of its type, number integer"),
        ("mmlu_enabled=yes", "'yes' is not of its type, boolean; write true or false"),
        ("overrides={dataset.template: 'see {{workflow.name}}: {input}'}", "would replace what stands in {{ }}"),
        ("tracking_uri=http://ann:secret@mlflow", "tracking.uri: holds a password"),
    ],
)
def test_parameters_pass_the_checks_of_settings_before_any_request(whence, host, state, given: str, said: str) -> None:
    outcome = whence("submit", "--file", COMPILED / "demo.yaml", "--param", given)
    assert outcome.code == 1
    assert said in outcome.err
    assert state.calls == []


def test_a_parameter_without_default_must_be_given(whence, host, state, compiled: Path) -> None:
    compiled.write_text(PIPELINE.replace("epochs: {parameterType: NUMBER_INTEGER, defaultValue: 3, isOptional: true}",
                                         "epochs: {parameterType: NUMBER_INTEGER}"))  # fmt: skip
    assert "has no default for epochs" in whence("submit", "--file", compiled).err
    assert state.calls == []


@pytest.mark.parametrize("status", [504, HANG_UP])
@pytest.mark.parametrize("lost", ["/pipelines", "/upload_version", "/experiments", "/runs"])
def test_what_was_created_though_the_answer_was_lost_is_not_created_twice(
    whence, host, state, compiled: Path, lost: str, status: int
) -> None:
    state.lost = failing(1, status, "POST", lost)
    outcome = whence("submit", "--file", compiled)
    assert outcome.code == 0, outcome.err
    assert [len(entries) for entries in (state.pipelines, state.versions, state.experiments, state.runs)] == [
        1,
        1,
        1,
        1,
    ]
    assert f"run {only(state.runs)['run_id']}" in outcome.out


# follow and status


def steps(*states: dict[str, str]) -> Callable[[dict], None]:
    """Each look at a run finds the next of ``states``: task names (as the pods are called) with their states."""
    began = datetime.now(UTC)
    left = list(states)

    def progress_of(run: dict) -> None:
        now = left.pop(0) if len(left) > 1 else left[0]
        run["state"] = now["run"]
        pods = {name: state for name, state in now.items() if name != "run"}
        run["run_details"] = {
            "task_details": [
                {
                    "run_id": run["run_id"],
                    "task_id": f"task-{name}",
                    "display_name": name,
                    "state": state,
                    "start_time": (began + timedelta(seconds=place)).isoformat(),
                    "end_time": "1970-01-01T00:00:00Z",
                }
                for place, (name, state) in enumerate(pods.items())
            ]
        }

    return progress_of


def test_follow_prints_changes_until_success(whence, host, state, compiled: Path) -> None:
    state.progress = steps(
        {
            "run": "RUNNING",
            "root": "RUNNING",
            "prepare-driver": "SUCCEEDED",
            "prepare": "RUNNING",
            "executor": "RUNNING",
        },
        {"run": "RUNNING", "root": "RUNNING", "prepare": "SUCCEEDED", "condition-1": "RUNNING", "train": "RUNNING"},
        {"run": "RUNNING", "root": "RUNNING", "prepare": "SUCCEEDED", "condition-1": "RUNNING", "train": "RUNNING"},
        {"run": "SUCCEEDED", "prepare": "SUCCEEDED", "condition-1": "SUCCEEDED", "train": "SUCCEEDED"},
    )
    outcome = whence("submit", "--file", compiled, "--follow")
    assert outcome.code == 0, outcome.err
    lines = [" ".join(line.split()[1:]) for line in outcome.out.splitlines() if re.match(r"\d\d:\d\d:\d\d ", line)]
    assert lines == [
        "prepare running",
        "prepare succeeded",
        "condition-1 running",
        "train running",
        "condition-1 succeeded",
        "train succeeded",
    ]
    assert outcome.out.rstrip().endswith(": succeeded")


@pytest.mark.parametrize("pod", ["train", "train-driver"])
def test_follow_ends_non_zero_and_names_the_failed_task(whence, host, state, compiled: Path, pod: str) -> None:
    state.progress = steps(
        {"run": "RUNNING", "prepare": "SUCCEEDED", "condition-1": "RUNNING"},
        {
            "run": "FAILED",
            "root": "FAILED",
            "prepare": "SUCCEEDED",
            "condition-1": "FAILED",
            pod: "FAILED",
            "executor": "FAILED",
        },
    )
    outcome = whence("submit", "--file", compiled, "--follow")
    assert outcome.code == 1
    run = only(state.runs)["run_id"]
    assert f"failed: task train failed; its log: whence logs {run} train\n" in outcome.err
    assert "condition-1 failed" not in outcome.err


def test_follow_goes_on_over_an_outage_of_the_server(whence, host, state, compiled: Path) -> None:
    state.progress = steps({"run": "RUNNING", "train": "RUNNING"}, {"run": "SUCCEEDED", "train": "SUCCEEDED"})
    whence("submit", "--file", compiled)
    state.faults = failing(2 * client.ATTEMPTS, 503, "GET", only(state.runs)["run_id"])
    outcome = whence("status", only(state.runs)["run_id"], "--follow")
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("still trying") == 1


def test_a_login_that_expires_while_following_says_that_the_run_goes_on(whence, host, state, compiled: Path) -> None:
    state.progress = steps({"run": "RUNNING", "train": "RUNNING"})
    state.faults = lambda call: 401 if call.path.count("/runs/") and len(state.asked("GET", call.path)) > 2 else None
    outcome = whence("submit", "--file", compiled, "--follow")
    assert outcome.code == 1
    assert outcome.err.startswith(f"Error: login at {host}: 401")
    assert f"the run goes on; see it again with: whence status {only(state.runs)['run_id']} --follow" in outcome.err


def test_status_shows_the_tasks_of_a_run(whence, host, state, compiled: Path) -> None:
    state.progress = steps({"run": "RUNNING", "root": "RUNNING", "prepare": "SUCCEEDED", "train": "RUNNING"})
    whence("submit", "--file", compiled, "--name", "mine")
    out = whence("status", only(state.runs)["run_id"]).out
    assert re.search(r"^mine +running", out, re.MULTILINE)
    assert re.search(r"^prepare +succeeded +\d\d-\d\d \d\d:\d\d:\d\d", out, re.MULTILINE)
    assert re.search(r"^train +running", out, re.MULTILINE)
    assert "root" not in out


def test_status_lists_the_last_runs_newest_first(whence, host, state, compiled: Path) -> None:
    assert whence("status").out == "No runs yet.\n"
    for name in ("one", "two"):
        whence("submit", "--file", compiled, "--name", name)
    lines = whence("status").out.splitlines()
    assert [line.split()[-1] for line in lines[1:]] == ["two", "one"]
    assert "experiment nowhere: there is none" in whence("status", "--experiment", "nowhere").err


def test_ids_are_printed_whole_however_narrow_the_terminal(whence, host, state, compiled: Path, monkeypatch) -> None:
    whence("submit", "--file", compiled, "--name", "a long name of a run, longer than a narrow terminal is wide")
    scheduled(whence, compiled, "--name", "a long name of a schedule, longer than a narrow terminal")
    monkeypatch.setenv("COLUMNS", "60")
    assert only(state.runs)["run_id"] in whence("status").out
    assert only(state.schedules)["recurring_run_id"] in whence("schedule", "list").out


def test_a_run_that_is_not_there_is_named(whence, host) -> None:
    outcome = whence("status", "5b1e")
    assert outcome.code == 1
    assert "run 5b1e: 404, Run 5b1e not found" in outcome.err


# a real Kubeflow's answers


def lines_of(out: str) -> dict[str, str]:
    """Of a table of tasks, what follows each task's name."""
    rows = (line.split(maxsplit=1) for line in out.splitlines())
    return {row[0]: row[1] for row in rows if len(row) == 2}


def changes_of(out: str) -> list[str]:
    """The changes that --follow printed, without their times."""
    return [line[10:] for line in out.splitlines() if re.match(r"\d\d:\d\d:\d\d ", line)]


@pytest.mark.parametrize(
    ("recording", "reason"),
    [
        ("unschedulable", "Unschedulable: 0/1 nodes are available: 1 Insufficient cpu."),
        ("image-missing", 'ErrImagePull: failed to pull and unpack image "localhost/whence/prepare:0.0.0-missing"'),
    ],
)
def test_a_task_whose_pod_cannot_start_waits_and_says_why(whence, state, kubeconfig, recording, reason) -> None:
    run = state.record(recording)
    row = lines_of(whence("status", run).out)["prepare"]
    assert row.startswith("waiting ")
    assert reason in row
    outcome = whence("status", run, "--follow") if ends_cancelled_after(state, 3) else None
    assert changes_of(outcome.out)[0].startswith(f"prepare waiting  {reason}")
    assert f"run {run}: was cancelled" in outcome.err


@pytest.mark.parametrize("recording", ["unschedulable", "image-missing"])
def test_without_a_kubeconfig_a_waiting_task_comes_with_the_command_to_look(
    whence, host, state, monkeypatch, recording: str
) -> None:
    run = state.record(recording)
    look = f"Why prepare waits: kubectl describe pods -n kubeflow -l pipeline/runid={run} (there is no kubeconfig)"
    out = whence("status", run).out
    assert lines_of(out)["prepare"].startswith("waiting ")
    assert look in out
    monkeypatch.setattr(progress, "WAITS_LONG", 0.0)
    ends_cancelled_after(state, 5)
    out = whence("status", run, "--follow").out
    assert changes_of(out)[0] == "prepare waiting"
    assert out.count(look) == 1


def test_a_kubeconfig_that_may_not_read_workflows_is_said_and_asked_once(whence, state, kubeconfig) -> None:
    run = state.record("unschedulable")
    state.faults = lambda call: 403 if "argoproj" in call.path else None
    assert "this kubeconfig may not list workflows.argoproj.io in namespace kubeflow (403)" in whence("status", run).out
    before = len(state.asked("GET", "/workflows"))
    ends_cancelled_after(state, 4)
    assert changes_of(whence("status", run, "--follow").out)[0] == "prepare waiting"
    assert len(state.asked("GET", "/workflows")) == before + 1


def ends_cancelled_after(state: KubeflowState, looks: int) -> bool:
    """The run that is looked at goes on for so many looks, and is then terminated."""
    left = [looks]

    def progress_of(run: dict) -> None:
        left[0] -= 1
        if left[0] == 0:
            run["state"] = "FAILED"
            run["state_history"] += [{"state": "CANCELING"}, {"state": "FAILED"}]

    state.progress = progress_of
    return True


DEMO = "prepare train generate fit-factors inspect score validate compare condition-branches-1 condition-2 mmlu report"


def test_the_last_state_of_every_task_is_known_though_argo_has_compressed_them(whence, state, kubeconfig) -> None:
    run = state.record("demo-finished")
    rows = lines_of(whence("status", run).out)
    assert {name: rows[name].split()[0] for name in DEMO.split()} == dict.fromkeys(DEMO.split(), "succeeded")
    assert rows["condition-3"].startswith("skipped ")
    assert rows["mmlu"].split()[-2:] == ["22:43:49", "0:20"]
    followed = whence("status", run, "--follow")
    assert followed.code == 0, followed.err
    assert {f"{name} succeeded" for name in DEMO.split()} < set(changes_of(followed.out))


def test_a_task_that_kubeflow_stopped_reporting_is_not_called_running(whence, host, state) -> None:
    run = state.record("demo-finished")
    out = whence("status", run).out
    assert lines_of(out)["mmlu"].startswith("unknown ")
    assert lines_of(out)["train"].startswith("succeeded ")
    assert "Kubeflow stops reporting the tasks of a large run" in out


def test_a_large_run_that_goes_on_may_no_longer_be_reported(whence, host, state, monkeypatch) -> None:
    run = state.record("demo-finished")
    state.runs[run]["state"] = "RUNNING"
    monkeypatch.setattr(progress, "LARGE", 30)  # the recording is shortened
    out = whence("status", run).out
    assert "Kubeflow stops reporting the tasks of a run as large as this; the last it said is of 22:43 UTC" in out
    assert "there is no kubeconfig" in out


def test_a_terminated_run_is_cancelled_and_not_failed(whence, host, state) -> None:
    run = state.record("terminated")
    out = whence("status", run).out
    assert re.search("^whence-demo 2026-11-25 22:52:25 +canceled$", out, re.MULTILINE)
    assert lines_of(out)["prepare"].startswith("canceled ")
    assert lines_of(out)["train"].startswith("skipped ")
    assert " failed" not in out
    assert f"{run}  canceled" in whence("status").out
    followed = whence("status", run, "--follow")
    assert followed.code == 1
    assert followed.err == f"Error: run {run}: was cancelled; go on with it: whence retry {run}\n"


@pytest.mark.parametrize("readable", [True, False])
def test_a_failed_run_names_the_task_that_failed_and_not_the_condition_around_it(
    whence, host, state, request, readable: bool
) -> None:
    if readable:
        request.getfixturevalue("kubeconfig")
    run = state.record("retraining-failed")
    outcome = whence("status", run, "--follow")
    assert outcome.code == 1
    why = " (main: Error (exit code 1))" if readable else ""
    assert outcome.err == f"Error: run {run}: failed: task gate failed{why}; its log: whence logs {run} gate\n"
    assert [change for change in changes_of(outcome.out) if "2" not in change] == [
        *(["train succeeded"] if readable else []),
        "condition-1 failed",
        *([] if readable else ["train succeeded"]),
        f"gate failed{why and '  main: Error (exit code 1)'}",
    ]
    assert "condition-2 skipped" in changes_of(outcome.out)


def test_the_tasks_of_a_loop_are_numbered(whence, state, kubeconfig) -> None:
    run = state.record("demo-finished")
    state.workflows[run] = json.loads((RECORDINGS / "workflow-parallel-finished.json").read_text())
    out = whence("status", run).out
    assert re.findall(r"^(score-part \d) +succeeded", out, re.MULTILINE) == ["score-part 2", "score-part 1"]
    assert "iteration" not in out


# logs, cancel, retry

EXECUTOR = "whence-retraining-demogl8hv-1-1274428510-3721208249"
POD = "whence-retraining-demogl8hv-1-1274428510-retry-system-container-impl-3721208249"


def test_the_log_of_the_failed_task_comes_from_its_pod(whence, state, kubeconfig) -> None:
    run = state.record("retraining-failed")
    state.pod_logs[POD] = '{"looks": "like JSON"}\nTypeError: Cannot instantiate typing.Union\n'
    for arguments in ((run,), (run, "gate")):
        outcome = whence("logs", *arguments)
        assert outcome.code == 0, outcome.err
        assert outcome.out == state.pod_logs[POD]
    assert whence("logs", run).err == "task gate (failed):\n"
    assert "has no task gates; tasks with a log: train, gate" in whence("logs", run, "gates").err


def test_the_archived_log_is_read_when_the_pod_is_gone(whence, state, kubeconfig) -> None:
    run = state.record("retraining-failed")
    state.archived_logs[EXECUTOR] = "TypeError: Cannot instantiate typing.Union\n"
    assert whence("logs", run, "gate").out == state.archived_logs[EXECUTOR]
    state.archived_logs.clear()
    outcome = whence("logs", run, "gate")
    assert outcome.code == 1
    assert f"s3://mlpipeline/private-artifacts/kubeflow/{run_of(POD)}/2026/11/25/{POD}/main.log" in outcome.err


def run_of(pod: str) -> str:
    return pod.partition("-retry")[0]


def test_the_archived_log_is_found_without_a_kubeconfig(whence, host, state) -> None:
    run = state.record("retraining-failed")
    state.archived_logs["whence-retraining-demogl8hv-1-1274428510-508936898"] = "of the attempts\n"
    assert whence("logs", run).out == "of the attempts\n"


def test_a_run_is_cancelled_and_tried_again(whence, host, state) -> None:
    run = state.record("unschedulable")
    assert "only one that failed or was cancelled" in whence("retry", run).err
    assert f"run {run}: is being cancelled" in whence("cancel", run).out
    assert lines_of(whence("status", run).out)["prepare"].startswith(("canceled", "unknown"))
    assert f"run {run}: has ended already (canceled)" in whence("cancel", run).err
    assert f"{host}/#/runs/details/{run}" in whence("retry", run).out
    assert state.runs[run]["state"] == "RUNNING"


# cluster check


def becomes(state: KubeflowState, recording: str, found: Callable[[str], str]) -> None:
    """Every run goes as the recorded one did, and what its pods print is what ``found`` gives for their task."""
    run = json.loads((RECORDINGS / f"run-{recording}.json").read_text())
    recorded = json.loads((RECORDINGS / f"workflow-{recording}.json").read_text())
    for node in nodes_of(recorded):
        if node["type"] == "Pod":
            task = re.sub(r"\(\d+\)", "", node["name"]).removesuffix(".executor").rpartition(".")[2]
            state.pod_logs[pod_name(recorded, node)] = found(task)

    def progress(current: dict) -> None:
        current |= {key: run[key] for key in ("state", "state_history", "run_details")}
        state.workflows[current["run_id"]] = recorded

    state.progress = progress


def test_a_check_has_a_task_in_the_image_and_place_of_every_stage(whence, state, kubeconfig) -> None:
    becomes(
        state,
        "demo-finished",
        lambda task: f"noise\n{cluster_checks.Outcome('store', True, 's3://b/x stored and fetched')}\n",
    )
    outcome = whence("cluster", "check", "--profile", "patents-tinyllama", "--service-account", "whence-runner")
    assert outcome.code == 0, outcome.err
    assert re.search(r"^store +ok +all tasks +s3://b/x stored and fetched$", outcome.out, re.M)
    assert only(state.runs)["service_account"] == "whence-runner"
    both = only(state.versions)["pipeline_spec"]
    executors = both["pipeline_spec"]["deploymentSpec"]["executors"]
    images = {name.removeprefix("exec-"): executor["container"]["image"] for name, executor in executors.items()}
    assert images.pop("settings") == images["prepare"]
    wanted = PipelineKind.ATTRIBUTION.build(load_config(find_profile("patents-tinyllama")))
    assert images == {
        name.removeprefix("exec-"): executor["container"]["image"]
        for name, executor in wanted.pipeline_spec.deployment_spec["executors"].items()
        if not name.endswith(("covariance", "eigenvectors", "lambda", "part"))
    }
    places = both["platform_spec"]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert "nodeSelector" in places["exec-train"]
    assert places["exec-train"]["secretAsEnv"][0]["secretName"] == "whence-s3"


def test_what_a_check_has_found_wrong_is_in_the_table_and_in_the_exit_code(whence, state, kubeconfig) -> None:
    wrong = cluster_checks.Outcome("MLflow", False, "tracking.uri: MLflow refuses; check the password")
    right = cluster_checks.Outcome("MLflow", True, "keeps runs")
    becomes(state, "demo-finished", lambda task: f"{wrong if task == 'mmlu' else right}\nError: mmlu: failed\n")
    outcome = whence("cluster", "check")
    assert outcome.code == 1
    assert re.search(r"^MLflow +FAILED +mmlu +tracking.uri: MLflow refuses; check the password$", outcome.out, re.M)
    assert re.search(r"^MLflow +ok +all but mmlu +keeps runs *$", outcome.out, re.M)
    assert "Error: MLflow failed" in outcome.err


def test_a_check_whose_pods_cannot_start_says_why_and_ends(whence, state, kubeconfig) -> None:
    becomes(state, "image-missing", lambda task: "")
    outcome = whence("cluster", "check", "--minutes", 0)
    assert outcome.code == 1
    assert re.search(r"^image +FAILED +prepare +waiting: ErrImagePull: failed to pull and unpack", outcome.out, re.M)
    assert state.asked("POST", ":terminate")


# schedule


def scheduled(whence, compiled: Path, *more: object, cron: str = "0 3 * * 1") -> Outcome:
    return whence("schedule", "--cron", cron, "--file", compiled, *more)


def test_a_schedule_runs_one_at_a_time_and_does_not_catch_up(whence, host, state, compiled: Path) -> None:
    outcome = scheduled(whence, compiled, "--param", "epochs=5")
    assert outcome.code == 0, outcome.err
    schedule = only(state.schedules)
    assert schedule["trigger"] == {"cron_schedule": {"cron": "0 0 3 * * 1"}}
    assert (schedule["max_concurrency"], schedule["no_catchup"], schedule["status"]) == ("1", True, "ENABLED")
    assert schedule["runtime_config"]["parameters"] == {"epochs": 5}
    assert "one run at a time, missed times are not caught up" in outcome.out
    assert (
        "in UTC (UTC unless CRON_SCHEDULE_TIMEZONE of its ml-pipeline-scheduledworkflow says otherwise)" in outcome.out
    )
    times = re.findall(r"^  Mon (\d{4}-\d\d-\d\d) 03:00:00 UTC$", outcome.out, re.MULTILINE)
    days = [datetime.fromisoformat(time).date() for time in times]
    assert len(days) == 3
    assert all(later - earlier == timedelta(weeks=1) for earlier, later in pairwise(days))
    assert timedelta(0) <= days[0] - datetime.now(UTC).date() <= timedelta(weeks=1)


def test_concurrency_catching_up_and_zone_can_be_chosen(whence, host, state, compiled: Path) -> None:
    outcome = scheduled(whence, compiled, "--max-concurrency", 2, "--catch-up", "--time-zone", "Asia/Tokyo")
    assert (only(state.schedules)["max_concurrency"], only(state.schedules)["no_catchup"]) == ("2", False)
    assert "up to 2 runs at a time, missed times are caught up" in outcome.out
    assert outcome.out.count("03:00:00 JST") == 3


def test_a_schedule_of_the_same_name_is_replaced_after_the_new_one_is_there(whence, host, state, compiled) -> None:
    scheduled(whence, compiled)
    old = only(state.schedules)["recurring_run_id"]
    compiled.write_text(PIPELINE.replace("image: one", "image: two"))
    outcome = scheduled(whence, compiled, cron="30 4 * * *")
    assert "replaced" in outcome.out
    new = only(state.schedules)
    assert new["recurring_run_id"] != old
    assert new["trigger"]["cron_schedule"]["cron"] == "0 30 4 * * *"
    newest = list(state.versions)[-1]
    assert new["pipeline_version_reference"]["pipeline_version_id"] == newest
    changes = [call.method for call in state.calls if "recurringruns" in call.path and call.method != "GET"]
    assert changes == ["POST", "POST", "DELETE"]


def test_a_replacement_of_a_paused_schedule_is_paused(whence, host, state, compiled: Path) -> None:
    scheduled(whence, compiled)
    whence("schedule", "pause", "two-steps-small")
    outcome = scheduled(whence, compiled)
    assert only(state.schedules)["status"] == "DISABLED"
    assert "It is paused, as the one before was: whence schedule resume two-steps-small" in outcome.out


@pytest.mark.parametrize(("method", "status"), [("POST", 503), ("DELETE", 500), ("DELETE", 403)])
def test_a_replacement_that_fails_leaves_the_old_schedule(whence, host, state, compiled, method, status) -> None:
    scheduled(whence, compiled)
    old = only(state.schedules)["recurring_run_id"]
    ending = "/recurringruns" if method == "POST" else old
    state.faults = failing(99, status, method, ending)
    outcome = scheduled(whence, compiled, cron="30 4 * * *")
    assert outcome.code == 1
    assert only(state.schedules)["recurring_run_id"] == old
    assert method == "POST" or f"was not replaced, the old one ({old}) is still there" in outcome.err


def test_two_schedules_that_could_not_be_sorted_out_are_named(whence, host, state, compiled: Path) -> None:
    scheduled(whence, compiled)
    old = only(state.schedules)["recurring_run_id"]
    state.faults = lambda call: 503 if call.method == "DELETE" else None
    outcome = scheduled(whence, compiled)
    assert outcome.code == 1
    assert len(state.schedules) == 2
    assert f"whence schedule delete {old}" in outcome.err


@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_a_lost_answer_leaves_exactly_one_new_schedule(whence, host, state, compiled: Path, method: str) -> None:
    scheduled(whence, compiled)
    old = only(state.schedules)["recurring_run_id"]
    state.lost = failing(1, 502, method, "/recurringruns" if method == "POST" else old)
    outcome = scheduled(whence, compiled)
    assert outcome.code == 0, outcome.err
    assert only(state.schedules)["recurring_run_id"] != old


def test_a_name_that_another_pipeline_s_schedule_has_is_refused(whence, host, state, compiled: Path) -> None:
    scheduled(whence, compiled, "--name", "nightly", "--pipeline-name", "theirs")
    outcome = scheduled(whence, compiled, "--name", "nightly")
    assert outcome.code == 1
    assert "another pipeline has one of that name" in outcome.err
    assert len(state.schedules) == 1


def test_a_schedule_of_a_real_kubeflow_is_listed_and_resumed(whence, host, state) -> None:
    [recorded] = json.loads((RECORDINGS / "recurring-runs.json").read_text())["recurringRuns"]
    state.schedules[recorded["recurring_run_id"]] = recorded
    row = whence("schedule", "list").out.splitlines()[1]
    assert row.split() == [
        "whence-retraining-demo",
        "paused",
        *"0 */1 * * * *".split(),
        "1",
        recorded["recurring_run_id"],
    ]
    assert whence("schedule", "resume", "whence-retraining-demo").code == 0
    assert re.search(r"enabled +0 \*/1 \* \* \* \* +\d{4}-", whence("schedule", "list").out)


@pytest.fixture
def running(whence, host, state, compiled: Path) -> tuple[str, str]:
    """A schedule and its run that goes on."""
    scheduled(whence, compiled)
    run, schedule = state.record("unschedulable"), only(state.schedules)["recurring_run_id"]
    state.runs[run]["recurring_run_id"] = schedule
    return schedule, run


def test_a_schedule_whose_run_goes_on_is_not_deleted_unasked(whence, state, running) -> None:
    schedule, run = running
    outcome = whence("schedule", "delete", schedule)
    assert outcome.code == 1
    assert f"run {run} of it goes on and would be killed with it" in outcome.err
    assert list(state.schedules) == [schedule]
    out = whence("schedule", "delete", schedule, "--force").out
    assert f"run {run}: was going on and has been cancelled" in out
    assert state.schedules == {}
    changes = [
        call.path.rpartition("/")[2]
        for call in state.calls
        if (call.method != "GET" and schedule in call.path) or (run in call.path and call.method == "POST")
    ]
    assert changes == [f"{schedule}:disable", f"{run}:terminate", schedule]


def test_a_schedule_whose_run_goes_on_is_not_replaced_unasked(whence, state, running, compiled: Path) -> None:
    schedule, run = running
    assert f"run {run} of it goes on" in scheduled(whence, compiled).err
    assert list(state.schedules) == [schedule]
    assert scheduled(whence, compiled, "--force").code == 0
    assert schedule not in state.schedules
    assert state.runs[run]["state"] == "FAILED"


def test_schedules_are_listed_paused_resumed_and_deleted(whence, host, state, compiled: Path) -> None:
    assert whence("schedule", "list").out == "No schedules yet.\n"
    for name in ("one", "two", "three"):
        scheduled(whence, compiled, "--name", name)
    assert whence("schedule", "pause", "two").out.startswith("schedule two: paused")
    lines = whence("schedule", "list").out.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["three", "enabled"], ["two", "paused"], ["one", "enabled"]]
    assert "0 0 3 * * 1" in lines[1]
    assert whence("schedule", "resume", "two").code == 0
    assert {entry["status"] for entry in state.schedules.values()} == {"ENABLED"}
    identity = next(iter(state.schedules))
    assert whence("schedule", "delete", identity).out == f"schedule one: deleted ({identity})\n"
    assert [entry["display_name"] for entry in state.schedules.values()] == ["two", "three"]
    assert "schedule one: there is none" in whence("schedule", "delete", "one").err


@pytest.mark.parametrize("cron", ["0 3 * *", "61 3 * * *", "0 0 31 2 *", "0 3 * * 7", "* * * * * *", "0 3 L * *", "x"])
def test_a_wrong_cron_is_refused_before_any_request(whence, host, state, compiled: Path, cron: str) -> None:
    outcome = scheduled(whence, compiled, cron=cron)
    assert outcome.code == 1
    assert outcome.err.startswith(f"Error: --cron {cron!r}: ")
    assert state.calls == []


def test_an_option_before_a_subcommand_is_not_passed_over(whence, host, state) -> None:
    outcome = whence("schedule", "--host", "http://elsewhere", "list")
    assert outcome.code == 2
    assert "--host belongs after `list`" in outcome.err
    assert state.calls == []


# address, login, namespace


def test_an_expired_token_is_the_login_s_fault(whence, host, state, compiled: Path) -> None:
    state.token = "another"
    outcome = whence("submit", "--file", compiled)
    assert outcome.code == 1
    assert outcome.err.startswith(f"Error: login at {host}: 401, Request header error: token expired;")
    assert "KF_PIPELINES_TOKEN" in outcome.err
    assert len(state.calls) == 1


def test_a_forbidden_namespace_is_the_login_s_fault_and_named(whence, host, state) -> None:
    state.namespaces = {"team-a"}
    state.faults = failing(9, 403, "GET", "/runs")
    assert "login at" in whence("status", "--namespace", "team-a").err
    assert "may not do that in namespace team-a" in whence("status", "--namespace", "team-a").err


def test_a_namespace_that_is_not_there_is_named(whence, host, state, compiled: Path) -> None:
    state.namespaces = {"team-a"}
    for command in (("status",), ("schedule", "list"), ("submit", "--file", compiled)):
        outcome = whence(*command, "--namespace", "team-b")
        assert outcome.code == 1
        assert outcome.err.startswith('Error: namespace team-b: 404, namespaces "team-b" not found; '), outcome.err


def test_a_kubeflow_with_several_users_wants_a_namespace(whence, host, state, compiled: Path) -> None:
    state.namespaces = {"team-a"}
    assert whence("status").err.startswith("Error: namespace: this Kubeflow has several users")
    assert whence("submit", "--file", compiled, "--namespace", "team-a").code == 0
    assert scheduled(whence, compiled, "-n", "team-a").code == 0
    owners = (state.pipelines, state.experiments, state.schedules)
    assert [only(entries)["namespace"] for entries in owners] == ["team-a"] * 3


def test_nobody_at_the_address_is_said_at_once(whence) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    outcome = whence("status", "--host", address)
    assert outcome.code == 1
    assert outcome.err.startswith(f"Error: address {address}: no answer: Connection refused; ")


def test_a_name_that_does_not_resolve_is_the_address_s_fault(whence) -> None:
    assert whence("status", "--host", "http://kubeflow.invalid").err.startswith(
        "Error: address http://kubeflow.invalid: "
    )


def test_https_where_there_is_http_is_the_address_s_fault(whence, host) -> None:
    address = host.replace("http:", "https:")
    outcome = whence("status", "--host", address)
    assert outcome.err.startswith(f"Error: address {address}: no secure connection: ")


def test_a_certificate_that_is_not_trusted_is_the_address_s_fault_until_it_is(
    whence, state, tmp_path, monkeypatch
) -> None:
    pem = tmp_path / "server.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=here -addext subjectAltName=IP:127.0.0.1"
    subprocess.run(
        [*command.split(), "-keyout", pem, "-out", tmp_path / "certificate"], check=True, capture_output=True
    )
    pem.write_bytes(pem.read_bytes() + (tmp_path / "certificate").read_bytes())
    with serving(state, certificate=pem) as address:
        outcome = whence("status", "--host", address)
        assert outcome.err.startswith(f"Error: address {address}: its certificate is not trusted: ")
        assert "SSL_CERT_FILE" in outcome.err
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate"))
        assert whence("status", "--host", address).code == 0


def test_no_address_at_all_says_how_to_give_one(whence) -> None:
    outcome = whence("status")
    assert outcome.code == 1
    assert outcome.err.startswith("Error: address: none is known: give --host or set KF_PIPELINES_ENDPOINT")


def test_a_password_in_the_address_is_refused_unseen(whence) -> None:
    outcome = whence("status", "--host", "http://me:hunter2@kubeflow")
    assert outcome.code == 1
    assert "hunter2" not in outcome.err


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("<html><title>Log in to dex</title><form>Password</form></html>", "login at {}: a login page (Log in to dex)"),
        ("<!doctype html><title>Grafana</title>", "address {}: answers, but not as a Kubeflow Pipelines API (Grafana)"),
    ],
)
def test_a_web_page_is_not_taken_for_an_empty_answer(whence, host, state, compiled: Path, page: str, said: str) -> None:
    state.page = page
    for command in (("submit", "--file", compiled), ("status",), ("schedule", "delete", "x")):
        outcome = whence(*command)
        assert outcome.code == 1
        assert outcome.err.startswith(f"Error: {said.format(host)}"), outcome.err


def test_another_server_s_404_is_the_address_s_fault(whence, host) -> None:
    outcome = whence("status", "--host", f"{host}/elsewhere")
    assert outcome.err.startswith(f"Error: address {host}/elsewhere: answers 404, so it is no Kubeflow Pipelines API")


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, HANG_UP])
def test_a_server_that_recovers_is_waited_for(whence, host, state, compiled: Path, status: int) -> None:
    state.faults = failing(client.ATTEMPTS - 1, status)
    outcome = whence("submit", "--file", compiled)
    assert outcome.code == 0, outcome.err
    assert len(state.runs) == 1


def test_a_server_that_goes_on_failing_is_the_address_s_fault(whence, host, state, compiled: Path) -> None:
    state.faults = failing(10**6, 503)
    outcome = whence("submit", "--file", compiled)
    assert outcome.code == 1
    assert outcome.err.startswith(f"Error: address {host}: the server fails: 503, upstream connect error")
    assert len(state.calls) == client.ATTEMPTS


def test_a_pipeline_that_the_server_refuses_is_named(whence, host, state, compiled: Path) -> None:
    compiled.write_text(PIPELINE.replace("deploymentSpec", "deployment"))
    outcome = whence("pipelines", "upload", "--file", compiled)
    assert outcome.code == 1
    assert "pipeline two-steps-small: 400, Failed to create a pipeline version" in outcome.err
    state.violations.clear()


def test_a_file_that_is_no_pipeline_is_refused_before_any_request(whence, host, state, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("a: 1")
    assert "is not a compiled pipeline" in whence("submit", "--file", tmp_path / "x.yaml").err
    for option in (("--profile", "demo"), ("--pipeline", "retraining")):
        assert "give it without --pipeline" in whence("submit", "--file", tmp_path / "x.yaml", *option).err
    assert state.calls == []


def test_retraining_is_submitted_and_scheduled_as_a_pipeline_of_its_own(whence, host, state) -> None:
    submitted = whence("submit", "--profile", "demo", "--pipeline", "retraining")
    assert "pipeline whence-retraining-demo: version whence-retraining-demo-" in submitted.out
    scheduled = whence("schedule", "--cron", "0 3 * * 1", "--profile", "demo", "--pipeline", "retraining")
    assert "schedule whence-retraining-demo: created" in scheduled.out
    assert (submitted.code, scheduled.code, state.violations) == (0, 0, [])


# kfp's own conventions


def test_a_projected_token_of_a_pod_is_used(whence, host, state, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("KF_PIPELINES_TOKEN")
    (tmp_path / "token").write_text(TOKEN)
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))
    assert whence("status").code == 0


@pytest.mark.parametrize("variable", ["KF_PIPELINES_SA_TOKEN_PATH", "SSL_CERT_FILE"])
def test_a_file_that_is_named_and_not_there_is_said(whence, host, monkeypatch, variable: str) -> None:
    monkeypatch.delenv("KF_PIPELINES_TOKEN")
    monkeypatch.setenv(variable, "/nowhere/file")
    assert re.search(f"Error: (login: )?{variable}:? names /nowhere/file, which is no", whence("status").err)


def test_a_token_from_a_file_that_ends_in_a_line_break_is_taken(whence, host, monkeypatch) -> None:
    monkeypatch.setenv("KF_PIPELINES_TOKEN", f"{TOKEN}\n")
    assert whence("status").code == 0
    monkeypatch.delenv("KF_PIPELINES_TOKEN")
    assert whence("status", "--token", f"{TOKEN}\n").code == 0


def test_a_token_with_a_line_break_inside_is_refused_unseen(whence, host, monkeypatch) -> None:
    monkeypatch.setenv("KF_PIPELINES_TOKEN", f"one\n{TOKEN}")
    outcome = whence("status")
    assert outcome.code == 1
    [line] = outcome.err.strip().splitlines()
    [file] = re.findall(r"the rest is in (\S+)$", line)
    kept = Path(file).read_text()
    Path(file).unlink()
    assert "Traceback" in kept
    assert TOKEN not in kept


def test_kubeflow_is_reached_through_the_proxy_unless_no_proxy_names_it(whence, host, monkeypatch) -> None:
    monkeypatch.setenv("http_proxy", "http://me:hidden@127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "")
    refused = whence("status")
    assert "proxy" in refused.err
    assert "me:hidden" not in refused.err
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert whence("status").code == 0


def test_two_runs_of_one_name_in_one_instant_are_two(state, host) -> None:
    """What somebody else has created meanwhile is not taken for one's own."""
    ours = client.Client(host, token=TOKEN)
    made = iter(["first", "second"])
    there: set[str] = set()

    def find() -> set[str]:
        found = set(there)
        there.add("of somebody else")
        return found

    assert ours.create("run x", find, lambda: next(made)) == "first"


def test_a_kubeconfig_leads_to_the_service_behind_the_kubernetes_api(state, compiled, tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("KF_PIPELINES_TOKEN")
    state.behind = "/api/v1/namespaces/kubeflow/services/ml-pipeline:http/proxy"
    with serving(state) as address:
        write_kubeconfig(tmp_path / "kubeconfig", address)
        environment = {**os.environ, "KUBECONFIG": str(tmp_path / "kubeconfig")}
        command = [sys.executable, "-m", "whence.cli", "submit", "--kube-context", "x", "--file", str(compiled)]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert (ended.returncode, ended.stderr) == (0, "")
    run = only(state.runs)["run_id"]
    assert f"#/runs/details/{run} (a path of Kubeflow's UI; with KF_PIPELINES_UI_ENDPOINT set, a link)" in ended.stdout


def test_links_lead_to_the_ui_that_is_named(whence, host, state, compiled: Path, monkeypatch) -> None:
    monkeypatch.setenv("KF_PIPELINES_UI_ENDPOINT", "https://kubeflow.example/pipeline")
    out = whence("submit", "--file", compiled).out
    assert f"https://kubeflow.example/pipeline/#/runs/details/{only(state.runs)['run_id']}\n" in out
