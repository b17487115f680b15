"""The Kubeflow components: their signatures are the stages' declarations; kfp's executor runs them as on a cluster."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
from kfp.dsl.executor import Executor
from kfp.pipeline_spec.pipeline_spec_pb2 import ParameterType

from whence import kubeflow
from whence.components import component_of
from whence.components.docs import readme_of, with_table
from whence.components.images import image
from whence.config import Config
from whence.config_file import get_dotted, parse_config
from whence.errors import ConfigError, PipelineError
from whence.running.declaration import Artifact, Kind, Parameter, Stage
from whence.running.form import FORM, form_default, form_help, merge_form
from whence.running.lineage import absence_of, config_of, hand_on
from whence.running.runner import StageResult
from whence.stages import stage, stages

STAGES = list(stages())
RETURNED = "Output"  # kfp's name for what the function itself returns
KFP_TYPES = {
    str: "STRING", int: "NUMBER_INTEGER", float: "NUMBER_DOUBLE", bool: "BOOLEAN", list: "LIST", list[int]: "LIST",
    dict: "STRUCT",
}  # fmt: skip
MINIMAL = """
models: {base: {name: "builtin:tiny-llama"}}
dataset: {name: "builtin:demo"}
prompts: {items: [hello]}
"""
# As the launcher of a real Kubeflow 2.17 writes an input: a number for a name, no schema title, the store's session.
METADATA = {"display_name": "x", "store_session_info": '{"Provider":"s3","Params":{"endpoint":"store.example:9000"}}'}
UNTITLED = [{"type": {"instanceSchema": ""}}, {}]


@pytest.fixture(scope="module")
def config() -> Config:
    return parse_config(MINIMAL)


def form_of(config: Config, **changes: Any) -> dict[str, Any]:
    return {name: form_default(config, field) for name, field in FORM.items()} | changes


def definitions(name: str) -> Any:
    """Inputs and outputs of a component as Kubeflow gets them."""
    return component_of(name).pipeline_spec.components[f"comp-{stage(name).title}"]


@pytest.mark.parametrize("name", STAGES)
def test_the_readme_of_a_component_shows_its_declaration(name: str) -> None:
    readme = readme_of(stage(name)).read_text(encoding="utf-8")
    assert readme == with_table(readme, stage(name)), "run `make component-docs`"


@pytest.mark.parametrize("name", STAGES)
def test_a_component_takes_and_makes_the_artifacts_that_its_stage_declares(name: str) -> None:
    one, spec = stage(name), definitions(name)
    inputs = {artifact.name: (f"system.{artifact.kind}", artifact.many, artifact.optional) for artifact in one.inputs}
    assert inputs == {
        key: (port.artifact_type.schema_title, port.is_artifact_list, port.is_optional)
        for key, port in spec.input_definitions.artifacts.items()
    }
    outputs = {artifact.name: f"system.{artifact.kind}" for artifact in one.outputs}
    assert outputs == {key: port.artifact_type.schema_title for key, port in spec.output_definitions.artifacts.items()}


@pytest.mark.parametrize("name", STAGES)
def test_a_component_s_values_have_the_types_and_defaults_that_its_stage_declares(name: str) -> None:
    one, spec = stage(name), definitions(name)
    type_name = ParameterType.ParameterTypeEnum.Name
    inputs = {key: type_name(port.parameter_type) for key, port in spec.input_definitions.parameters.items()}
    assert inputs == {parameter.name: KFP_TYPES[parameter.type] for parameter in one.parameters}
    outputs = {key: type_name(port.parameter_type) for key, port in spec.output_definitions.parameters.items()}
    declared = {parameter.name: KFP_TYPES[parameter.type] for parameter in one.returns}
    if RETURNED in outputs:
        [named_otherwise] = declared.keys() - outputs.keys()
        outputs[named_otherwise] = outputs.pop(RETURNED)
    assert outputs == declared
    defaults = component_of(name).component_spec.inputs
    for parameter in one.parameters:
        if parameter.default is not None:
            assert defaults[parameter.name].default == parameter.default


@pytest.mark.parametrize("untitled", UNTITLED, ids=["empty schema", "no type"])
@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("whole", [True, False], ids=["all inputs", "without the optional ones"])
def test_the_executor_runs_a_component_on_inputs_as_a_real_launcher_writes_them(
    name: str, whole: bool, untitled: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stage that notes what it was called with; only what the launcher knows tells an artifact's type."""
    one = stage(name)
    called: dict[str, Any] = {}

    def run_stage(stage: Stage, **arguments: Any) -> StageResult:
        called.update(arguments)
        returns = {parameter.name: parameter.type() for parameter in stage.returns}
        return StageResult({"loss": 0.5, "condition": float("inf")}, returns, "http://mlflow/#/1")

    monkeypatch.setattr(kubeflow, "run_stage", run_stage)
    inputs = [artifact for artifact in one.inputs if whole or not artifact.optional]
    written = executor_input(one, inputs, untitled, tmp_path)
    output = Executor(written, component_of(name).python_func).execute()
    assert output is not None
    made = json.loads(Path(output).read_text(encoding="utf-8"))
    for artifact in one.inputs:
        path = Path(f"/s3/store/{artifact.name}")
        expected = None if artifact not in inputs else [path] if artifact.many else path
        assert called["inputs"][artifact.name] == expected
    assert called["outputs"].keys() == {artifact.name for artifact in one.outputs}
    assert called["parameters"].keys() == {parameter.name for parameter in one.parameters}
    for artifact in one.outputs:
        metadata = made["artifacts"][artifact.name]["artifacts"][0]["metadata"]
        assert metadata["mlflow"] == "http://mlflow/#/1"
        assert ("loss" in metadata) is (artifact.kind is Kind.METRICS)
        assert "condition" not in metadata, "JSON has no infinity"


