"""Every overlay of `k8s/`: valid in three Kubernetes versions, and its pods are as they must be."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import typer
from manifests import (
    OVERLAYS,
    ROOT,
    Network,
    Pod,
    build,
    built,
    copy,
    make_secrets,
    objects,
    only,
    pod_of,
    pods,
    registry_image,
    run_secrets,
    with_components,
)

from whence import __version__
from whence.cli import build_app
from whence.config.cluster import LABEL

KUBERNETES = ("1.33", "1.35", "1.37")


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_is_strictly_valid(overlay: str, version: str) -> None:
    items = built(overlay)
    assert len(items) > 15
    for item in items:
        if item["kind"] != "ExternalSecret":  # an operator's own kind
            kubernetes_validate.validate(item, version, strict=True)


def test_the_validation_sees_a_misspelt_field() -> None:
    item = only(built("minio"), "Deployment", "mlflow")
    wrong = {**item, "spec": {**item["spec"], "replica": 1}}
    with pytest.raises(kubernetes_validate.ValidationError, match="replica"):
        kubernetes_validate.validate(wrong, KUBERNETES[0], strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_meets_the_restricted_standard_and_more(overlay: str) -> None:
    items = built(overlay)
    levels = only(items, "Namespace", "whence")["metadata"]["labels"]
    assert levels["pod-security.kubernetes.io/enforce"] == "restricted"
    for pod in pods(items):
        assert_restricted(pod)


def assert_restricted(pod: Pod) -> None:
    context = pod.spec["securityContext"]
    assert context["runAsNonRoot"] is True, pod.owner
    assert context["runAsUser"] > 0, pod.owner
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}, pod.owner
    assert pod.spec["automountServiceAccountToken"] is False, pod.owner
    assert pod.spec["enableServiceLinks"] is False, f"{pod.owner}: a service's address would arrive as MLFLOW_PORT"
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.spec.keys(), pod.owner
    kinds = {kind for volume in pod.spec.get("volumes", []) for kind in volume.keys() - {"name"}}
    assert kinds <= {"emptyDir", "secret", "configMap"}, pod.owner
    for container in pod.containers:
        own = container["securityContext"]
        assert own["allowPrivilegeEscalation"] is False, pod.owner
        assert own["readOnlyRootFilesystem"] is True, pod.owner
        assert own["capabilities"] == {"drop": ["ALL"]}, pod.owner
        assert own.keys() == {"allowPrivilegeEscalation", "readOnlyRootFilesystem", "capabilities"}, pod.owner
        for side in ("requests", "limits"):
            assert container["resources"][side].keys() >= {"cpu", "memory"}, f"{pod.owner} {side}"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_serves_is_probed_and_what_ends_has_an_end(overlay: str) -> None:
    for pod in pods(built(overlay)):
        if pod.owner.startswith(("Deployment", "StatefulSet")):
            assert pod.spec["priorityClassName"] == "whence-services"
            for container in pod.spec["containers"]:
                probes = [container[f"{kind}Probe"] for kind in ("startup", "readiness", "liveness")]
                named = {probe["httpGet"]["port"] for probe in probes if "httpGet" in probe}
                assert named <= pod.listens_on().keys(), pod.owner
        else:
            assert pod.spec["restartPolicy"] in ("Never", "OnFailure"), pod.owner


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_image_is_pinned(overlay: str) -> None:
    images = {container["image"] for pod in pods(built(overlay)) for container in pod.containers}
    assert f"whence/mlflow:{__version__}" in images
    for image in images:
        name, version = registry_image(image)
        assert re.search(r"\d+\.\d+|\d{4}-\d{2}-\d{2}", version), f"{image} is not pinned to a version"
        assert name == "whence/mlflow" or "." in name.partition("/")[0], f"{image} names no registry"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_secret_and_config_map_that_a_pod_names_is_there_with_its_keys(overlay: str) -> None:
    items = built(overlay)
    data = {
        (item["kind"], item["metadata"]["name"], item["metadata"]["namespace"]): item["data"].keys()
        for item in items
        if item["kind"] in ("Secret", "ConfigMap")
    }
    for item in items:
        if item["kind"] == "ExternalSecret":
            name, keys = item["spec"]["target"]["name"], {entry["secretKey"] for entry in item["spec"]["data"]}
            data["Secret", name, item["metadata"]["namespace"]] = keys
    seen = 0
    for pod in pods(items):
        for kind, name, key in references(pod.spec):
            there = data.get((kind, name, pod.namespace))
            assert there is not None, f"{pod.owner} names {kind} {name}, which is not in {pod.namespace}"
            assert key is None or key in there, f"{pod.owner}: {kind} {name} has no {key}"
            seen += 1
    assert seen >= 8


def references(spec: Any) -> list[tuple[str, str, str | None]]:
    """Kind, name and key of every Secret and ConfigMap named anywhere below."""
    found: list[tuple[str, str, str | None]] = []
    if isinstance(spec, list):
        return [each for item in spec for each in references(item)]
    if isinstance(spec, dict):
        for field, value in spec.items():
            kind = {"secret": "Secret", "configMap": "ConfigMap"}.get(re.sub(r"(KeyRef|Ref)$", "", field))
            if kind and isinstance(value, dict):
                found.append((kind, value.get("name") or value["secretName"], value.get("key")))
            else:
                found += references(value)
    return found


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_services_reach_their_pods(overlay: str) -> None:
    items = built(overlay)
    services = [item for item in items if item["kind"] == "Service"]
    assert len(services) >= 2
    for service in services:
        [pod] = [pod for pod in pods(items) if service["spec"]["selector"].items() <= pod.labels.items()]
        assert pod.namespace == service["metadata"]["namespace"]
        for port in service["spec"]["ports"]:
            assert pod.listens_on()[port["targetPort"]] == port["port"], service["metadata"]["name"]


def test_basic_auth_asks_everybody_and_only_there() -> None:
    def variables(overlay: str, name: str) -> set[str]:
        return {entry["name"] for each in pod_of(built(overlay), name).containers for entry in each.get("env", [])}

    assert "MLFLOW_BASIC_AUTH" in variables("basic-auth", "mlflow")
    for job in ("mlflow-gc", "mlflow-settle"):
        assert variables("basic-auth", job) >= {"MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"}
    assert "MLFLOW_BASIC_AUTH" not in variables("seaweedfs", "mlflow")


@pytest.mark.parametrize("overlay", [name for name in OVERLAYS if name != "external-secrets"])
def test_missing_secrets_are_named_and_made_ones_are_not_weak(tmp_path: Path, overlay: str) -> None:
    folder = copy(tmp_path / "k8s")
    without = build(folder / "overlays" / overlay)
    assert without.returncode != 0
    assert re.search(r"\S+\.secret\.env", without.stderr)
    make_secrets(folder, overlay)
    made = {file: file.read_text() for file in folder.rglob("*.secret.env")}
    values = [line.partition("=")[2] for text in made.values() for line in text.splitlines()]
    assert all(values)
    chosen = [value for value in values if re.fullmatch(r"[0-9a-f]{48}", value)]
    assert len(chosen) == len(set(chosen)) >= 1
    assert all(file.stat().st_mode & 0o077 == 0 for file in made)
    assert "is there already" in make_secrets(folder, overlay)
    assert {file: file.read_text() for file in made} == made


def test_an_overlay_for_gitops_builds_without_local_files(tmp_path: Path) -> None:
    folder = copy(tmp_path / "k8s")
    done = build(folder / "overlays" / "external-secrets")
    assert done.returncode == 0, done.stderr
    assert "kind: Secret\n" not in done.stdout
    assert "reloader.stakater.com/auto" in only(objects(done.stdout), "Deployment", "mlflow")["metadata"]["annotations"]


@pytest.mark.parametrize("overlay", ["external-s3", "mlflow"])
def test_placeholders_for_keys_are_refused(tmp_path: Path, overlay: str) -> None:
    folder = copy(tmp_path / "k8s")
    file = folder / "overlays" / "external-s3" / "s3.secret.env"
    for given in ({}, {"AWS_ACCESS_KEY_ID": "AKIAEXAMPLE"}, {"AWS_ACCESS_KEY_ID": "your-access-key"}):
        done = run_secrets(folder, overlay, **given)
        assert done.returncode != 0
        assert "is yours to give" in done.stderr
        assert not file.exists()
    file.write_text(file.with_suffix(".env.example").read_text())
    done = run_secrets(folder, overlay, AWS_ACCESS_KEY_ID="AKIAEXAMPLE", AWS_SECRET_ACCESS_KEY="s")
    assert done.returncode != 0
    assert "s3.secret.env still has a placeholder: AWS_ACCESS_KEY_ID=your-" in done.stderr


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_can_be_applied_again(overlay: str) -> None:
    assert "Job" not in {item["kind"] for item in built(overlay)}, "a Job cannot be changed once it is there"


@pytest.mark.parametrize(
    ("file", "old", "new", "rolled"),
    [
        ("overlays/seaweedfs/s3.secret.env", "_ID=whence", "_ID=other", {"mlflow", "seaweedfs"}),
        ("overlays/seaweedfs/postgres.secret.env", "WORD=", "WORD=f", {"mlflow", "postgres", "mlflow-gc"}),
        ("components/seaweedfs/endpoints.env", "us-east-1", "us-east-2", {"mlflow"}),
        ("components/mlflow/buckets.json", "60", "90", {"mlflow"}),
    ],
    ids=["key", "password", "endpoint", "buckets"],
)  # fmt: skip
def test_a_changed_key_or_endpoint_restarts_those_who_use_it(
    tmp_path: Path, file: str, old: str, new: str, rolled: set[str]
) -> None:
    folder = copy(tmp_path / "k8s")
    make_secrets(folder, "seaweedfs")
    before = objects(build(folder / "overlays" / "seaweedfs").stdout)
    text = (folder / file).read_text()
    (folder / file).write_text(text.replace(old, new))
    after = objects(build(folder / "overlays" / "seaweedfs").stdout)
    specs = [{pod.labels["app.kubernetes.io/name"]: pod.spec for pod in pods(items)} for items in (before, after)]
    assert {name for name in specs[0] if specs[0][name] != specs[1][name]} == rolled


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_everything_is_labelled_as_ours(overlay: str) -> None:
    for pod in pods(built(overlay)):
        assert pod.labels["app.kubernetes.io/part-of"] == "whence", pod.owner


def test_on_openshift_the_platform_chooses_the_users(tmp_path: Path) -> None:
    items = with_components(copy(tmp_path / "k8s"), "seaweedfs", "openshift")
    for pod in pods(items):
        context = pod.spec["securityContext"]
        assert context["runAsNonRoot"] is True, pod.owner
        assert not {"runAsUser", "runAsGroup", "fsGroup"} & context.keys(), pod.owner
    for item in items:
        kubernetes_validate.validate(item, KUBERNETES[0], strict=True)


def test_without_keys_no_pod_names_any_and_the_cloud_knows_who_asks(tmp_path: Path) -> None:
    items = with_components(copy(tmp_path / "k8s"), "external-secrets", "backup", "workload-identity")
    assert "whence-s3" not in {
        item["metadata"]["name"] for item in items if item["kind"] in ("Secret", "ExternalSecret")
    }
    for pod in pods(items):
        assert "whence-s3" not in {name for _, name, _ in references(pod.spec)}, pod.owner
        if "whence/store-client" in pod.labels:
            assert pod.spec["serviceAccountName"] == "mlflow", pod.owner
    for item in items:
        if item["kind"] != "ExternalSecret":
            kubernetes_validate.validate(item, KUBERNETES[0], strict=True)


def test_runs_may_make_training_jobs_and_their_nodes_reach_one_another(tmp_path: Path) -> None:
    items = with_components(copy(tmp_path / "k8s"), "seaweedfs", "train-jobs")
    for item in items:
        kubernetes_validate.validate(item, KUBERNETES[0], strict=True)
    runs = only(items, "ServiceAccount", "whence-runner")["metadata"]["namespace"]
    assert only(items, "Role", "whence-train-jobs")["metadata"]["namespace"] == runs
    for kind, name in (("RoleBinding", "whence-train-jobs"), ("ClusterRoleBinding", "whence-training-runtimes")):
        [subject] = only(items, kind, name)["subjects"]
        assert (subject["name"], subject["namespace"]) == ("whence-runner", runs)
    policy = only(items, "NetworkPolicy", "whence-nodes", runs)["spec"]
    ours = policy["podSelector"]
    assert ours["matchLabels"] == LABEL
    assert policy["ingress"] == [{"from": [{"podSelector": ours}]}]
    assert policy["egress"] == [{"to": [{"podSelector": ours}]}]


def test_a_budget_holds_every_service_and_no_job(tmp_path: Path) -> None:
    items = with_components(copy(tmp_path / "k8s"), "seaweedfs", "disruption-budgets", "backup")
    budget = only(items, "PodDisruptionBudget", "services")
    kubernetes_validate.validate(budget, KUBERNETES[0], strict=True)
    [expression] = budget["spec"]["selector"]["matchExpressions"]
    held = {pod.owner.partition("/")[0] for pod in pods(items) if pod.labels[expression["key"]] in expression["values"]}
    free = {pod.owner.partition("/")[0] for pod in pods(items)} - held
    assert (held, free) == ({"Deployment", "StatefulSet"}, {"CronJob"})


def test_the_backup_reaches_the_database_and_the_store_and_nothing_reaches_it(tmp_path: Path) -> None:
    items = with_components(copy(tmp_path / "k8s"), "seaweedfs", "backup")
    for item in items:
        kubernetes_validate.validate(item, KUBERNETES[0], strict=True)
    network, backup = Network(items), pod_of(items, "postgres-backup")
    assert network.allows(backup, pod_of(items, "postgres"), 5432)
    assert network.allows(backup, pod_of(items, "seaweedfs"), 8333)
    assert not network.allows(pod_of(items, "mlflow"), backup, 5432)
    images = {container["name"]: container["image"] for container in backup.containers}
    assert images["dump"] == pod_of(items, "postgres").containers[0]["image"], "a dump is read by no older version"
    assert all(container["securityContext"]["readOnlyRootFilesystem"] for container in backup.containers)


def test_the_service_that_answers_questions_reaches_mlflow_and_who_may_ask_reaches_it(tmp_path: Path) -> None:
    items = with_components(copy(tmp_path / "k8s"), "seaweedfs", "serve")
    for item in items:
        kubernetes_validate.validate(item, KUBERNETES[0], strict=True)
    network, serve = Network(items), pod_of(items, "serve")
    assert_restricted(serve)
    assert network.allows(serve, pod_of(items, "mlflow"), 5000)
    assert not network.allows(serve, pod_of(items, "postgres"), 5432)
    assert not network.allows(pod_of(items, "mlflow"), serve, 8750)
    client = replace(serve, namespace="team-a", labels={"whence/serve-client": "true"})
    assert network.allows(client, serve, 8750)
    assert not network.allows(replace(client, labels={}), serve, 8750)
    [container] = serve.containers
    assert registry_image(container["image"]) == ("whence/serve", __version__)
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz", "not before a champion is loaded"
    arguments = [*container["command"], *container["args"]]
    chosen = typer.main.get_command(build_app()).commands["serve"]
    chosen.make_context("serve", arguments[2:])  # raises for what the command does not take
    assert serve.listens_on() == {"http": 8750}


def test_prometheus_reaches_what_has_metrics_and_nothing_else(tmp_path: Path) -> None:
    items = with_components(copy(tmp_path / "k8s"), "seaweedfs", "serve", "metrics")
    for item in items:
        kubernetes_validate.validate(item, KUBERNETES[0], strict=True)
    network, mlflow = Network(items), pod_of(items, "mlflow")
    prometheus = replace(mlflow, namespace="monitoring", labels={})
    assert network.allows(prometheus, mlflow, 5000)
    assert network.allows(prometheus, pod_of(items, "serve"), 8750)
    assert not network.allows(prometheus, pod_of(items, "postgres"), 5432)
    assert not network.allows(replace(prometheus, namespace="elsewhere"), mlflow, 5000)
    addresses = [entry["valueFrom"]["fieldRef"]["fieldPath"] for entry in mlflow.spec["containers"][0]["env"]
                 if entry["name"] == "POD_IP"]  # fmt: skip
    assert addresses == ["status.podIP"]


def test_no_secret_has_a_value_in_the_repository() -> None:
    assert not [path for path in (ROOT / "k8s").rglob("*.yaml") if re.search(r"^kind: Secret", path.read_text(), re.M)]
    for example in (ROOT / "k8s").rglob("*.secret.env.example"):
        values = dict(re.findall(r"^(\w+)=(.*)$", example.read_text(), re.MULTILINE))
        for name, value in values.items():
            assert ("PASSWORD" not in name and "SECRET" not in name) or value in ("", "your-secret-key"), example
