"""The components' faces: what the Kubeflow UI and the READMEs show agrees with the settings and the stages."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
from kfp.pipeline_spec.pipeline_spec_pb2 import ParameterType

from whence.components import ALL, RETRAINING
from whence.components.docs import component, readme_of, with_table
from whence.components.images import image
from whence.config import Config
from whence.config_file import get_dotted, parse_config
from whence.errors import ConfigError, PipelineError
from whence.kubeflow import FORM, describe_dataset, describe_model, form_default, form_help, log_metrics, merge_form

OF_THE_RESULT = {
    "metrics",
    "mlflow_run",
    "passed",
    "Output",
}  # outputs that a component writes from what its stage returns
ANSWERS = {"loss": 0.5, "changed": 1.0, "explain": 1.0, "passed": 0.0}
KFP_TYPES = {str: "STRING", int: "NUMBER_INTEGER", float: "NUMBER_DOUBLE", bool: "BOOLEAN", list: "LIST"}
MINIMAL = """
models: {base: {name: "builtin:tiny-llama"}}
dataset: {name: "builtin:demo"}
prompts: {items: [hello]}
"""


@pytest.fixture(scope="module")
def config() -> Config:
    return parse_config(MINIMAL)


def form_of(config: Config, **changes: Any) -> dict[str, Any]:
    return {name: form_default(config, parameter) for name, parameter in FORM.items()} | changes


@pytest.mark.parametrize("stage", ALL)
def test_the_readme_of_a_component_shows_its_current_interface(stage: str) -> None:
    readme = readme_of(stage).read_text(encoding="utf-8")
    assert readme == with_table(readme, stage), "run `make component-docs`"


@pytest.mark.parametrize("stage", ALL)
def test_every_input_and_output_is_described(stage: str) -> None:
    spec = component(stage).component_spec
    assert spec.description
    undescribed = [name for name, port in {**spec.inputs, **spec.outputs}.items() if not port.description]
    assert undescribed == []


@pytest.mark.parametrize("stage", ALL)
def test_a_component_passes_its_artifacts_to_the_stage_under_the_same_names(stage: str) -> None:
    spec = component(stage).component_spec
    wanted = inspect.signature(importlib.import_module(f"whence.stages.{stage}").run).parameters
    offered = (set(spec.inputs) | set(spec.outputs)) - set(FORM) - OF_THE_RESULT
    assert offered == set(wanted)


@pytest.mark.parametrize("stage", ALL)
def test_a_component_logs_the_stage_s_metrics(stage: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The body is run with a stage that notes what it is given; KFP artifacts become paths of the same names."""
    given: dict[str, Any] = {}

    def run(**arguments: Any) -> SimpleNamespace:
        given.update(arguments)
        return SimpleNamespace(metrics={**ANSWERS, "condition": float("inf")}, pipeline_url="http://mlflow/#/1")

    monkeypatch.setattr(f"whence.stages.{stage}.run", run)
    monkeypatch.setattr("whence.kubeflow.describe_dataset", lambda artifact: None)
    monkeypatch.setattr("whence.kubeflow.describe_model", lambda artifact: None)
    logged: dict[str, float] = {}
    ports = component(stage).component_spec
    arguments: dict[str, Any] = {name: SimpleNamespace(path=f"/{name}") for name in {**ports.inputs, **ports.outputs}}
    arguments["metrics"].log_metric = logged.__setitem__
    wanted: dict[str, Any] = {name: Path(f"/{name}") for name in arguments}
    for name, port in ports.inputs.items():
        if getattr(port, "is_artifact_list", False):
            arguments[name], wanted[name] = [arguments[name]], [wanted[name]]
    if "task" in ports.inputs:
        arguments["task"] = wanted["task"] = 3
    if stage == "find_champion":
        arguments["champion_version"] = "/champion_version"
        del arguments["Output"]
    if stage == "gate":
        arguments["champion_version"] = wanted["champion_version"] = "3"
        arguments["passed"] = str(tmp_path / "passed")
        del arguments["Output"]
    if stage == "prepare":
        arguments |= form_of(parse_config(MINIMAL)) | {"settings": MINIMAL, "overrides": {"training.warmup_steps": 7}}
        arguments["tasks"] = "/tasks"
        arguments["mlflow_run"].path = str(tmp_path / "link.md")
    answer = component(stage).python_func(**arguments)
    assert logged == ANSWERS
    if stage in ("find_champion", "gate"):
        assert answer is True
    if stage == "gate":
        assert json.loads((tmp_path / "passed").read_text()) is False
    paths = set(given) - {"settings", "overrides"}
    assert {name: given[name] for name in paths} == {name: wanted[name] for name in paths}
    if stage == "prepare":
        assert given["overrides"]["training.warmup_steps"] == 7
        assert given["overrides"]["general.max_length"] == 512
        assert (tmp_path / "link.md").read_text() == "[This run in MLflow](http://mlflow/#/1)\n"


