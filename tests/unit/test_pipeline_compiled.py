"""The compiled pipelines: what is checked in is what the sources give, and the form shows the profile."""

from __future__ import annotations

import inspect
import itertools
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp.dsl import pipeline_task

from whence.config_file import load_config, parse_config, unpack
from whence.errors import ConfigError
from whence.pipelines.graphs.catalog import PipelineKind
from whence.pipelines.graphs.compile import compile_pipeline, portable_config
from whence.pipelines.graphs.placement import FORM_HELP, HUB_CACHE
from whence.running.declaration import Stage
from whence.running.form import form_default, form_of
from whence.stages import stages

ROOT = Path(__file__).parents[2]
RETRAINING = "patents-tinyllama-retraining"
# Tasks: the real job has parallel ones, three more for the fit and one more for the scores.
TASKS = {"demo": 11, "patents-tinyllama": 15, RETRAINING: 18, "chat-lora": 15}
PROFILES = tuple(TASKS)


@pytest.fixture(autouse=True)
def stacks_without_source_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """kfp asks for the stack at every property of a task; among pytest's and torch's modules that takes seconds."""
    stack = inspect.stack
    monkeypatch.setattr(pipeline_task.inspect, "stack", lambda: stack(context=0))


def profile_file(profile: str) -> Path:
    return ROOT / "configs" / f"{profile.removesuffix('-retraining')}.yaml"


def kind_of(profile: str) -> PipelineKind:
    return PipelineKind.RETRAINING if profile == RETRAINING else PipelineKind.ATTRIBUTION


def parsed(path: Path) -> list[dict[str, Any]]:
    return list(yaml.load_all(path.read_text(encoding="utf-8"), yaml.CSafeLoader))  # much faster than safe_load


def checked_in(profile: str) -> list[dict[str, Any]]:
    return parsed(ROOT / "pipelines" / "compiled" / f"{profile}.yaml")


@pytest.mark.parametrize("profile", PROFILES)
def test_the_checked_in_pipeline_equals_a_fresh_compile(profile: str, tmp_path: Path) -> None:
    compile_pipeline(profile_file(profile), tmp_path / "fresh.yaml", kind=kind_of(profile))
    assert parsed(tmp_path / "fresh.yaml") == checked_in(profile), "run `make compiled`"


@pytest.mark.parametrize("profile", PROFILES)
def test_the_form_shows_the_profile_s_values_each_with_a_description(profile: str) -> None:
    config = load_config(profile_file(profile))
    form = checked_in(profile)[0]["root"]["inputDefinitions"]["parameters"]
    left_out = {"mmlu_enabled"} if profile == RETRAINING else set()  # a guard is nothing to switch off in a form
    fields = {name: field for name, field in form_of(config).items() if name not in left_out}
    places = set() if profile == "demo" else set(FORM_HELP)
    assert set(form) == {*fields, *places, "overrides"}
    assert {name: form[name]["defaultValue"] for name in fields} == {
        name: form_default(config, field) for name, field in fields.items()
    }
    assert [name for name in form if not form[name].get("description")] == []


@pytest.mark.parametrize("profile", PROFILES)
def test_no_image_is_a_moving_one_and_none_comes_from_elsewhere(profile: str) -> None:
    executors = checked_in(profile)[0]["deploymentSpec"]["executors"]
    images = [executor["container"]["image"] for executor in executors.values()]
    assert len(images) == TASKS[profile]
    assert all(image.startswith("whence/") and not image.endswith(":latest") for image in images)


def test_registry_and_tag_given_at_compile_time_reach_every_task(tmp_path: Path) -> None:
    """In a process of its own: components take their images when they are imported."""
    output, options = tmp_path / "p.yaml", ["--image-registry", "registry.example:5000/team", "--image-tag", "1.2-abc"]
    command = [sys.executable, "-m", "whence.cli", "compile", "--profile", "patents-tinyllama", "-o", str(output)]
    subprocess.run([*command, *options], check=True, capture_output=True)
    executors = parsed(output)[0]["deploymentSpec"]["executors"]
    images = {executor["container"]["image"] for executor in executors.values()}
    of_retraining = {"find_champion", "gate", "promote"}
    names = {stage.title for name, stage in stages().items() if name not in of_retraining}
    assert images == {f"registry.example:5000/team/{name}:1.2-abc" for name in names}
    refused = subprocess.run([*command, "--image-tag", "latest"], capture_output=True, text=True)
    assert refused.returncode == 1
    assert "latest moves" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("profile", PROFILES)
