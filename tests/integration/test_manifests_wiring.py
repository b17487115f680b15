"""What the parts of an overlay of `k8s/` and the compiled pipelines say of each other agrees."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from manifests import (
    OVERLAYS,
    ROOT,
    Network,
    Object,
    Pod,
    build,
    built,
    copy,
    make_secrets,
    objects,
    only,
    pod_of,
    pods,
    with_components,
)

from whence.pipelines.graphs.compile import compile_pipeline
from whence.pipelines.graphs.placement import LABEL, PLATFORMS

OTHERS = {"pipeline/runid": "5c0b"}  # Kubeflow's label on the pods of any run
RUN = OTHERS | LABEL  # of ours
COMPLETE = tuple(name for name in OVERLAYS if name != "mlflow")  # those that also serve pipeline runs
WITH_STORE = ("seaweedfs", "minio", "external-s3")  # those that include one themselves


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_who_may_call_whom(overlay: str) -> None:
    items = built(overlay)
    network, every = Network(items), {pod.labels["app.kubernetes.io/name"]: pod for pod in pods(items)}
    run, stranger = Pod("run", "kubeflow", RUN, {}), Pod("stranger", "elsewhere", RUN, {})
    beside, outside = Pod("beside", "whence", {}, {}), Pod("outside", "internet", {}, {})
    store = next((name for name in ("seaweedfs", "minio") if name in every), None)
    wanted = {("mlflow", "postgres", 5432), ("mlflow-gc", "postgres", 5432), ("mlflow-gc", "mlflow", 5000)}
    if overlay != "mlflow":  # which has no Kubeflow beside it
        wanted |= {("mlflow-settle", "mlflow", 5000)}
        kubeflow = Pod("api", "kubeflow", {"app": "ml-pipeline"}, {})
        assert network.allows(every["mlflow-settle"], kubeflow, 8888)
        assert not network.allows(every["mlflow-gc"], kubeflow, 8888)
    if store:
        [port] = every[store].listens_on().values()
        wanted |= {("mlflow", store, port)}
        assert network.allows(run, every[store], port)
        assert network.allows(Pod("ui", "kubeflow", {}, {}), every[store], port), "Kubeflow's UI shows artifacts"
    else:
        assert network.allows(every["mlflow"], outside, 443)
        assert not network.allows(every["postgres"], outside, 443)
    ports = {5000, 5432, 8333, 9000}
    allowed = {
        (source, target, port)
        for source, one in every.items()
        for target, other in every.items()
        for port in ports
        if source != target and network.allows(one, other, port)
    }
    assert allowed == wanted
    assert network.allows(run, every["mlflow"], 5000)
    assert not network.allows(run, every["postgres"], 5432)
    for pod in every.values():
        assert network.allows(pod, Pod("dns", "kube-system", {}, {}), 53)
        for other in (stranger, beside):
            assert not any(network.allows(other, pod, port) for port in ports), f"{other.owner} reaches {pod.owner}"


@pytest.mark.parametrize("overlay", COMPLETE)
def test_a_run_reaches_what_it_needs_and_nobody_reaches_it(overlay: str) -> None:
    network, run = Network(built(overlay)), Pod("run", "kubeflow", RUN, {})
    api_server = (443, 6443, 8443, 16443)  # minikube's and microk8s' among them
    wanted = [("kubeflow", 8887), ("kubeflow", 8080), ("kube-system", 53), ("openshift-dns", 5353)]
    for peer, port in (*wanted, *(("internet", port) for port in api_server)):
        assert network.allows(run, Pod(peer, peer, {}, {}), port), f"{peer}:{port}"
    assert not network.allows(run, Pod("other", "team-b", {}, {}), 8080)
    assert not network.allows(Pod("other", "kubeflow", {}, {}), run, 8080)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_other_teams_runs_are_left_alone(overlay: str) -> None:
    items = built(overlay)
    network, other = Network(items), Pod("other", "kubeflow", OTHERS, {})
    assert network.allows(other, Pod("database", "team-b", {}, {}), 5432)
    assert network.allows(Pod("browser", "team-b", {}, {}), other, 8080)
    assert not network.allows(other, pod_of(items, "mlflow"), 5000)
    theirs = {item["kind"] for item in items if item["metadata"].get("namespace") == "kubeflow"}
    assert "ResourceQuota" not in theirs, "it counts every pod of the namespace"
    assert not [item for item in items if item["metadata"]["name"] == "kfp-launcher"], "it sets every run's bucket"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_rule_opens_every_port_to_everybody(overlay: str) -> None:
    for policy in (item for item in built(overlay) if item["kind"] == "NetworkPolicy"):
        for rule in [*policy["spec"].get("egress", []), *policy["spec"].get("ingress", [])]:
            assert rule.get("ports") or rule.get("to"), policy["metadata"]["name"]


def test_ports_are_set_in_one_place(tmp_path: Path) -> None:
    folder = copy(tmp_path / "k8s")
    make_secrets(folder, "external-s3")
    file = folder / "overlays" / "external-s3" / "reach.yaml"
    ports = yaml.safe_load(file.read_text(encoding="utf-8"))
    ports |= {
        key: [{"port": port, "protocol": "TCP"}] for key, port in [("names", 54), ("outside", 3128), ("store", 9000)]
    }
    file.write_text(yaml.safe_dump(ports), encoding="utf-8")
    items = objects(build(folder / "overlays" / "external-s3").stdout)
    network, run, mlflow = Network(items), Pod("run", "kubeflow", RUN, {}), pod_of(items, "mlflow")
    reached = {
        pod.owner: {port for port in (53, 54, 443, 3128, 9000) if network.allows(pod, Pod("out", "out", {}, {}), port)}
        for pod in (run, mlflow)
    }
    assert reached == {"run": {54, 3128, 9000}, mlflow.owner: {54, 9000}}
    assert "Reach" not in {item["kind"] for item in items}


@pytest.mark.parametrize("overlay", WITH_STORE)
def test_kubeflow_and_mlflow_and_runs_agree_on_the_store(overlay: str, tmp_path: Path) -> None:
    items = with_components(copy(tmp_path / "k8s"), overlay, "whole-namespace")
    here, there = (
        [only(items, "ConfigMap", "whence-endpoints", where), only(items, "Secret", "whence-s3", where)]
        for where in ("whence", "kubeflow")
    )
    assert [item["data"] for item in here] == [item["data"] for item in there]
    endpoints = there[0]["data"]
    launcher = only(items, "ConfigMap", "kfp-launcher", "kubeflow")["data"]
    provider = yaml.safe_load(launcher["providers"])["s3"]["default"]
    scheme = "http" if provider["disableSSL"] else "https"
    assert f"{scheme}://{provider['endpoint']}" == endpoints["AWS_ENDPOINT_URL"]
    assert provider["region"] == endpoints["AWS_REGION"]
    secret = provider["credentials"]["secretRef"]
    keys = only(items, "Secret", secret["secretName"], "kubeflow")["data"].keys()
    assert {secret["accessKeyKey"], secret["secretKeyKey"]} == keys
    made = yaml.safe_load(
        next(i for i in items if i["metadata"]["name"].startswith("buckets-"))["data"]["buckets.json"]
    )
    settings = next(i for i in items if i["metadata"]["name"].startswith("mlflow-settings"))["data"]
    assert {launcher["defaultPipelineRoot"].split("/")[2], settings["MLFLOW_ARTIFACTS_DESTINATION"][5:]} == made.keys()
    host, _, port = provider["endpoint"].partition(":")
    if overlay != "external-s3":
        service = only(items, "Service", host.split(".")[0], host.split(".")[1])
        assert [entry["port"] for entry in service["spec"]["ports"]] == [int(port)]


def test_what_the_compiled_pipeline_asks_for_is_there_and_the_a100_reaches_its_tasks(tmp_path: Path) -> None:
    items = with_components(copy(tmp_path / "k8s"), "seaweedfs", "whole-namespace")
    target = tmp_path / "pipeline.yaml"
    compile_pipeline(ROOT / "configs" / "patents-tinyllama.yaml", target)
    pipeline, platform = yaml.load_all(target.read_text(encoding="utf-8"), yaml.CSafeLoader)
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    on_gpu = 0
    for name, executor in executors.items():
        for entry in executor.get("secretAsEnv", []):
            data = only(items, "Secret", entry["secretName"], "kubeflow")["data"]
            assert {pair["secretKey"] for pair in entry["keyToEnv"]} <= data.keys()
        for entry in executor.get("configMapAsEnv", []):
            data = only(items, "ConfigMap", entry["configMapName"], "kubeflow")["data"]
            assert {pair["configMapKey"] for pair in entry["keyToEnv"]} <= data.keys()
        assert executor["securityContext"]["runAsNonRoot"] is True
        asked = pipeline["deploymentSpec"]["executors"][name]["container"]["resources"]
        on_gpu += "accelerator" in asked
        assert ("accelerator" in asked) == ("nodeSelector" in executor), name
    assert on_gpu >= 6
    form = pipeline["root"]["inputDefinitions"]["parameters"]
    selected = dict(node_selectors(pipeline, executors, "root", {n: p.get("defaultValue") for n, p in form.items()}))
    assert len(selected) == on_gpu
    a100 = {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"}
    assert all(labels == a100 == PLATFORMS["nvidia"].node_selector for labels in selected.values())
    quota = only(items, "ResourceQuota", "whence-gpus", "kubeflow")["spec"]["hard"]
    assert quota.keys() == {f"requests.{form['gpu_accelerator']['defaultValue']}"}


def node_selectors(
    pipeline: Object, executors: Object, component: str, values: Object
) -> Iterator[tuple[str, dict[str, str] | None]]:
    """What Kubeflow's driver reads for each task: the form's value, handed down through the graphs in between."""
    graph = pipeline["root"] if component == "root" else pipeline["components"][component]
    for task in graph["dag"]["tasks"].values():
        name = task["componentRef"]["name"]
        executor = pipeline["components"][name].get("executorLabel")
        if executor is None:
            given = task.get("inputs", {}).get("parameters", {})
            below = {key: values.get(source.get("componentInputParameter")) for key, source in given.items()}
            yield from node_selectors(pipeline, executors, name, below)
        elif "nodeSelector" in executors[executor]:
            yield executor, values[executors[executor]["nodeSelector"]["nodeSelectorJson"]["componentInputParameter"]]


@pytest.mark.parametrize("overlay", COMPLETE)
def test_the_runs_service_account_has_the_least_it_needs(overlay: str) -> None:
    items = built(overlay)
    assert not [item for item in items if item["kind"].startswith("ClusterRole")]
    role, binding = (only(items, kind, "whence-runner", "kubeflow") for kind in ("Role", "RoleBinding"))
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "whence-runner", "namespace": "kubeflow"}]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    for rule in role["rules"]:
        assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
        if {"secrets", "configmaps"} & set(rule["resources"]):
            assert rule["verbs"] == ["get"]
            ours = [name for name in rule["resourceNames"] if name.startswith("whence-")]
            assert set(rule["resourceNames"]) - set(ours) <= {"kfp-launcher", "mlpipeline-minio-artifact"}, "Kubeflow's"
            kind = "ExternalSecret" if overlay == "external-secrets" else "Secret"
            assert [name for name in ours if only(items, kind, name, "kubeflow")] == ours


def test_runs_in_a_profile_need_one_command(tmp_path: Path) -> None:
    [command] = re.findall(r"^ *\$ (grep -rl .*sed -i .*)$", (ROOT / "k8s" / "README.md").read_text(), re.MULTILINE)
    folder = copy(tmp_path / "k8s")
    make_secrets(folder, "minio")
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True, timeout=30)
    items = objects(build(folder / "overlays" / "minio").stdout)
    assert {item["metadata"].get("namespace") for item in items} == {None, "whence", "team-a"}
    network, run = Network(items), Pod("run", "team-a", RUN, {})
    assert network.allows(run, pod_of(items, "mlflow"), 5000)
    assert network.allows(run, pod_of(items, "minio"), 9000)
    assert network.allows(run, Pod("api", "kubeflow", {}, {}), 8887)
    assert network.allows(Pod("ui", "kubeflow", {}, {}), pod_of(items, "minio"), 9000)