def test_prepare_has_every_parameter_of_the_form_in_its_type() -> None:
    inputs = component("prepare").pipeline_spec.components["comp-prepare"].input_definitions.parameters
    names = ParameterType.ParameterTypeEnum.Name
    types = {name: names(inputs[name].parameter_type) for name in FORM}
    assert types == {name: KFP_TYPES[parameter.type] for name, parameter in FORM.items()}


def test_the_form_says_null_exactly_where_the_setting_may_be_null(config: Config) -> None:
    for name, parameter in FORM.items():
        section, _, last = parameter.key.rpartition(".")
        annotation = type(get_dotted(config, section)).model_fields[last].annotation
        assert (type(None) in get_args(annotation)) == parameter.nullable, name


def test_the_form_s_defaults_give_back_the_profile(config: Config) -> None:
    assert parse_config(MINIMAL, merge_form(form_of(config), {})) == config


def test_zero_and_empty_fields_stand_for_null(config: Config) -> None:
    changed = form_of(config, num_samples=0, base_model_revision="")
    settings = merge_form(changed, {})
    assert settings["dataset.num_samples"] is None
    assert settings["models.base.revision"] is None
    assert settings["general.seed"] == 0


@pytest.mark.parametrize(("text", "value"), [("true", True), ("false", False), ("both", "both")])
def test_the_three_way_choice_of_queries_survives_the_form(config: Config, text: str, value: object) -> None:
    resolved = parse_config(MINIMAL, merge_form(form_of(config, use_generated=text), {}))
    assert resolved.scores.use_generated == value


@pytest.mark.parametrize("key", ["training.learning_rate", "training", "evaluation.mmlu"])
def test_an_override_that_hides_a_parameter_of_the_form_is_refused(config: Config, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"overrides: {key} would hide"):
        merge_form(form_of(config), {key: {}})


def test_help_of_a_parameter_names_its_setting_and_its_null() -> None:
    assert form_help(FORM["num_samples"]) == (
        "Training examples to keep (seeded choice); 0 keeps all [dataset.num_samples]."
    )
    assert "empty for none" in form_help(FORM["dataset_revision"])


def test_metrics_that_json_cannot_hold_are_left_out() -> None:
    logged: dict[str, float] = {}
    artifact = SimpleNamespace(log_metric=logged.__setitem__)
    log_metrics(artifact, {"loss": 0.5, "condition": float("inf"), "share": float("nan")})
    assert logged == {"loss": 0.5}


def test_artifacts_carry_what_identifies_them(tmp_path: Any) -> None:
    (tmp_path / "dataset.json").write_text(
        '{"split": "train", "source": "demo", "rows": 3, "fingerprint": "ab", "x": 1}'
    )
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    artifact = SimpleNamespace(path=str(tmp_path), metadata={})
    describe_dataset(artifact)
    describe_model(artifact)
    assert artifact.metadata["rows"] == 3
    assert artifact.metadata["fingerprint"] == "ab"
    assert list(artifact.metadata["sha256"]) == ["model.safetensors"]


def test_images_are_named_by_stage_and_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHENCE_IMAGE_REGISTRY", "registry.example/team/")
    monkeypatch.setenv("WHENCE_IMAGE_TAG", "1.2.3")
    assert image("fit_factors") == "registry.example/team/fit-factors:1.2.3"


def test_a_moving_image_tag_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHENCE_IMAGE_TAG", "latest")
    with pytest.raises(PipelineError, match="WHENCE_IMAGE_TAG=latest moves"):
        image("train")


def test_the_library_needs_neither_components_nor_kfp() -> None:
    """Images hold the library alone, and kfp only to execute a component's body."""
    script = "import sys, whence.cli, whence.kubeflow\nassert not {'kfp', 'components', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("stage", ["inspect", "compare", "report", *RETRAINING])
def test_stages_that_only_read_numbers_need_no_torch(stage: str) -> None:
    """Their images are small because they have none."""
    absent = "{'torch', 'transformers', 'kronfluence', 'scipy', 'sklearn', 'mlflow'}"
    script = f"import sys, whence.stages.{stage}\nassert not {absent} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
