"""What a run puts into Argo's Workflow: little per task, measured before it starts, refused where it does not fit."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from whence.config_file import load_config, pack, parse_config, unpack
from whence.errors import ConfigError, PipelineError
from whence.pipelines.graphs.compile import compile_pipeline
from whence.pipelines.graphs.size import WORKFLOW, check_size, size_of

ROOT = Path(__file__).parents[2]
RECORDED = ROOT / "tests" / "data" / "kubeflow" / "workflow-sizes.json.gz"
PROFILES = ("demo", "patents-tinyllama", "patents-tinyllama-retraining")


def compiled(name: str) -> list[dict[str, Any]]:
    text = (ROOT / "pipelines" / "compiled" / f"{name}.yaml").read_text(encoding="utf-8")
    return list(yaml.load_all(text, yaml.CSafeLoader))


@pytest.mark.parametrize("run", json.loads(gzip.decompress(RECORDED.read_bytes())), ids=lambda run: run["run"])
def test_the_measure_is_that_of_real_runs(run: dict[str, Any]) -> None:
    """Workflows of Kubeflow 2.17 and Argo 4.0 at their end, with the pipelines that they were made of."""
    assert run["bytes"] <= size_of(run["pipeline"], run["parallel_tasks"]).workflow <= 1.1 * run["bytes"]


@pytest.mark.parametrize("profile", PROFILES[1:])
def test_32_parallel_tasks_fit(profile: str) -> None:
    pipeline = compiled(profile)
    sizes = [size_of(pipeline, tasks).workflow for tasks in (1, 8, 32)]
    assert sizes == sorted(sizes)
    check_size(pipeline, 32)


def test_more_parallel_tasks_than_fit_are_refused_with_the_number_that_does() -> None:
    pipeline = compiled("patents-tinyllama")
    with pytest.raises(PipelineError, match=r"general\.parallel_tasks: 10000 are too many.*; \d+ fit") as error:
        check_size(pipeline, 10_000)
    [fitting] = re.findall(r"(\d+) fit", str(error.value))
    assert size_of(pipeline, int(fitting)).fits
    assert not size_of(pipeline, int(fitting) + 1).fits


def test_the_demo_s_tasks_add_22_kb_at_most_and_its_settings_3(tmp_path: Path) -> None:
    spec = compiled("demo")[0]
    tasks = [one for one in spec["components"].values() if "executorLabel" in one]
    executors = spec["deploymentSpec"]["executors"].values()
    assert sum(len(json.dumps(one)) for one in [*tasks, *executors]) < 22_000
    assert len(settings_of(spec)) < 3_000
    assert size_of(compiled("demo"), 1).workflow < WORKFLOW / 7


@pytest.mark.parametrize("profile", PROFILES)
def test_what_is_executed_has_no_docstring_and_no_description(profile: str) -> None:
    spec = compiled(profile)[0]
    for component in (one for one in spec["components"].values() if "executorLabel" in one):
        assert '"description"' not in json.dumps(component)
    for executor in spec["deploymentSpec"]["executors"].values():
        assert '"""' not in executor["container"]["command"][-1]


def settings_of(spec: dict[str, Any]) -> str:
    given = spec["root"]["dag"]["tasks"]["prepare"]["inputs"]["parameters"]["settings"]
    return str(given["runtimeValue"]["constant"])


def test_text_that_argo_would_replace_reaches_prepare_as_it_was_written(tmp_path: Path) -> None:
    template = "{input}\n{{workflow.name}} {{inputs.parameters.x}} {{$}} é\u2028"
    settings = {"dataset.template": template, "prompts": {"items": [template]}}
    compile_pipeline(ROOT / "configs" / "demo.yaml", tmp_path / "p.yaml", settings)
    text = (tmp_path / "p.yaml").read_text(encoding="utf-8")
    assert not re.findall(r"\{\{(?!\$)[^}]*\}\}|\{\{\$\}\} é", text)
    config = parse_config(unpack(settings_of(next(yaml.load_all(text, yaml.CSafeLoader)))))
    assert config.dataset.template == template
    assert config.prompts.items == [template]


def test_settings_are_the_same_after_they_were_packed() -> None:
    for file in sorted((ROOT / "configs").glob("*.yaml")):
        config = load_config(file, {"training.learning_rate": 1e-05, "dataset.train_split": "no"})
        assert parse_config(unpack(pack(config))) == config
    with pytest.raises(ConfigError, match="compile the pipeline again"):
        unpack("profile: demo")


def test_settings_that_no_run_can_carry_are_refused_with_the_way_out(tmp_path: Path) -> None:
    words = [f"{number * 7919**5 % 10**15:x}" for number in range(20_000)]
    prompts = [{"prompt": " ".join(words[start : start + 10]), "reference": "x"} for start in range(0, 20_000, 10)]
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    with pytest.raises(ConfigError, match=r"prompts\.path: 2000 prompts .* KiB.* carries 48; .* s3://"):
        compile_pipeline(
            ROOT / "configs" / "demo.yaml", tmp_path / "p.yaml", {"prompts.path": str(tmp_path / "prompts.json")}
        )
    assert not (tmp_path / "p.yaml").exists()


@pytest.mark.parametrize("key", ["tracking.uri", "models.base.name", "evaluation.mmlu.source"])
def test_no_password_gets_into_a_pipeline(key: str, tmp_path: Path) -> None:
    address = "https://ann:p%40ss@mlflow.example:5000"
    with pytest.raises(ConfigError, match=rf"{key}: holds a password.*cluster\.secrets") as error:
        compile_pipeline(ROOT / "configs" / "demo.yaml", tmp_path / "p.yaml", {key: address})
    assert "p%40ss" not in str(error.value)
    assert not (tmp_path / "p.yaml").exists()