def executor_input(one: Stage, inputs: list[Artifact], untitled: dict[str, Any], folder: Path) -> dict[str, Any]:
    def runtime(artifact: Artifact) -> dict[str, Any]:
        return {"artifacts": [{"name": "146", "uri": f"s3://store/{artifact.name}", "metadata": METADATA, **untitled}]}

    values: dict[Any, Any] = {str: "", int: 1, float: 1.0, bool: True, list: [], dict: {}}
    outputs = {
        artifact.name: {
            "artifacts": [
                {
                    "name": artifact.name,
                    "type": {"schemaTitle": f"system.{artifact.kind}", "schemaVersion": "0.0.1"},
                    "uri": f"s3://store/out/{artifact.name}",
                }
            ]
        }
        for artifact in one.outputs
    }
    returns = {parameter.name: {"outputFile": str(folder / parameter.name)} for parameter in one.returns}
    returns[RETURNED] = {"outputFile": str(folder / RETURNED)}
    return {
        "inputs": {
            "artifacts": {artifact.name: runtime(artifact) for artifact in inputs},
            "parameterValues": {parameter.name: values[parameter.type] for parameter in one.parameters},
        },
        "outputs": {"artifacts": outputs, "parameters": returns, "outputFile": str(folder / "executor_output.json")},
    }


@pytest.mark.parametrize("name", STAGES)
def test_what_kubeflow_executes_is_thin(name: str) -> None:
    """Every byte of a component is kept four to six times in a run's Workflow object, which may have 1 MiB."""
    container = component_of(name).component_spec.implementation.container
    source = container.command[-1] + " ".join(container.args or [])
    limit = 1700 if name == "prepare" else 1200
    assert len(source) < limit
    assert '"""' not in source.partition("def ")[2]


def test_the_form_says_null_exactly_where_the_setting_may_be_null(config: Config) -> None:
    for name, field in FORM.items():
        section, _, last = field.key.rpartition(".")
        annotation = type(get_dotted(config, section)).model_fields[last].annotation
        assert (type(None) in get_args(annotation)) == field.nullable, name


def test_the_form_s_defaults_give_back_the_profile(config: Config) -> None:
    assert parse_config(MINIMAL, merge_form(form_of(config), {})) == config


def test_zero_and_empty_fields_stand_for_null(config: Config) -> None:
    changed = form_of(config, data_train_rows_0_for_all=0, base_model_revision="")
    settings = merge_form(changed, {})
    assert settings["dataset.num_samples"] is None
    assert settings["models.base.revision"] is None
    assert settings["general.seed"] == 0


