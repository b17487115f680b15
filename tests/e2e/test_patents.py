"""The same pipeline on real patents, a real pretrained Llama and real MMLU questions, where they are at hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import Folder
from safetensors.numpy import load_file

TRAINING_ROWS, HELD_OUT_ROWS, QUESTIONS = 160, 60, 10


@pytest.fixture(scope="module")
def patents(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """The profile for own files, on fewer rows."""
    folder = Folder(tmp_path_factory.mktemp("patents"))
    settings = {
        "models.base.name": shared / "models" / "stories260k",
        "dataset.train_files": f"[{shared / 'data' / 'patents' / 'train.jsonl'}]",
        "dataset.eval_files": f"[{shared / 'data' / 'patents' / 'eval.jsonl'}]",
        "dataset.num_samples": TRAINING_ROWS,
        "dataset.num_eval_samples": HELD_OUT_ROWS,
        "evaluation.mmlu.source": shared / "data" / "mmlu",
        "evaluation.mmlu.max_questions": QUESTIONS,
    }
    overrides = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    finished = folder.whence("run", "--profile", "patents-files", *overrides)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return folder


def test_every_training_row_is_used_or_counted_as_dropped(patents: Folder) -> None:
    info = json.loads((patents.artifact("prepare", "train_data") / "dataset.json").read_text())
    assert info["rows"] == TRAINING_ROWS
    assert info["truncated"] >= 0
    assert set(info["labels"]) > {"Physics", "Electricity"}


def test_every_example_has_a_score_on_every_prompt_and_on_every_generated_answer(patents: Folder) -> None:
    scores = load_file(patents.artifact("score", "scores") / "scores.safetensors")["all_modules"]
    queries = pd.read_parquet(patents.artifact("score", "scores") / "queries.parquet")
    assert scores.shape == (len(queries), TRAINING_ROWS)
    assert set(queries["source"]) == {"reference", "generated"}
    assert np.isfinite(scores).all()
    assert (scores.std(axis=1) > 0).all()


def test_the_page_shows_every_prompt_with_its_examples(patents: Folder) -> None:
    table = pd.read_parquet(patents.artifact("compare", "comparison") / "comparison.parquet")
    page = patents.artifact("report", "report").read_text(encoding="utf-8")
    assert all(query in page for query in table["query_id"])


def test_mmlu_is_measured_on_both_models_under_its_own_name(patents: Folder) -> None:
    answered = pd.read_parquet(patents.artifact("mmlu", "benchmark") / "predictions.parquet")
    tasks = {"professional_law", "business_ethics", "international_law"}
    counts = answered.groupby(["model_id", "task"]).size()
    assert set(counts.index.get_level_values("task")) == tasks
    assert counts.index.get_level_values("model_id").nunique() == 2
    assert (counts == QUESTIONS).all()
    measured = json.loads((patents.artifact("mmlu", "benchmark") / "mmlu.json").read_text())
    assert "demo" not in json.dumps(measured)
