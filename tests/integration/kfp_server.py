"""A Kubeflow Pipelines API over real HTTP that keeps its state in memory and takes nothing the models do not know.

Every body is held against ``kfp_server_api``'s models and every query against its methods: an unknown field, a wrong
type, a word that is not of an enumeration is answered with 400 and noted in ``violations``, which tests want empty.
"""

from __future__ import annotations

import base64
import inspect
import json
import re
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.parser import BytesParser
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from uuid import uuid4

import kfp_server_api as api
import kubernetes
import yaml

PREFIX = "/apis/v2beta1"
RECORDINGS = Path(__file__).parent.parent / "data" / "kubeflow"
HANG_UP = -1  # in place of a status: the connection ends without an answer
Json = dict[str, Any]


class Refused(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def check(value: Any, kind: str, where: str) -> None:
    """Hold JSON against a type as ``kfp_server_api`` writes it: ``str``, ``list[V2beta1Run]``, ``dict(str, object)``.

    Raises:
        Refused: it does not fit; ``where`` and the field are named.
    """
    plain: dict[str, tuple[type, ...]] = {"str": (str,), "bool": (bool,), "int": (int,), "datetime": (str,)}
    if kind == "object":
        return
    if kind.startswith("list["):
        require(isinstance(value, list), f"{where}: {value!r} is no list")
        for item in value:
            check(item, kind[5:-1], f"{where}[]")
    elif kind.startswith("dict("):
        require(isinstance(value, dict), f"{where}: {value!r} is no object")
        for name, item in value.items():
            check(item, kind[5:-1].partition(", ")[2], f"{where}.{name}")
    elif kind in plain:
        fits = isinstance(value, plain[kind]) and not (isinstance(value, bool) and kind != "bool")
        require(fits, f"{where}: {value!r} is not of type {kind}")
    else:
        check_model(value, getattr(api, kind), where)


def check_model(value: Any, model: Any, where: str) -> None:
    """Hold JSON against one model, or the words of an enumeration; then let the model itself refuse it."""
    if not model.openapi_types:
        require(value in model.allowable_values, f"{where}: {value!r} is none of {model.allowable_values}")
        return
    require(isinstance(value, dict), f"{where}: {value!r} is no object")
    kinds = {model.attribute_map[name]: kind for name, kind in model.openapi_types.items()}
    for name, item in value.items():
        require(name in kinds, f"{where}: {model.__name__} has no field {name!r}")
        check(item, kinds[name], f"{where}.{name}")


def require(fits: bool, message: str, status: int = 400) -> None:
    if not fits:
        raise Refused(status, message)


def queries_of(method: Callable[..., Any]) -> set[str]:
    """The query parameters a generated method knows."""
    return set(re.findall(r"query_params\.append\(\('([^']+)'", inspect.getsource(method)))


def now() -> str:
    return datetime.now(UTC).isoformat()


@dataclass
class Call:
    """One request as it arrived."""

    method: str
    path: str
    query: dict[str, str]
    body: Any
    headers: dict[str, str]


@dataclass
class KubeflowState:
    """What the server holds, and what it shall do wrong.

    Attributes:
        token: the bearer token it wants, if any.
        namespaces: those there are; None for a Kubeflow with one user, which passes over namespaces.
        faults: called with each request before it is served; returns a status to answer instead, or None.
        lost: the same, but after the request has done its work: the answer is lost, the work is not.
        page: answered instead of everything.
        behind: path of the proxy in front.
        workflows: what the Kubernetes API has of each run, by its id.
        pod_logs, archived_logs: of each pod by name, of each node by id.
        forbidden: the verb and resource that the Kubernetes API does not allow.
        progress: called with a run each time it is looked at, before it is sent.
    """

    token: str | None = None
    namespaces: set[str] | None = None
    faults: Callable[[Call], int | None] = lambda call: None
    lost: Callable[[Call], int | None] = lambda call: None
    page: str | None = None
    behind: str = ""
    progress: Callable[[Json], None] = lambda run: None
    forbidden: Json = field(default_factory=dict)
    pipelines: dict[str, Json] = field(default_factory=dict)
    versions: dict[str, Json] = field(default_factory=dict)
    experiments: dict[str, Json] = field(default_factory=dict)
    runs: dict[str, Json] = field(default_factory=dict)
    schedules: dict[str, Json] = field(default_factory=dict)
    workflows: dict[str, Json] = field(default_factory=dict)
    pod_logs: dict[str, str] = field(default_factory=dict)
    archived_logs: dict[str, str] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def asked(self, method: str, ending: str) -> list[Call]:
        """The requests so far of that method whose path has that end."""
        return [call for call in self.calls if call.method == method and call.path.endswith(ending)]

    def record(self, name: str) -> str:
        """Have a run as a real Kubeflow had it (tests/data/kubeflow), with its Workflow, and return its id."""
        run = json.loads((RECORDINGS / f"run-{name}.json").read_text())
        self.runs[run["run_id"]] = run
        workflow = RECORDINGS / f"workflow-{name}.json"
        if workflow.is_file():
            self.workflows[run["run_id"]] = json.loads(workflow.read_text())
        return str(run["run_id"])

    def serve(self, call: Call) -> Json | str:
        """Answer one request, as the API server of Kubeflow would."""
        if self.token is not None:
            given = call.headers.get("authorization")
            require(given == f"Bearer {self.token}", "Request header error: token expired", 401)
        for pattern, method, queries, handler in ROUTES:
            match = re.fullmatch((self.behind if pattern.startswith(PREFIX) else "") + pattern, call.path)
            if match and method == call.method:
                unknown = call.query.keys() - queries
                require(not unknown, f"{call.path}: no query parameters {sorted(unknown)}")
                self._check_namespace(call)
                return handler(self, call, *match.groups())
        raise Refused(404, "Not Found")

    def _check_namespace(self, call: Call) -> None:
        body = call.body if isinstance(call.body, dict) else {}
        name = call.query.get("namespace") or body.get("namespace")
        if name and self.namespaces is not None:
            require(name in self.namespaces, f'namespaces "{name}" not found', 404)

    def healthz(self, call: Call) -> Json:
        multi_user = self.namespaces is not None
        return {"commit_sha": "unknown", "tag_name": "2.17.0", "multi_user": multi_user, "pipeline_store": "database"}

    def create_pipeline(self, call: Call) -> Json:
        check(call.body, "V2beta1Pipeline", "pipeline")
        require(bool(call.body.get("name")), "name is required")
        self._require_free(self.pipelines, call.body["name"])
        return put(self.pipelines, "pipeline_id", call.body)

    def upload_version(self, call: Call) -> Json:
        pipeline = call.query.get("pipelineid", "")
        require(pipeline in self.pipelines, f"Pipeline {pipeline} not found", 404)
        content = file_of(call)
        spec, *platform = list(yaml.load_all(content, yaml.CSafeLoader))
        require({"pipelineInfo", "root", "deploymentSpec"} <= spec.keys(), "Failed to create a pipeline version")
        names = dict.fromkeys(("name", "display_name"), call.query["name"])
        self._require_free(self.versions, call.query["name"])
        both = {"pipeline_spec": spec, "platform_spec": platform[0]} if platform else spec
        return put(self.versions, "pipeline_version_id", {**names, "pipeline_id": pipeline, "pipeline_spec": both})

    def create_experiment(self, call: Call) -> Json:
        check(call.body, "V2beta1Experiment", "experiment")
        self._require_free(self.experiments, call.body["display_name"])
        return put(self.experiments, "experiment_id", call.body)

    def create_run(self, call: Call) -> Json:
        check(call.body, "V2beta1Run", "run")
        self._check_reference(call.body)
        history = [{"update_time": now(), "state": "PENDING"}]
        times = {"scheduled_at": now(), "finished_at": "1970-01-01T00:00:00Z"}
        return put(self.runs, "run_id", {**call.body, **times, "state": "PENDING", "state_history": history})

    def create_schedule(self, call: Call) -> Json:
        check(call.body, "V2beta1RecurringRun", "recurring_run")
        self._check_reference(call.body)
        require(1 <= int(call.body["max_concurrency"]) <= 10, "Max concurrency must be at least 1 and at most 10")
        cron = call.body["trigger"]["cron_schedule"]["cron"]
        require(len(cron.split()) == 6, f"cron {cron}: five fields would be read with their minutes as seconds")
        status = {"ENABLE": "ENABLED", "DISABLE": "DISABLED"}[call.body["mode"]]
        namespace = self.experiments[call.body["experiment_id"]].get("namespace")
        return put(self.schedules, "recurring_run_id", {**call.body, "status": status, "namespace": namespace})

    def get_run(self, call: Call, run_id: str) -> Json:
        require(run_id in self.runs, f"Run {run_id} not found", 404)
        self.progress(self.runs[run_id])
        check(self.runs[run_id], "V2beta1Run", "a test's own run")
        return self.runs[run_id]

    def terminate_run(self, call: Call, run_id: str) -> Json:
        require(run_id in self.runs, f"Run {run_id} not found", 404)
        for state in ("CANCELING", "FAILED"):  # as a real one lists it in the end
            self.runs[run_id]["state_history"].append({"update_time": now(), "state": state})
        self.runs[run_id]["state"] = "FAILED"
        return {}

    def retry_run(self, call: Call, run_id: str) -> Json:
        self.runs[run_id]["state"] = "RUNNING"
        return {}

    def archived_log(self, call: Call, run_id: str, node: str) -> Json:
        require(node in self.archived_logs, "Failed to read artifact: not found", 404)
        return {"data": base64.b64encode(self.archived_logs[node].encode()).decode()}

    def list_workflows(self, call: Call, namespace: str) -> Json:
        label, _, run_id = call.query["labelSelector"].partition("=")
        require(label == "pipeline/runid", f"label {label}")
        found = self.workflows.get(run_id)
        return {"items": [found] if found and found["metadata"]["namespace"] == namespace else []}

    def review_access(self, call: Call) -> Json:
        asked = call.body["spec"]["resourceAttributes"]
        unknown = asked.keys() - set(kubernetes.client.V1ResourceAttributes.attribute_map.values())
        require(not unknown, f"resource attributes {unknown}")
        return {"status": {"allowed": not self.forbidden or not self.forbidden.items() <= asked.items()}}

    def pod_log(self, call: Call, namespace: str, pod: str) -> str:
        require(pod in self.pod_logs, f'pods "{pod}" not found', 404)
        return self.pod_logs[pod]

    def get_version(self, call: Call, pipeline: str, version: str) -> Json:
        require(version in self.versions, f"Version {version} not found", 404)
        return self.versions[version]

    def list_versions(self, call: Call, pipeline: str) -> Json:
        own = {key: value for key, value in self.versions.items() if value["pipeline_id"] == pipeline}
        return listed(own, "pipeline_versions", call)

    def delete_schedule(self, call: Call, schedule: str) -> Json:
        require(schedule in self.schedules, f"Job {schedule} not found", 404)
        del self.schedules[schedule]
        return {}

    def set_mode(self, call: Call, schedule: str, mode: str) -> Json:
        require(schedule in self.schedules, f"Job {schedule} not found", 404)
        self.schedules[schedule]["status"] = {"enable": "ENABLED", "disable": "DISABLED"}[mode]
        return {}

    def _require_free(self, entries: dict[str, Json], name: str) -> None:
        taken = any(name in (entry.get("name"), entry["display_name"]) for entry in entries.values())
        require(not taken, f"{name} already exists", 409)

    def _check_reference(self, body: Json) -> None:
        require(body.get("experiment_id") in self.experiments, f"Experiment {body.get('experiment_id')} not found", 404)
        reference = body["pipeline_version_reference"]
        version = self.versions.get(reference["pipeline_version_id"])
        require(version is not None, f"Version {reference} not found", 404)
        assert version is not None
        spec = version["pipeline_spec"].get("pipeline_spec", version["pipeline_spec"])
        known = spec["root"].get("inputDefinitions", {}).get("parameters", {})
        unknown = body["runtime_config"].get("parameters", {}).keys() - known.keys()
        require(not unknown, f"parameters {sorted(unknown)} are not in the pipeline's root inputs")


def put(entries: dict[str, Json], key: str, entry: Json) -> Json:
    """Keep a new entry under a new id."""
    identity = str(uuid4())
    entries[identity] = {**entry, key: identity, "created_at": now()}
    return entries[identity]


def listed(entries: dict[str, Json], name: str, call: Call) -> Json:
    """One page of the entries that the filter of the request leaves, two at most, so that pages are turned."""
    found = list(entries.values())
    if call.query.get("filter"):
        # The server reads protobuf's JSON: kfp writes the operation as its number, and one key in camel case.
        text = call.query["filter"].replace('"stringValue"', '"string_value"')
        chosen = json.loads(text.replace('"operation": 1', '"operation": "EQUALS"'))
        check(chosen, "V2beta1Filter", "filter")
        for predicate in chosen["predicates"]:
            require(predicate["operation"] == "EQUALS", "only EQUALS")
            found = [entry for entry in found if entry.get(predicate["key"]) == predicate["string_value"]]
    if call.query.get("sort_by") == "created_at desc":
        found.reverse()
    start, size = int(call.query.get("page_token") or 0), min(int(call.query.get("page_size") or 10), 2)
    page: Json = {name: found[start : start + size], "total_size": len(found)}
    if start + size < len(found):
        page["next_page_token"] = str(start + size)
    return page


def file_of(call: Call) -> bytes:
    """The one file of a multipart request."""
    kind = call.headers["content-type"]
    require(kind.startswith("multipart/form-data"), f"content type {kind}")
    message = BytesParser(policy=HTTP).parsebytes(b"Content-Type: " + kind.encode() + b"\r\n\r\n" + call.body)
    parts = {part.get_param("name", header="content-disposition"): part for part in message.iter_parts()}
    require(set(parts) == {"uploadfile"}, f"form fields {set(parts)}")
    require(str(parts["uploadfile"].get_filename()).endswith(".yaml"), "the file's name must say what it is")
    return bytes(parts["uploadfile"].get_payload(decode=True))


def _lists(name: str, entries: str) -> Callable[[KubeflowState, Call], Json]:
    return lambda state, call: listed(getattr(state, entries), name, call)


PIPELINES, UPLOADS, EXPERIMENTS, RUNS, SCHEDULES, HEALTH = (
    (getattr(api, f"{service}ServiceApi"), prefix)
    for service, prefix in [
        ("Pipeline", "pipeline_service_"),
        ("PipelineUpload", ""),
        ("Experiment", "experiment_service_"),
        ("Run", "run_service_"),
        ("RecurringRun", "recurring_run_service_"),
        ("Healthz", "healthz_service_"),
    ]
)
ID = r"/([^/:]+)"
# Path, method, what answers it, and the generated method that sends it: it says which queries there are.
TABLE: list[tuple[str, str, Callable[..., Json], tuple[Any, str], str]] = [
    ("healthz", "GET", KubeflowState.healthz, HEALTH, "get_healthz"),
    ("pipelines", "GET", _lists("pipelines", "pipelines"), PIPELINES, "list_pipelines"),
    ("pipelines", "POST", KubeflowState.create_pipeline, PIPELINES, "create_pipeline"),
    ("pipelines/upload_version", "POST", KubeflowState.upload_version, UPLOADS, "upload_pipeline_version"),
    (f"pipelines{ID}/versions", "GET", KubeflowState.list_versions, PIPELINES, "list_pipeline_versions"),
    (f"pipelines{ID}/versions{ID}", "GET", KubeflowState.get_version, PIPELINES, "get_pipeline_version"),
    ("experiments", "GET", _lists("experiments", "experiments"), EXPERIMENTS, "list_experiments"),
    ("experiments", "POST", KubeflowState.create_experiment, EXPERIMENTS, "create_experiment"),
    ("runs", "GET", _lists("runs", "runs"), RUNS, "list_runs"),
    ("runs", "POST", KubeflowState.create_run, RUNS, "create_run"),
    (f"runs{ID}", "GET", KubeflowState.get_run, RUNS, "get_run"),
    (f"runs{ID}:terminate", "POST", KubeflowState.terminate_run, RUNS, "terminate_run"),
    (f"runs{ID}:retry", "POST", KubeflowState.retry_run, RUNS, "retry_run"),
    ("recurringruns", "GET", _lists("recurringRuns", "schedules"), SCHEDULES, "list_recurring_runs"),
    ("recurringruns", "POST", KubeflowState.create_schedule, SCHEDULES, "create_recurring_run"),
    (f"recurringruns{ID}", "DELETE", KubeflowState.delete_schedule, SCHEDULES, "delete_recurring_run"),
    (f"recurringruns{ID}:(enable)", "POST", KubeflowState.set_mode, SCHEDULES, "enable_recurring_run"),
    (f"recurringruns{ID}:(disable)", "POST", KubeflowState.set_mode, SCHEDULES, "disable_recurring_run"),
]
# Paths that kfp's client has no method for: the archived log, and those of the Kubernetes API.
WORKFLOWS = r"/apis/argoproj.io/v1alpha1/namespaces/([^/]+)/workflows"
ROUTES: list[tuple[str, str, set[str], Callable[..., Json | str]]] = [
    (f"{PREFIX}/runs{ID}/nodes{ID}/artifacts/main-logs:read", "GET", set(), KubeflowState.archived_log),
    (r"/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", "POST", set(), KubeflowState.review_access),
    (WORKFLOWS, "GET", {"labelSelector"}, KubeflowState.list_workflows),
    (r"/api/v1/namespaces/([^/]+)/pods/([^/]+)/log", "GET", {"container"}, KubeflowState.pod_log),
] + [
    (f"{PREFIX}/{path}", method, queries_of(getattr(service, f"{prefix}{name}_with_http_info")), handler)
    for path, method, handler, (service, prefix), name in TABLE
]


def _handler(state: KubeflowState) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16  # head and body in one packet, or every answer waits 40 ms for an acknowledgement

        def do_GET(self) -> None:
            with state.lock:
                self._answer()

        do_POST = do_DELETE = do_GET

        def _answer(self) -> None:
            url = urlsplit(self.path)
            raw = self.rfile.read(int(self.headers.get("content-length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            is_json = raw and "json" in headers.get("content-type", "")
            call = Call(
                self.command, url.path, dict(parse_qsl(url.query)), json.loads(raw) if is_json else raw, headers
            )
            state.calls.append(call)
            if state.page is not None:
                self._send(200, "text/html", state.page)
                return
            try:
                status = state.faults(call)
                require(status is None, "upstream connect error", status or 500)
                answer = state.serve(call)
                status = state.lost(call)
                require(status is None, "upstream request timeout", status or 500)
                plain = isinstance(answer, str)
                self._send(200, "text/plain" if plain else "application/json", answer if plain else json.dumps(answer))
            except Refused as refused:
                if refused.status == HANG_UP:
                    self.close_connection = True
                    return
                if refused.status == 400:
                    state.violations.append(str(refused))
                body = {"error": str(refused), "code": 3, "message": str(refused), "details": []}
                self._send(refused.status, "application/json", json.dumps(body))

        def _send(self, status: int, kind: str, text: str) -> None:
            content = text.encode()
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None: ...

    return Handler


@contextmanager
def serving(state: KubeflowState, certificate: Path | None = None) -> Iterator[str]:
    """Serve ``state`` on a free port, over TLS if there is a ``certificate`` (with its key); yields the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(state))
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http{'s' if certificate else ''}://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