@pytest.mark.parametrize(("text", "value"), [("true", True), ("false", False), ("both", "both")])
def test_the_three_way_choice_of_queries_survives_the_form(config: Config, text: str, value: object) -> None:
    resolved = parse_config(MINIMAL, merge_form(form_of(config, influence_own_answers=text), {}))
    assert resolved.scores.use_generated == value


@pytest.mark.parametrize("key", ["training.learning_rate", "training", "evaluation.mmlu"])
def test_an_override_that_hides_a_parameter_of_the_form_is_refused(config: Config, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"overrides: {key} would hide"):
        merge_form(form_of(config), {key: {}})


def test_the_form_is_in_the_order_in_which_kubeflow_shows_it_and_says_what_0_means() -> None:
    assert list(FORM) == sorted(FORM)
    assert {name for name in FORM if "_0_for_" in name} == {
        name for name, field in FORM.items() if field.nullable and field.type is int
    }


def test_help_of_a_parameter_names_its_setting_and_its_null() -> None:
    assert form_help(FORM["data_train_rows_0_for_all"]) == (
        "Training examples to keep (seeded choice); 0 keeps all [dataset.num_samples]."
    )
    assert "empty for none" in form_help(FORM["data_revision"])


def test_datasets_and_models_carry_what_identifies_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubeflow, "run_stage", lambda *_, **__: StageResult({}, {"tasks": [0]}))
    dataset = '{"split": "train", "source": "demo", "rows": 3, "fingerprint": "ab", "x": 1}'
    shown = {}
    for name, file, text in (
        ("base_model", "model.safetensors", "weights"),
        ("train_data", "dataset.json", dataset),
        ("eval_data", "dataset.json", dataset),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(text)
        shown[name] = SimpleNamespace(path=str(tmp_path / name), metadata={})
    assert kubeflow.run_component("prepare", {**shown, "tasks": str(tmp_path / "tasks")}) is None
    assert json.loads((tmp_path / "tasks").read_text()) == [0]
    assert shown["train_data"].metadata == {"split": "train", "source": "demo", "rows": 3, "fingerprint": "ab"}
    assert list(shown["base_model"].metadata["sha256"]) == ["model.safetensors"]


def test_a_side_stage_that_fails_hands_on_why_and_its_task_succeeds(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Kubeflow keeps nothing of a task that fails, and runs nothing after it."""
    monkeypatch.chdir(tmp_path)
    hand_on(config, None, tmp_path / "factors")
    (tmp_path / "spectra").mkdir()
    (tmp_path / "spectra" / "half.parquet").write_text("")
    arguments = {name: SimpleNamespace(path=str(tmp_path / name), metadata={}) for name in ("factors", "spectra")}
    page = arguments["spectra_page"] = SimpleNamespace(path=str(tmp_path / "spectra_page"), metadata={})
    kubeflow.run_component("inspect", arguments)
    absence = absence_of(tmp_path / "spectra")
    assert absence is not None
    assert absence.failed
    assert absence.why.startswith(f"inspect failed: cannot read {tmp_path}/factors/factors.json: No such file")
    assert config_of(tmp_path / "spectra") == config, "whoever takes it finds the settings there"
    assert not (tmp_path / "spectra" / "half.parquet").exists()
    assert "inspect failed: cannot read" in Path(page.path).read_text(encoding="utf-8")
    with pytest.raises(SystemExit):
        kubeflow.run_component(
            "fit_factors",
            {name: SimpleNamespace(path=str(tmp_path / name)) for name in ("model", "train_data", "factors")},
        )
    assert "its input model is not there" in capsys.readouterr().err


def test_every_stage_and_value_is_described() -> None:
    for one in stages().values():
        texts: list[Artifact | Parameter] = [*one.inputs, *one.outputs, *one.parameters, *one.returns]
        assert one.help.endswith(".")
        assert [text.name for text in texts if not text.help.strip().endswith((".", "]."))] == []


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
    heavy = {"kfp", "whence.components", "torch", "transformers", "mlflow", "matplotlib"}
    script = (
        f"import sys, whence.cli, whence.kubeflow\nassert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