def test_the_baked_settings_need_no_file_and_name_no_folder_of_this_machine(profile: str) -> None:
    tasks = checked_in(profile)[0]["root"]["dag"]["tasks"]
    settings = unpack(tasks["prepare"]["inputs"]["parameters"]["settings"]["runtimeValue"]["constant"])
    config = parse_config(settings)
    assert config == portable_config(profile_file(profile))
    assert config.prompts.path is None
    assert config.prompts.items
    assert config.general.work_dir is None
    assert str(ROOT) not in settings


@pytest.mark.parametrize("profile", PROFILES)
def test_every_stage_learns_its_pipeline_run_and_prepare_is_never_cached(profile: str) -> None:
    pipeline, platform = checked_in(profile)
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert {entry["name"] for executor in executors.values() for entry in executor["fieldPathAsEnv"]} == {"KFP_RUN_ID"}
    assert len(executors) == TASKS[profile]
    assert not pipeline["root"]["dag"]["tasks"]["prepare"]["cachingOptions"]


PARALLEL = {
    "covariance": "fit_factors", "eigenvectors": "fit_factors", "lambda": "fit_factors", "score_part": "score",
    "retrain": "validate",
}  # fmt: skip

AMD64 = {"key": "kubernetes.io/arch", "operator": "In", "values": ["amd64"]}


def stage_of(executor: str) -> Stage:
    """The stage of an executor, ``exec-score-part``."""
    name = executor.removeprefix("exec-").replace("-", "_")
    return stages()[PARALLEL.get(name, name)]


def runs_on_gpu(executor: str) -> bool:
    return stage_of(executor).gpu


def from_form(form: dict[str, Any], text: str) -> Any:
    """The default of the field that Kubeflow reads ``text`` from."""
    [name] = re.findall(r"^\{\{\$\.inputs\.parameters\['pipelinechannel--(\w+)'\]\}\}$", text)
    return form[name]["defaultValue"]


@pytest.mark.parametrize("profile", ["patents-tinyllama", RETRAINING])
def test_gpu_stages_ask_for_one_a100_and_the_others_stay_off_gpu_nodes(profile: str) -> None:
    pipeline, platform = checked_in(profile)
    containers = {name: one["container"] for name, one in pipeline["deploymentSpec"]["executors"].items()}
    places = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    asking = {name for name, one in containers.items() if "accelerator" in one["resources"]}
    assert asking == set(filter(runs_on_gpu, containers))
    form = pipeline["root"]["inputDefinitions"]["parameters"]
    assert all(form[name]["parameterType"] == "STRING" for name in form if re.match("gpu_(acc|count|cpu|mem)", name))
    for name in asking:
        given = containers[name]["resources"]
        accelerator = given.pop("accelerator")
        assert from_form(form, accelerator["resourceType"]) == "nvidia.com/gpu"
        count = accelerator["resourceCount"]
        assert count == "1" if name in ("exec-generate", "exec-mmlu") else from_form(form, count) == "1"
        sizes = {side: from_form(form, value) for side, value in given.items()}
        cpus = {"resourceCpuLimit": "8", "resourceCpuRequest": "8"}
        assert sizes == cpus | {"resourceMemoryLimit": "96Gi", "resourceMemoryRequest": "96Gi"}
    for name, place in places.items():
        if runs_on_gpu(name):
            selector = place["nodeSelector"]["nodeSelectorJson"]["componentInputParameter"]
            assert selector.endswith("gpu_node_selector")
            assert place["nodeAffinity"] == [{"matchExpressions": [AMD64]}]
            assert place["tolerations"][0]["tolerationJson"]["componentInputParameter"].endswith("gpu_tolerations")
        else:
            assert place["nodeAffinity"] == [
                {"matchExpressions": [AMD64, {"key": "nvidia.com/gpu.present", "operator": "DoesNotExist"}]}
            ]
            assert "tolerations" not in place


