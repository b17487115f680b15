"""Overlays of `k8s/`, built by the real kustomize from a copy with secrets made as a user makes them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from absent import absent
from kubectl import KubectlUnavailable, kustomize

ROOT = Path(__file__).resolve().parents[2]
OVERLAYS = tuple(sorted(path.name for path in (ROOT / "k8s" / "overlays").iterdir()))
Object = dict[str, Any]


def copy(target: Path) -> Path:
    """`k8s/` without what users made in it."""
    return Path(shutil.copytree(ROOT / "k8s", target, ignore=shutil.ignore_patterns("*.secret.env")))


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    try:
        command = [*kustomize(), str(folder)]
    except KubectlUnavailable as error:
        absent(error)
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def objects(text: str) -> list[Object]:
    return [item for item in yaml.load_all(text, yaml.CSafeLoader) if item]


@cache
def built(overlay: str) -> list[Object]:
    """The objects of an overlay, with secrets made by `k8s/secrets.sh`."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = copy(Path(scratch, "k8s"))
        make_secrets(folder, overlay)
        done = build(folder / "overlays" / overlay)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, "kustomize warns"
    return objects(done.stdout)


def make_secrets(folder: Path, overlay: str) -> str:
    """What `k8s/secrets.sh` prints, called by a user who has the keys of a store outside."""
    done = run_secrets(folder, overlay, AWS_ACCESS_KEY_ID="AKIAEXAMPLE", AWS_SECRET_ACCESS_KEY="kept-by-the-user")
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_secrets(folder: Path, overlay: str, **variables: str) -> subprocess.CompletedProcess[str]:
    script = [str(folder / "secrets.sh"), overlay]
    clean = {"PATH": os.environ["PATH"], **variables}
    return subprocess.run(script, capture_output=True, text=True, timeout=30, check=False, env=clean)


def with_components(folder: Path, overlay: str, *names: str) -> list[Object]:
    """The objects of an overlay of the copy ``folder`` after `kustomize edit add component`."""
    make_secrets(folder, overlay)
    file = folder / "overlays" / overlay / "kustomization.yaml"
    settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    settings.setdefault("components", []).extend(f"../../components/{name}" for name in names)
    file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    done = build(folder / "overlays" / overlay)
    assert done.returncode == 0, done.stderr
    return objects(done.stdout)


def only(items: list[Object], kind: str, name: str, namespace: str | None = None) -> Object:
    """The one object of that name."""
    wanted = re.compile(f"{kind}/{name}(-[a-z0-9]{{10}})?")  # kustomize's hash
    found = [i for i in items if wanted.fullmatch(name_of(i)) and namespace in (None, i["metadata"].get("namespace"))]
    assert len(found) == 1, f"{len(found)} of {kind}/{name}"
    return found[0]


def name_of(item: Object) -> str:
    return f"{item['kind']}/{item['metadata']['name']}"


@dataclass(frozen=True)
class Pod:
    """A pod as its owner makes it, to look at with the names of Kubernetes."""

    owner: str
    namespace: str
    labels: dict[str, str]
    spec: dict[str, Any]

    @property
    def containers(self) -> list[dict[str, Any]]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    def listens_on(self) -> dict[str, int]:
        return {port["name"]: port["containerPort"] for each in self.containers for port in each.get("ports", [])}


def pods(items: list[Object]) -> Iterator[Pod]:
    """The pods of all workloads."""
    for item in items:
        spec = item.get("spec", {})
        template = spec.get("jobTemplate", item).get("spec", spec).get("template") if isinstance(spec, dict) else None
        if template:
            labels = template["metadata"]["labels"]
            yield Pod(name_of(item), item["metadata"]["namespace"], labels, template["spec"])


def pod_of(items: list[Object], name: str) -> Pod:
    """The one pod of that application."""
    [pod] = [pod for pod in pods(items) if pod.labels["app.kubernetes.io/name"] == name]
    return pod


def selects(selector: Mapping[str, Any] | None, labels: Mapping[str, str]) -> bool:
    """A label selector as Kubernetes reads it; an operator not used here is an error."""
    selector = selector or {}
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    for expression in selector.get("matchExpressions", []):
        value = labels.get(expression["key"])
        holds = {"Exists": value is not None, "In": value in expression.get("values", [])}
        assert expression["operator"] in holds, f"teach selects() {expression['operator']}"
        if not holds[expression["operator"]]:
            return False
    return True


class Network:
    """Who may open a connection to whom, worked out from the policies as the Kubernetes documentation defines them."""

    def __init__(self, items: list[Object]) -> None:
        self.policies = [item for item in items if item["kind"] == "NetworkPolicy"]

    def allows(self, source: Pod, target: Pod, port: int) -> bool:
        """Both ends must agree."""
        return self._one_way(source, target, port, "Egress") and self._one_way(target, source, port, "Ingress")

    def _one_way(self, pod: Pod, peer: Pod, port: int, direction: str) -> bool:
        about = [policy["spec"] for policy in self.policies if self._is_about(policy, pod, direction)]
        rules = [rule for spec in about for rule in spec.get(direction.lower(), [])]
        key = "to" if direction == "Egress" else "from"
        return not about or any(self._permits(rule, rule.get(key), pod, peer, port) for rule in rules)

    @staticmethod
    def _is_about(policy: Object, pod: Pod, direction: str) -> bool:
        spec = policy["spec"]
        here = policy["metadata"]["namespace"] == pod.namespace
        return here and direction in spec["policyTypes"] and selects(spec["podSelector"], pod.labels)

    @staticmethod
    def _permits(rule: Object, peers: list[Object] | None, pod: Pod, peer: Pod, port: int) -> bool:
        if "ports" in rule and port not in [entry["port"] for entry in rule["ports"]]:
            return False

        def matches(entry: Object) -> bool:
            if "namespaceSelector" in entry:
                if not selects(entry["namespaceSelector"], {"kubernetes.io/metadata.name": peer.namespace}):
                    return False
            elif peer.namespace != pod.namespace:
                return False
            return selects(entry.get("podSelector"), peer.labels)

        return peers is None or any(map(matches, peers))


def registry_image(image: str) -> tuple[str, str]:
    """Name and version of an image; a digest counts as a version."""
    found = re.fullmatch(r"(?P<name>[^@]+?)(?::(?P<tag>[^:/@]+))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?", image)
    assert found, image
    return found["name"], found["tag"] or found["digest"] or ""
