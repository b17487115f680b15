"""The command line: errors are one clean message with a non-zero exit, and every stage has its command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
import yaml

from whence import __version__
from whence.cli import build_app, main
from whence.cli.pipelines import _without_password
from whence.cli.settings import find_profile, find_settings
from whence.config import Config
from whence.environment import AUTHORITIES
from whence.errors import ConfigError
from whence.stages import stages

STAGES = tuple(stages())
HEAVY = (
    "torch",
    "transformers",
    "mlflow",
    "kfp",
    "scipy",
    "sklearn",
    "matplotlib",
    "datasets",
    "kronfluence",
    "deepeval",
)


class Outcome:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def whence(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object) -> Outcome:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(int(ended.value.code or 0), captured.out, captured.err)

    return call


def test_version_is_the_library_s(whence) -> None:
    outcome = whence("--version")
    assert (outcome.code, outcome.out.strip()) == (0, f"whence {__version__}")


def test_help_names_every_command(whence) -> None:
    out = whence("--help").out
    for command in ("run", "compile", "evaluate", "config", "champion", *(stage.title for stage in stages().values())):
        assert f" {command} " in out


@pytest.mark.parametrize("name", STAGES)
def test_the_command_of_a_stage_takes_what_the_stage_declares(name: str) -> None:
    stage = stages()[name]
    command = typer.main.get_command(build_app()).commands[stage.title]
    offered = {parameter.name for parameter in command.params} - {"help", "set_", "full"}
    artifacts = {artifact.name for artifact in (*stage.inputs, *stage.outputs)}
    if name == "prepare":  # reads settings as `run` does
        assert offered == artifacts | {"profile", "config_file"}
    else:
        assert offered == artifacts | {parameter.name for parameter in stage.parameters}
    required = {parameter.name for parameter in command.params if parameter.required}
    assert required == {one.name for one in (*stage.inputs, *stage.outputs) if not one.optional}


@pytest.mark.parametrize(
    ("arguments", "not_imported"),
    [
        (("--help",), (*HEAVY, "pandas")),
        (("submit", "--help"), (*HEAVY, "pandas")),
        (("config", "show"), (*HEAVY, "pandas")),
        (("config", "check", "--profile", "demo"), HEAVY),
        (("compile", "-o", "{folder}/pipeline.yaml"), tuple(set(HEAVY) - {"kfp"})),
    ],
)
def test_a_command_imports_no_more_than_it_needs(
    arguments: tuple[str, ...], not_imported: tuple[str, ...], tmp_path: Path
) -> None:
    script = (
        "import sys; from whence.cli import main\ntry: main(sys.argv[1:])\nfinally: print('modules:', *sys.modules)"
    )
    command = [sys.executable, "-c", script, *(argument.format(folder=tmp_path) for argument in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    imported = done.stdout.rpartition("modules:")[2].split()
    assert "whence.config" in imported
    assert not set(not_imported) & set(imported)


def test_config_check_says_what_it_looks_at_before_it_says_that_all_is_well(whence, monkeypatch) -> None:
    for name in ("HTTPS_PROXY", "MLFLOW_TRACKING_URI", *(name for names in AUTHORITIES.values() for name in names)):
        monkeypatch.delenv(name, raising=False)
    outcome = whence("config", "check", "--profile", "demo")
    assert outcome.code == 0
    assert outcome.err.split("\n") == [
        "checking prompts",
        "checking benchmark",
        "checking data",
        "checking tracking",
        "checking base model",
        "",
    ]
    assert outcome.out.endswith("nothing wrong found\n")


def test_an_unknown_key_is_refused_with_the_one_that_was_meant(whence) -> None:
    outcome = whence("config", "show", "--set", "training.learning_rat=1")
    assert outcome.code == 1
    assert "training.learning_rat: unknown key; did you mean training.learning_rate?" in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize("command", [("run",), ("compile", "-o", "x.yaml"), ("config", "check"), ("evaluate",)])
def test_a_missing_settings_file_is_named(whence, command: tuple[str, ...]) -> None:
    outcome = whence(*command, "--config", "absent.yaml")
    assert outcome.code == 1
    assert outcome.err.startswith("Error: cannot read the configuration absent.yaml: No such file")


def test_an_unknown_profile_is_refused_with_those_there_are(whence) -> None:
    outcome = whence("config", "show", "--profile", "demmo")
    assert outcome.code == 1
    assert "--profile demmo" in outcome.err
    assert "demo, " in outcome.err


def test_wrong_usage_exits_with_two(whence) -> None:
    assert whence("train").code == 2
    assert whence("unknown-command").code == 2
    assert whence("fit-factors", "--config", "absent.yaml").code == 2


def test_a_value_that_is_no_assignment_is_refused(whence) -> None:
    outcome = whence("config", "show", "--set", "learning_rate")
    assert outcome.code == 1
    assert "'learning_rate' is not of the form section.key=value" in outcome.err


def test_a_setting_given_twice_is_refused(whence) -> None:
    outcome = whence("config", "show", "--set", "training.warmup_steps=7", "--set", "training.warmup_steps=8")
    assert outcome.code == 1
    assert "--set training.warmup_steps: is given twice" in outcome.err


def test_markup_in_a_message_is_shown_as_it_is(whence) -> None:
    assert "--profile [red]x[/]" in whence("config", "show", "--profile", "[red]x[/]").err


def test_config_show_prints_yaml_with_every_value(whence) -> None:
    shown = yaml.safe_load(whence("config", "show", "--set", "training.warmup_steps=7").out)
    assert shown["training"]["warmup_steps"] == 7
    assert shown["scores"]["damping_factor"] is None


def test_config_show_explains_the_keys(whence) -> None:
    assert "general.max_length" in whence("config", "show", "--explain").out


def test_config_check_notes_settings_that_kubeflow_cannot_carry(whence, tmp_path: Path) -> None:
    prompts = [{"prompt": f"{number * 7919**9 % 10**40:x}", "reference": "x"} for number in range(4000)]
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    settings = ["--set", f"prompts.path={tmp_path}/prompts.json", "--set", f"tracking.uri=sqlite:///{tmp_path}/m.db"]
    outcome = whence("config", "check", *settings)
    assert outcome.code == 0, outcome.err
    assert "note: good for this machine alone: prompts.path: 4000 prompts make the settings" in outcome.err


def test_compile_writes_a_pipeline_and_warns_of_a_local_record(whence, tmp_path: Path) -> None:
    outcome = whence("compile", "--profile", "demo", "-o", tmp_path / "p.yaml", "--set", "dataset.num_samples=5")
    assert outcome.code == 0
    assert "sqlite:///mlflow.db would be a file inside each pod" in outcome.err
    pipeline = next(yaml.load_all((tmp_path / "p.yaml").read_text(), yaml.CSafeLoader))
    assert pipeline["root"]["inputDefinitions"]["parameters"]["data_train_rows_0_for_all"]["defaultValue"] == 5


def test_evaluate_asks_for_the_fine_tuned_model(whence, tmp_path: Path) -> None:
    outcome = whence("evaluate", "--output", tmp_path)
    assert outcome.code == 1
    assert "--model" in outcome.err
    assert "models.finetuned.path" in outcome.err


def test_profile_and_file_together_are_refused() -> None:
    with pytest.raises(ConfigError, match="not both"):
        find_settings("demo", Path("x.yaml"), None)


def test_a_profile_here_comes_before_the_library_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_profile("demo").is_file()
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "demo.yaml").write_text("profile: mine\n")
    assert find_profile("demo") == tmp_path / "configs" / "demo.yaml"


def test_a_password_in_the_tracking_address_is_not_written_beside_the_artifacts(
    make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")
    config = _without_password(make_config({"tracking.uri": "http://me:hidden@mlflow:5000"}))
    assert "hidden" not in config.to_yaml()
    assert config.tracking.uri == "http://mlflow:5000"
    assert (os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]) == ("me", "hidden")
    plain = make_config()
    assert _without_password(plain) is plain