def test_the_form_s_places_reach_the_nested_pipelines() -> None:
    pipeline, _ = checked_in("patents-tinyllama")
    form = pipeline["root"]["inputDefinitions"]["parameters"]
    assert form["gpu_node_selector"]["defaultValue"] == {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"}
    for name in ("fit-factors-in-parallel", "score-in-parallel"):
        given = pipeline["root"]["dag"]["tasks"][name]["inputs"]["parameters"]
        assert {field: given[field] for field in FORM_HELP} == {
            field: {"componentInputParameter": field} for field in FORM_HELP
        }


def test_a_gpu_stage_with_resources_of_its_own_keeps_them(tmp_path: Path) -> None:
    own = {"cluster.stages": {"train": {"cpu": "3", "memory": "12Gi"}}, "cluster.accelerator_count": 2}
    compile_pipeline(profile_file("patents-tinyllama"), tmp_path / "p.yaml", own)
    pipeline, _ = parsed(tmp_path / "p.yaml")
    form = pipeline["root"]["inputDefinitions"]["parameters"]
    resources = pipeline["deploymentSpec"]["executors"]["exec-train"]["container"]["resources"]
    assert (resources["resourceCpuLimit"], resources["resourceMemoryLimit"]) == ("3", "12Gi")
    assert from_form(form, resources["accelerator"]["resourceCount"]) == "2"


def test_a_task_that_makes_a_train_job_is_told_the_form_s_accelerators_and_asks_for_none(tmp_path: Path) -> None:
    nodes = {"cluster.nodes": 2, "cluster.accelerator_count": 4}
    compile_pipeline(profile_file("patents-tinyllama"), tmp_path / "p.yaml", nodes)
    pipeline, _ = parsed(tmp_path / "p.yaml")
    assert "accelerator" not in pipeline["deploymentSpec"]["executors"]["exec-train"]["container"]["resources"]
    told = pipeline["root"]["dag"]["tasks"]["train"]["inputs"]["parameters"]
    assert told["accelerator"] == {"componentInputParameter": "gpu_accelerator"}
    assert told["accelerator_count"] == {"componentInputParameter": "gpu_count"}


@pytest.mark.parametrize(
    ("platform", "selector"),
    [
        ("gke", {"cloud.google.com/gke-accelerator": "nvidia-a100-80gb"}),
        ("eks", {"node.kubernetes.io/instance-type": "p4de.24xlarge"}),
        ("aks", {"node.kubernetes.io/instance-type": "Standard_NC24ads_A100_v4"}),
    ],
)
def test_clouds_name_their_a100_nodes_in_their_own_way(platform: str, selector: dict[str, str], tmp_path: Path) -> None:
    compile_pipeline(profile_file("patents-tinyllama"), tmp_path / "p.yaml", {"cluster.platform": platform})
    form = parsed(tmp_path / "p.yaml")[0]["root"]["inputDefinitions"]["parameters"]
    assert form["gpu_node_selector"]["defaultValue"] == selector


def test_every_task_has_limits_retries_shared_memory_and_no_root(tmp_path: Path) -> None:
    settings = {
        "cluster.stages": {"train": {"cpu": "3", "memory": "12Gi", "shm": "4Gi", "timeout_hours": 0.5, "retries": 1}},
        "cluster.secrets": {"my-s3": ["AWS_ACCESS_KEY_ID"]},
        "cluster.config_maps": {"my-endpoints": ["AWS_ENDPOINT_URL"]},
    }
    compile_pipeline(profile_file("demo"), tmp_path / "p.yaml", settings)
    pipeline, platform = parsed(tmp_path / "p.yaml")
    resources = pipeline["deploymentSpec"]["executors"]["exec-train"]["container"]["resources"]
    assert (resources["resourceCpuLimit"], resources["resourceMemoryLimit"]) == ("3", "12Gi")
    assert "accelerator" not in resources  # the demo runs on CPUs everywhere
    for place in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values():
        assert place["securityContext"] == {"runAsUser": "1000", "runAsGroup": "1000", "runAsNonRoot": True}
        assert place["secretAsEnv"][0]["secretName"] == "my-s3"
        assert place["configMapAsEnv"][0]["configMapName"] == "my-endpoints"
        assert place["emptyDirMounts"][0]["medium"] == "Memory"
    trained = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-train"]
    assert trained["activeDeadlineSeconds"] == "1800"
    assert trained["emptyDirMounts"][0]["sizeLimit"] == "4Gi"
    tasks = pipeline["root"]["dag"]["tasks"]
    assert tasks["train"]["retryPolicy"]["maxRetryCount"] == 1
    assert tasks["prepare"]["retryPolicy"]["backoffFactor"] == 2.0


def placed(tmp_path: Path, settings: dict[str, Any], profile: str = "demo") -> tuple[dict[str, Any], dict[str, Any]]:
    """The pipeline compiled with ``settings``, and what is Kubernetes' own, by executor."""
    compile_pipeline(profile_file(profile), tmp_path / "p.yaml", settings)
    pipeline, platform = parsed(tmp_path / "p.yaml")
    return pipeline, platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


@pytest.mark.parametrize("profile", PROFILES)
def test_every_task_is_labelled_as_ours(profile: str) -> None:
    pipeline, platform = checked_in(profile)
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert executors.keys() == pipeline["deploymentSpec"]["executors"].keys()
    for name, place in executors.items():
        assert place["podMetadata"]["labels"] == {"app.kubernetes.io/part-of": "whence"}, name


def test_requests_and_limits_are_set_apart(tmp_path: Path) -> None:
    settings = {
        "cluster.stages": {"train": {"cpu": "1", "cpu_limit": "3", "memory": "4Gi", "memory_limit": "12Gi"}},
        "cluster.cpu_stages": {"cpu": "250m", "memory": "1Gi"},
    }
    containers = placed(tmp_path, settings)[0]["deploymentSpec"]["executors"]
    sides = ("resourceCpuRequest", "resourceCpuLimit", "resourceMemoryRequest", "resourceMemoryLimit")
    sizes = {name: tuple(containers[name]["container"]["resources"][side] for side in sides) for name in containers}
    assert sizes.pop("exec-train") == ("1", "3", "4Gi", "12Gi")
    assert set(sizes.values()) == {("250m", "250m", "1Gi", "1Gi")}, "without a limit of its own: as the request"


@pytest.mark.parametrize(
    "stage", [{"cpu": "2", "cpu_limit": "1500m"}, {"memory": "1Gi", "memory_limit": "1G"}], ids=["cpu", "memory"]
)
def test_a_limit_below_its_request_is_refused(stage: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cluster\.stages\.train: (cpu_limit 1500m|memory_limit 1G) is below"):
        placed(tmp_path, {"cluster.stages": {"train": stage}})


@pytest.mark.parametrize("setting", ["cluster.cpu_tolerations", "cluster.gpu_tolerations"])
def test_a_toleration_with_a_misspelt_key_is_refused(setting: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=setting):
        placed(tmp_path, {setting: [{"key": "batch", "operater": "Exists"}]})


def test_two_of_the_demo_s_tasks_at_once_fit_a_node_with_two_cores_and_other_work() -> None:
    for name, executor in checked_in("demo")[0]["deploymentSpec"]["executors"].items():
        resources = executor["container"]["resources"]
        assert (resources["resourceCpuRequest"], resources["resourceMemoryRequest"]) == ("500m", "2Gi"), name
        assert (resources["resourceCpuLimit"], resources["resourceMemoryLimit"]) == ("2", "8Gi"), name


@pytest.mark.parametrize(("retries", "pauses"), [(0, 0), (1, 30), (3, 30 + 60 + 120)])
def test_the_last_attempt_may_take_its_whole_time(retries: int, pauses: int, tmp_path: Path) -> None:
    """Argo counts ``backoffMaxDuration`` from the start of the first attempt, and kills what runs at its end."""
    settings = {"cluster.stages": {"train": {"timeout_hours": 0.5, "retries": retries}}}
    policy = placed(tmp_path, settings)[0]["root"]["dag"]["tasks"]["train"]["retryPolicy"]
    assert policy.get("maxRetryCount", 0) == retries
    assert policy["backoffMaxDuration"] == f"{1800 * (retries + 1) + pauses}s"


def test_nodes_pull_secrets_and_user_are_what_the_cluster_says(tmp_path: Path) -> None:
    settings = {
        "cluster.cpu_node_selector": {"pool": "batch"},
        "cluster.cpu_tolerations": [
            {"key": "batch", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60}
        ],
        "cluster.architecture": "arm64",
        "cluster.image_pull_secrets": ["registry"],
        "cluster.user": None,
    }
    for place in placed(tmp_path, settings)[1].values():
        assert place["nodeSelector"] == {"labels": {"pool": "batch"}}
        [toleration] = place["tolerations"]
        assert toleration.pop("tolerationSeconds") in (60, "60")
        assert toleration == {"key": "batch", "operator": "Exists", "effect": "NoExecute"}
        assert place["nodeAffinity"][0]["matchExpressions"][0]["values"] == ["arm64"]
        assert [secret["secretName"] for secret in place["imagePullSecret"]] == ["registry"]
        assert place["securityContext"] == {"runAsNonRoot": True}, "OpenShift chooses the user"


def test_a_work_volume_is_mounted_by_every_task_where_the_settings_look_for_it(tmp_path: Path) -> None:
    settings = {"cluster.work_claim": "whence-work", "general.work_dir": "/work/kept"}
    config = compile_pipeline(profile_file("demo"), tmp_path / "p.yaml", settings)
    assert config.general.work_dir == "/work/kept"
    spec, platform = parsed(tmp_path / "p.yaml")
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert executors.keys() == spec["deploymentSpec"]["executors"].keys()
    for place in executors.values():
        (mount,) = place["pvcMount"]
        assert mount["mountPath"] == "/work/kept"
        assert mount["pvcNameParameter"]["runtimeValue"]["constant"] == "whence-work"


def test_variables_certificates_and_the_hub_s_cache_reach_every_task(tmp_path: Path) -> None:
    spec, executors = placed(
        tmp_path,
        {
            "cluster.environment": {"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": ".svc"},
            "cluster.authorities": "company-ca",
            "cluster.cache_claim": "hub-cache",
        },
    )
    file = "/etc/whence/ca.crt"
    wanted = {"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": ".svc", "REQUESTS_CA_BUNDLE": file, "AWS_CA_BUNDLE": file}
    for name, place in executors.items():
        (mount,), (volume,) = place["pvcMount"], place["configMapAsVolume"]
        assert mount["mountPath"] == "/cache/huggingface"
        assert (volume["configMapName"], volume["mountPath"]) == ("company-ca", "/etc/whence")
        given = {pair["name"]: pair["value"] for pair in spec["deploymentSpec"]["executors"][name]["container"]["env"]}
        assert given.items() >= (wanted | {"SSL_CERT_FILE": file}).items()


def test_the_hub_s_cache_is_mounted_where_the_images_have_it() -> None:
    dockerfile = (Path(__file__).parents[2] / "docker" / "Dockerfile").read_text(encoding="utf-8")
    assert f"HF_HOME={HUB_CACHE} " in dockerfile


def test_a_secret_among_the_variables_of_a_pipeline_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"HF_TOKEN would be in the pipeline for all to read; use a Secret: cluster.secrets"
    ):
        compile_pipeline(profile_file("demo"), tmp_path / "p.yaml", {"cluster.environment": {"HF_TOKEN": "hf_x"}})


@pytest.mark.parametrize("folder", [None, "kept"])
def test_a_work_volume_without_a_place_of_its_own_is_refused(folder: str | None, tmp_path: Path) -> None:
    settings = {"cluster.work_claim": "whence-work", "general.work_dir": folder}
    with pytest.raises(ConfigError, match=r"cluster.work_claim 'whence-work' is mounted at general.work_dir"):
        compile_pipeline(profile_file("demo"), tmp_path / "p.yaml", settings)


def test_resources_of_a_stage_that_does_not_exist_are_refused(tmp_path: Path) -> None:
    wrong = {"cluster.stages": {"training": {"cpu": "3"}}}
    with pytest.raises(ConfigError, match=r"cluster\.stages.*there is no stage 'training'"):
        compile_pipeline(profile_file("demo"), tmp_path / "p.yaml", wrong)


def test_the_number_of_parallel_tasks_is_a_parameter_that_reaches_the_loops() -> None:
    pipeline, _ = checked_in("patents-tinyllama")
    assert pipeline["root"]["inputDefinitions"]["parameters"]["parallel_tasks_0_for_none"]["defaultValue"] == 2
    for name in ("fit-factors-in-parallel", "score-in-parallel"):
        given = pipeline["root"]["dag"]["tasks"][name]["inputs"]["parameters"]["tasks"]["taskOutputParameter"]
        assert given == {"producerTask": "prepare", "outputParameterKey": "tasks"}
        loops = [
            task["parameterIterator"]["items"]["inputParameter"]
            for task in pipeline["components"][f"comp-{name}"]["dag"]["tasks"].values()
            if "parameterIterator" in task
        ]
        assert loops == ["pipelinechannel--tasks"] * (2 if name == "fit-factors-in-parallel" else 1)


def test_retrainings_are_shared_where_any_are_asked_for(tmp_path: Path) -> None:
    compile_pipeline(profile_file("patents-tinyllama"), tmp_path / "p.yaml", {"validation.measures": ["lds"]})
    pipeline, platform = parsed(tmp_path / "p.yaml")
    graph = pipeline["components"]["comp-validate-in-parallel"]["dag"]["tasks"]
    assert graph["retrainings"]["parameterIterator"]["items"]["inputParameter"] == "pipelinechannel--tasks"
    assert graph["validate"]["dependentTasks"] == ["retrainings"]
    assert "retrainings" in graph["validate"]["inputs"]["artifacts"]
    placed = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    for name in ("exec-validate", "exec-retrain"):
        selector = placed[name]["nodeSelector"]["nodeSelectorJson"]["componentInputParameter"]
        assert selector.endswith("gpu_node_selector")
    assert "comp-validate-in-parallel" not in checked_in("patents-tinyllama")[0]["components"], "nothing is retrained"


def test_the_root_of_the_graph_reads_like_the_readme_s_picture() -> None:
    """Kubeflow draws a box per task and artifact and a line per input; nothing waits for what it does not need."""
    pipeline = checked_in("demo")[0]
    tasks = pipeline["root"]["dag"]["tasks"]
    after = {name: set(task.get("dependentTasks", [])) for name, task in tasks.items()}
    assert after == {
        "prepare": set(),
        "train": {"prepare"},
        "generate": {"prepare", "train"},
        "mmlu": {"train"},
        "fit-factors": {"prepare", "train"},
        "index": {"score"},
        "inspect": {"fit-factors"},
        "score": {"fit-factors", "generate", "prepare", "train"},
        "compare": {"generate", "score"},
        "validate": {"fit-factors", "prepare", "score", "train"},
        "report": {"compare", "inspect", "mmlu", "score", "validate"},
    }
    boxes = sum(
        len(pipeline["components"][task["componentRef"]["name"]].get("outputDefinitions", {}).get("artifacts", {}))
        for task in tasks.values()
    )
    lines = sum(len(task.get("inputs", {}).get("artifacts", {})) for task in tasks.values())
    assert boxes <= 16
    assert lines <= 25


@pytest.mark.parametrize("profile", PROFILES)
def test_every_layer_has_names_for_people(profile: str) -> None:
    pipeline = checked_in(profile)[0]
    layers = [pipeline["root"], *pipeline["components"].values()]
    names = {name for layer in layers for name in layer.get("dag", {}).get("tasks", {})}
    assert [name for name in names if re.match(r"condition|for-loop|exit-handler|.*-\d+$", name)] == []


@pytest.mark.parametrize("profile", PROFILES)
def test_every_value_that_a_task_reads_from_its_layer_is_an_input_of_that_layer(profile: str) -> None:
    assert undeclared(*checked_in(profile)) == []


def undeclared(pipeline: dict[str, Any], platform: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What tasks read and their layers do not declare: Kubeflow's driver resolves a task's resources, selectors and
    inputs among those of the component around it.
    """
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    containers = pipeline["deploymentSpec"]["executors"]
    missing = []
    for layer_name, layer in {"root": pipeline["root"], **pipeline["components"]}.items():
        declared = layer.get("inputDefinitions", {})
        known = {*declared.get("parameters", {}), *declared.get("artifacts", {})}
        for name, task in layer.get("dag", {}).get("tasks", {}).items():
            component = pipeline["components"][task["componentRef"]["name"]]
            read = set(re.findall(r"'component(?:InputParameter|InputArtifact)': '([^']+)'", str(task)))
            missing += [(layer_name, name, value) for value in read - known]
            label = component.get("executorLabel")
            if label is None:
                continue
            own = task.get("inputs", {}).get("parameters", {}).keys()
            read = set(re.findall(r"inputs\.parameters\['(pipelinechannel--[^']+)'\]", str(containers[label])))
            missing += [(layer_name, name, value) for value in read - own]
            # Selectors and tolerations are read from the layer itself, at the root under the form's own names.
            read = set(re.findall(r"'componentInputParameter': '([^']+)'", str(executors[label])))
            around = known | ({f"pipelinechannel--{value}" for value in known} if layer_name == "root" else set())
            missing += [(layer_name, name, value) for value in read - around]
    return missing


def dag_of(pipeline: dict[str, Any], *path: str) -> dict[str, Any]:
    """The tasks of the pipeline within conditions, by the name of each: ``dag_of(pipeline, "changed")``."""
    tasks: dict[str, Any] = pipeline["root"]["dag"]["tasks"]
    for name in path:
        inner = tasks[name]
        tasks = pipeline["components"][inner["componentRef"]["name"]]["dag"]["tasks"]
    return tasks


def test_a_webhook_is_told_by_a_task_that_runs_however_the_run_ends(tmp_path: Path) -> None:
    asked = {
        "cluster.secrets": {"chat": ["WEBHOOK"]},
        "cluster.notify": "WEBHOOK",
        "tracking.kubeflow_url": "https://kfp/pipeline",
    }
    file = tmp_path / "pipeline.yaml"
    for profile, kind in itertools.product(["demo", "patents-tinyllama"], PipelineKind):
        compile_pipeline(profile_file(profile), file, asked, kind)
        spec, platform = parsed(file)
        assert undeclared(spec, platform) == []
        root = spec["root"]["dag"]["tasks"]
        assert set(root) == {"run", "notify"}, "the graph is one layer down"
        assert root["notify"]["triggerPolicy"] == {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"}
        assert root["notify"]["inputs"]["parameters"]["status"] == {"taskFinalStatus": {"producerTask": "run"}}
        page = root["notify"]["inputs"]["parameters"]["page"]["runtimeValue"]["constant"]
        assert page == "https://kfp/pipeline/#/runs/details/{{$.pipeline_job_uuid}}"
        executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        assert executors["exec-notify"]["secretAsEnv"][0]["keyToEnv"] == [{"envVar": "WEBHOOK", "secretKey": "WEBHOOK"}]
    with pytest.raises(ConfigError, match=r"no key of cluster\.secrets"):
        compile_pipeline(profile_file("demo"), file, {"cluster.notify": "WEBHOOK"})


def test_retraining_trains_after_a_change_explains_what_passed_and_promotes_last() -> None:
    pipeline, _ = checked_in(RETRAINING)
    names = {path: set(dag_of(pipeline, *path)) for path in [(), ("changed",), ("changed", "explain")]}
    assert names[()] == {"prepare", "find-champion", "changed"}
    assert names["changed",] == {"train", "generate", "mmlu", "gate", "explain"}
    assert names["changed", "explain"] == {
        "fit-factors-in-parallel", "score-in-parallel", "index", "inspect", "validate", "compare", "report", "passed",
    }  # fmt: skip
    assert set(dag_of(pipeline, "changed", "explain", "passed")) == {"promote"}
    assert "report" in dag_of(pipeline, "changed", "explain")["passed"]["dependentTasks"]


def test_champion_and_candidate_answer_the_same_and_the_gate_sees_both() -> None:
    tasks = dag_of(checked_in(RETRAINING)[0], "changed")
    for name in ("generate", "mmlu"):
        inputs = tasks[name]["inputs"]["artifacts"]
        assert inputs["champion"] == {"componentInputArtifact": "pipelinechannel--find-champion-champion"}
        assert inputs["model"]["taskOutputArtifact"]["producerTask"] == "train"
    assert set(tasks["gate"]["dependentTasks"]) == {"generate", "mmlu"}
    rows = {"componentInputArtifact": "pipelinechannel--prepare-eval_data"}
    assert [tasks[name]["inputs"]["artifacts"]["eval_data"] for name in ("gate", "generate")] == [rows, rows]


def test_what_looks_at_the_registry_is_never_cached() -> None:
    pipeline, _ = checked_in(RETRAINING)
    assert not dag_of(pipeline)["find-champion"]["cachingOptions"]
    assert not dag_of(pipeline, "changed", "explain", "passed")["promote"]["cachingOptions"]


def test_switching_the_benchmark_off_leaves_the_graph_as_it_is(tmp_path: Path) -> None:
    """Its task ends at once and says so; a condition around it would hide it, and the report, a layer down."""
    settings = {"evaluation.mmlu.enabled": False}
    for kind in PipelineKind:
        graphs = []
        for overrides in ({}, settings):
            compile_pipeline(profile_file("demo"), tmp_path / "p.yaml", overrides, kind)
            graphs.append(parsed(tmp_path / "p.yaml")[0]["components"].keys())
        assert graphs[0] == graphs[1]
    prepared = dag_of(parsed(tmp_path / "p.yaml")[0])["prepare"]["inputs"]["parameters"]
    assert prepared["mmlu_enabled"]["runtimeValue"] == {"constant": False}, "a guard is nothing to switch off in a form"


def test_the_real_job_s_profile_holds_the_values_it_was_specified_with() -> None:
    config = load_config(profile_file("patents-tinyllama"))
    assert config.models.base.name == "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T"
    assert (config.dataset.num_samples, config.dataset.num_eval_samples, config.general.max_length) == (
        16000,
        7000,
        512,
    )
    training = config.training
    assert (training.num_train_epochs, training.per_device_train_batch_size) == (1, 8)
    assert (training.learning_rate, training.weight_decay) == (2e-5, 0.01)
    assert (training.save_steps, training.logging_steps, training.dataloader_num_workers) == (100, 20, 4)
    assert (training.lr_scheduler_type, training.optim) == ("cosine_with_restarts", "adamw_torch_fused")
    assert (training.bf16, training.max_grad_norm, training.dataloader_drop_last) == ("auto", "auto", True)
    assert (config.factors.num_samples, config.factors.layers, config.inspection.layer) == (16000, "all", 21)
    assert (config.scores.query_gradient_low_rank, config.scores.train_batch_size) == (64, 4)
    assert (config.evaluation.mmlu.finetuned, config.evaluation.mmlu.base) == (True, False)


def test_a_mounted_work_folder_travels_and_a_relative_one_does_not(tmp_path: Path) -> None:
    demo = profile_file("demo")
    assert portable_config(demo, {"general.work_dir": "/volume/work"}).general.work_dir == "/volume/work"
    assert portable_config(demo, {"general.work_dir": "work"}).general.work_dir is None


def test_a_profile_that_does_not_validate_is_not_compiled(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"training\.epochs: unknown key"):
        compile_pipeline(profile_file("demo"), tmp_path / "x.yaml", {"training.epochs": 3})
    assert not (tmp_path / "x.yaml").exists()
