"""Fitting, scoring and retraining shared between two tasks of the real pipeline, against the stages in one task."""

from __future__ import annotations

import json

import pytest
from conftest import Folder
from mlflow import MlflowClient
from safetensors.numpy import load_file

SMALL = [
    "--set", "dataset.num_samples=80", "--set", "dataset.num_eval_samples=20", "--set", "training.num_train_epochs=2",
    "--set", "evaluation.mmlu.enabled=false", "--set", "factors.batch_size=2", "--set", "scores.train_batch_size=2",
    "--set", "validation.measures=[planted, lds]", "--set", "validation.lds_subsets=4",
]  # fmt: skip
FACTORS = ("activation_eigenvectors", "gradient_eigenvectors", "lambda_matrix")

SCORES = ("scores.safetensors", "influences.parquet", "tokens.parquet", "modules.parquet", "self_influence.parquet")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    folder = Folder(tmp_path_factory.mktemp("parallel"))
    finished = folder.whence("run", "--profile", "demo", *SMALL, "--set", "general.parallel_tasks=2")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return folder


def test_both_tasks_of_every_phase_work_and_all_stages_finish(shared: Folder) -> None:
    states = shared.states()
    assert set(states.values()) - {"skipped"} == {"finished"}
    assert {"fit_factors-covariance-1", "fit_factors-covariance-2", "fit_factors-eigenvectors", "fit_factors-lambda-1",
            "fit_factors-lambda-2", "fit_factors", "score-1", "score-2", "score", "validate-1", "validate-2",
            "validate"} <= states.keys()  # fmt: skip
    parts = [event["metrics"]["data_partitions"] for event in shared.events() if event["state"] == "finished"
             and event["stage"].startswith("score-")]  # fmt: skip
    assert len(parts) == 2
    assert min(parts) >= 1


def test_factors_and_scores_are_those_of_one_task(shared: Folder) -> None:
    factors, scores = shared.path / "alone", shared.path / "scores"
    inputs = ["--model", shared.artifact("train", "model"), "--train-data", shared.artifact("prepare", "train_data")]
    assert shared.whence_here("fit-factors", *inputs, "--factors", factors) == 0
    inputs += ["--generations", shared.artifact("generate", "generations"), "--factors", factors, "--scores", scores]
    assert shared.whence_here("score", *inputs) == 0

    merged = shared.artifact("fit-factors", "factors") / "factors_ekfac"
    for name in FACTORS:
        ours, alone = (load_file(folder / f"{name}.safetensors") for folder in (merged, factors / "factors_ekfac"))
        assert {module: value.tobytes() for module, value in ours.items()} == {
            module: value.tobytes() for module, value in alone.items()
        }
    for file in SCORES:
        assert (shared.artifact("score", "scores") / file).read_bytes() == (scores / file).read_bytes()


def test_the_evidence_is_that_of_one_task(shared: Folder) -> None:
    shares = [set(folder.glob("*.json")) for folder in shared.run.rglob("retrain*/evidence")]
    assert [len(files) for files in shares] == [2, 2]
    names = {file.name for files in shares for file in files}
    evidence = shared.path / "evidence"
    code = shared.whence_here(
        "validate", "--model", shared.artifact("train", "model"),
        "--train-data", shared.artifact("prepare", "train_data"),
        "--factors", shared.artifact("fit-factors", "factors"),
        "--scores", shared.artifact("score", "scores"), "--evidence", evidence,
    )  # fmt: skip
    assert code == 0
    merged = shared.artifact("validate", "evidence")
    assert {file.name for file in (merged / "retrainings").iterdir()} == names
    ours, alone = (json.loads((folder / "evidence.json").read_text()) for folder in (merged, evidence))
    assert {measure["name"] for measure in ours["measures"]} >= {"lds"}
    assert ours == alone


def test_every_task_has_its_run_in_mlflow(shared: Folder) -> None:
    client = MlflowClient(f"sqlite:///{shared.path}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("whence").experiment_id])
    stages = {run.data.tags.get("whence.stage") for run in runs if run.data.tags.get("mlflow.parentRunId")}
    assert {"fit_factors-covariance-1", "fit_factors", "score-1", "score", "validate-2", "validate"} <= stages
