"""Each image by itself: who it runs as, what is in it, and what is not."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
from build_settings import SECRET
from conftest import ROOT, SERVER, SERVICE, STAGES, Image, engine, groups_of, image_of
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from whence import __version__
from whence.stages import stages

LIGHT = {stage for stage in STAGES if "models" not in groups_of(stage)}
MEGABYTE = 1_000_000
# What each image must not have, whatever else may pull it in.
HEAVY = {
    "torch": LIGHT,
    "transformers": LIGHT,
    "kronfluence": {stage for stage in STAGES if "influence" not in groups_of(stage)},
    "deepeval": set(STAGES) - {"mmlu"},
    "wandb": set(STAGES) - {"train"},
    "kubernetes": set(STAGES) - {"train"},  # which may make a TrainJob
    "whence.components": set(STAGES),
    "whence.pipelines": set(STAGES),
    "pip": set(STAGES),
    "uv": set(STAGES),
}
COMPILERS = r"(cc|c\+\+|gcc|g\+\+|clang|cpp|ld|as|make|cmake|rustc|nvcc|gfortran)(-[0-9.]+)?"
# What one container tells of its image: a start takes longer than any of these questions.
QUESTIONS = {
    "user": "id -u; id -g",
    "programs": "for folder in $(echo $PATH | tr : ' '); do ls $folder; done; find / -xdev -name '*cc1*' 2> /dev/null",
    "may become root": "find /opt /usr/local -xdev -perm /6000",
}
QUESTIONS_OF_STAGES = {
    "version": "whence --version",
    "pins": "cd /opt/whence/requirements && cat *.txt",
    "packages": "python -c 'import importlib.metadata as m\nfor d in m.distributions(): print(d.name, d.version)'",
    "importable": "python -c 'import importlib.util as u, sys\nfor n in sys.argv[1:]: u.find_spec(n) and print(n)' "
    + " ".join(HEAVY),
}


@cache
def answers(image: Image) -> dict[str, list[str]]:
    """The lines that a container of the image prints to each question."""
    questions = QUESTIONS if image.stage == SERVER else QUESTIONS | QUESTIONS_OF_STAGES
    printed = image.shell("\n".join(f"echo '? {name}'\n({command})" for name, command in questions.items()))
    parts = [part.splitlines() for part in printed.split("? ")[1:]]
    assert [part[0] for part in parts] == list(questions)
    return {name: lines for name, *lines in parts}


def test_it_runs_as_nobody_in_particular(any_image: Image) -> None:
    assert any_image.inspect()["Config"]["User"] == "1000:1000"
    assert answers(any_image)["user"] == ["1000", "1000"]


def test_the_default_command_explains_the_stage(image: Image) -> None:
    finished = image.run()
    assert finished.returncode == 0, finished.stderr
    assert re.search(rf"Usage: whence {image.stage.replace('_', '-')} ", finished.stdout)
    assert f"--{stages()[image.stage].outputs[0].name.replace('_', '-')}" in finished.stdout


def test_nothing_of_it_can_be_changed_but_its_caches(any_image: Image) -> None:
    """Not even with a writable root: what it runs belongs to root, and of what root's imports made while building
    nothing is in the way of its user's caches.
    """
    script = "find / -xdev -writable -not -type l -not -path '/proc/*' -not -path '/dev/*' 2> /dev/null || true"
    if any_image.stage != SERVER:
        caches = "$MPLCONFIGDIR $TORCHINDUCTOR_CACHE_DIR $TRITON_CACHE_DIR $HF_HOME $TORCH_HOME $WANDB_DIR"
        script += f"; mkdir -p {caches} && for cache in {caches}; do touch $cache/file || exit 1; done"
    found = engine("run", "--rm", "--network=none", "--entrypoint=sh", any_image.name, "-c", script)
    assert found.returncode == 0, found.stderr
    allowed = {"/work", "/cache", "/tmp", "/var/tmp", "/run/lock"}
    assert set(found.stdout.split()) <= allowed


def test_there_is_no_compiler(any_image: Image) -> None:
    programs = answers(any_image)["programs"]
    assert "python3" in programs
    assert [name for name in programs if re.fullmatch(COMPILERS, name.rpartition("/")[2])] == []


def test_no_program_may_become_root(any_image: Image) -> None:
    assert answers(any_image)["may become root"] == []


def test_it_holds_its_pinned_requirements_and_nothing_else(image: Image) -> None:
    held = dict(line.split() for line in answers(image)["packages"])
    requirements = [Requirement(line) for line in answers(image)["pins"]]
    here = [one for one in requirements if one.marker is None or one.marker.evaluate()]
    pins = {canonicalize_name(one.name): str(one.specifier).removeprefix("==") for one in here}
    pins["whence"] = __version__
    assert {canonicalize_name(name): version.partition("+")[0] for name, version in held.items()} == pins


def test_it_is_without_what_other_stages_need(image: Image) -> None:
    assert [name for name in answers(image)["importable"] if image.stage in HEAVY[name]] == []


def test_it_has_what_its_stage_imports(image: Image) -> None:
    """Also what its functions import only when they are called."""
    names = sorted(imports_of(ast.parse((ROOT / f"whence/stages/{image.stage}.py").read_text(encoding="utf-8"))))
    assert "whence.running.declaration" in names
    image.shell(f"python -c 'import whence.kubeflow, {', '.join(names)}'", "--volume=/cache")


def imports_of(node: ast.AST) -> set[str]:
    """The modules that the code imports when it runs."""
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        return set()
    if isinstance(node, ast.ImportFrom) and node.module:
        return {node.module} - {"__future__"}
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    return {name for child in ast.iter_child_nodes(node) for name in imports_of(child)}


def test_what_only_draws_needs_no_model() -> None:
    assert {"inspect", "compare"} <= LIGHT


@pytest.mark.parametrize("stage", sorted(LIGHT))
def test_light_images_are_light(stage: str) -> None:
    size = image_of(stage).inspect()["Size"]
    assert size < 600 * MEGABYTE, f"{size / MEGABYTE:.0f} MB"


def test_the_sizes_that_the_page_lists_are_true() -> None:
    """To a twentieth: the base differs from one Debian to the next."""
    page = (ROOT / "docker/README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[^|]+) \|.*\| ([\d.]+) (MB|GB) \|$", page, re.MULTILINE)
    listed = {
        name: float(size) * {"MB": 1e6, "GB": 1e9}[unit]
        for names, size, unit in rows
        for name in re.findall(r"`([\w-]+)`", names)
    }
    assert sorted(listed) == sorted(stage.replace("_", "-") for stage in [*STAGES, SERVICE, SERVER])
    actual = {name: image_of(name.replace("-", "_")).inspect()["Size"] for name in listed}
    assert listed == pytest.approx(actual, rel=0.05)


def test_stages_share_layers() -> None:
    layers = {stage: image_of(stage).inspect()["RootFS"]["Layers"] for stage in STAGES}
    unique = {layer for stage in STAGES for layer in layers[stage]}
    assert len(unique) < sum(map(len, layers.values())) / 2
    for one, other, at_least in [("inspect", "compare", 3), ("train", "mmlu", 2), ("fit_factors", "score", 3)]:
        assert len(set(layers[one]) & set(layers[other])) > at_least


def test_labels_say_what_it_is(any_image: Image) -> None:
    labels = any_image.inspect()["Config"]["Labels"]
    revision = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    assert labels["org.opencontainers.image.title"] == f"whence {any_image.stage.replace('_', '-')}"
    assert labels["org.opencontainers.image.version"] == __version__
    assert labels["org.opencontainers.image.revision"].removesuffix("-modified") == (revision or "unknown")


def test_labels_are_of_the_commit_that_was_built_last(tmp_path: Path) -> None:
    """Also where all of it is in the builder's cache: nothing in the image has changed but the commit."""
    for name in ["docker/build.sh", "docker/engine.sh", "whence/stages/inspect.py", "pyproject.toml"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    # Two, since podman labels the last one of a file in any case.
    stage = 'FROM scratch AS {}\nCOPY pyproject.toml /\nUSER 1000:1000\nCMD ["nothing"]\n'
    (tmp_path / "docker/Dockerfile").write_text(stage.format("stage") + stage.format("other"), encoding="utf-8")
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.com"]
    subprocess.run([*git, "init", "--quiet"], cwd=tmp_path, check=True)
    subprocess.run([*git, "add", "."], cwd=tmp_path, check=True)
    environment = os.environ | {"REGISTRY": "localhost/whence-test-labels", "TAG": "1"}
    image = Image("inspect", "localhost/whence-test-labels/inspect:1")
    try:
        for message in ["first", "second"]:
            subprocess.run([*git, "commit", "--quiet", "--allow-empty", "-m", message], cwd=tmp_path, check=True)
            head = subprocess.run([*git, "rev-parse", "HEAD"], cwd=tmp_path, check=True, capture_output=True, text=True)
            subprocess.run([tmp_path / "docker/build.sh", "inspect"], env=environment, check=True, capture_output=True)
            config = image.inspect()["Config"]
            assert config["Labels"]["org.opencontainers.image.revision"] == head.stdout.strip()
            assert (config["User"], config["Cmd"]) == ("1000:1000", ["nothing"])
    finally:
        engine("rmi", image.name)


def test_it_says_its_version(image: Image) -> None:
    assert answers(image)["version"] == [f"whence {__version__}"]


def test_its_tag_names_version_and_content(image: Image) -> None:
    assert re.fullmatch(r"\S+:\d+\.\d+\.\d+-[0-9a-f]{12}-cpu", image.name)


def test_a_moving_tag_is_refused() -> None:
    environment = os.environ | {"TAG": "latest"}
    refused = subprocess.run([ROOT / "docker/build.sh", "inspect"], env=environment, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "TAG=latest moves" in refused.stderr


def test_no_secret_of_the_build_is_left_in_it(any_image: Image) -> None:
    """The index's configuration held a password while the image was built."""
    history = engine("history", "--no-trunc", any_image.name, check=True).stdout
    environment = "\n".join(any_image.inspect()["Config"]["Env"])
    assert SECRET not in history + environment
    assert not re.search(r"password|secret=|token=|AKIA|BEGIN [A-Z ]*PRIVATE KEY", history + environment, re.IGNORECASE)
    skipped = "--exclude-dir=proc --exclude-dir=sys --exclude-dir=site-packages"
    names = " -o ".join(f"-name {name}" for name in ("pip.conf", ".netrc", ".pypirc", "credentials", "id_rsa", ".git"))
    script = f"""
        grep -rlI {skipped} {SECRET} / 2> /dev/null
        find / -xdev -not -path '*/site-packages/*' \\( {names} \\)
        find /root /run/secrets -type f -size +0 -path '*pip*'
    """
    found = engine("run", "--rm", "--network=none", "--user=0", any_image.name, "sh", "-c", script)
    assert found.stdout == ""


def test_its_memory_can_be_limited() -> None:
    image = image_of("inspect")
    script = "x = b'1' * (300 << 20)\nprint('had it all')"
    limited = image.run("python", "-c", script, options=("--memory=128m", "--memory-swap=128m"))
    assert limited.returncode == 137
    assert image.run("python", "-c", script, options=("--memory=600m",)).stdout.strip() == "had it all"


def test_the_service_lives_and_is_not_ready_while_no_champion_can_be_had() -> None:
    """As its pod runs it; a model in it is tried by the tests that have a registry."""
    service = "whence serve --champion --set tracking.uri=http://127.0.0.1:9 --set tracking.retry_seconds=0"
    script = f"""
{service} --cache /cache/champion 2> /tmp/log & python - <<'PROGRAM'
import time, urllib.error, urllib.request
def status(path):
    try:
        return urllib.request.urlopen("http://127.0.0.1:8750" + path).status
    except urllib.error.HTTPError as error:
        return error.code
    except urllib.error.URLError:
        return 0
for _ in range(300):
    if status("/healthz"):
        break
    time.sleep(0.2)
time.sleep(3)
print(status("/healthz"), status("/readyz"), status("/docs"))
PROGRAM
cat /tmp/log
"""
    printed = image_of(SERVICE).shell(script, "--volume=/cache")
    assert printed.splitlines()[0] == "200 503 200"
    assert "127.0.0.1:9" in printed, "its log says what is missing"
