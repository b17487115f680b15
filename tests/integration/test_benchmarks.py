"""The benchmarks run from beginning to end on a small scale; what they measure is for people to judge."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WORDS = {"lens": "Optics", "loom": "Textiles"}
SETTINGS = """
general: {max_length: 48, device: cpu}
models: {base: {name: "builtin:tiny-llama"}}
dataset: {train_files: [train.jsonl], eval_files: [eval.jsonl]}
prompts: {items: [{input: a lens, reference: Optics}]}
training: {num_train_epochs: 1, per_device_train_batch_size: 8, dataloader_num_workers: 0}
factors: {modules: [down_proj], layers: [0]}
inspection: {layer: 0}
scores: {top_k: 5}
generation: {max_new_tokens: 4}
evaluation: {mmlu: {enabled: false}}
"""
NUMBER = re.compile(r"-?\d[\d,]*\.?\d*(?:e[-+]?\d+)?|nan|inf")


def printed(script: str, *arguments: str) -> list[str]:
    """The lines that a benchmark prints."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / script), *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


def table(script: str, *arguments: str) -> list[dict[str, str]]:
    """The rows that a benchmark prints, by column."""
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in printed(script, *arguments)
        if line.startswith("|")
    ]
    assert set("".join(lines[1])) == {"-"}
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def numbers(cell: str) -> list[float]:
    return [float(found.replace(",", "")) for found in NUMBER.findall(cell)]


def assert_measured(row: dict[str, str], *columns: str) -> None:
    """Each column says a finite number above zero."""
    for column in columns:
        found = numbers(row[column])
        assert found, (column, row)
        assert math.isfinite(found[0]), (column, row)
        assert found[0] > 0, (column, row)


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory on the CPU is read from /proc")
def test_the_device_benchmark_measures_every_phase() -> None:
    rows = table("gpu.py", "--small", "--device", "cpu", "--threads", "1")
    assert [row["phase"] for row in rows] == [
        "covariance",
        "eigendecomposition",
        "lambda",
        "query gradients",
        "scores and self-influence",
    ]
    for row in rows:
        assert_measured(row, "seconds", "rate", "peak memory")
        if row["phase"] != "eigendecomposition":  # whose operations are not counted
            assert_measured(row, "reached", "of the matrix product")


def test_the_engine_benchmark_prints_a_row_for_each_that_is_asked_for() -> None:
    small = ("--scale", "0.02", "--repeats", "1", "--threads", "1")
    rows = table("influence.py", *small, "--rows", "fit-sorted", "numbers", "detail")
    assert [row["against"] for row in rows] == [
        "stock, the same batches",
        "stock, the same batches and labels, fp32",
        "pairwise scores, 2 queries, 10 abstracts",
    ]
    for row in (rows[0], rows[2]):
        assert_measured(row, "Whence", "the other", "ratio", "apart")
    *apart, rank_correlation = numbers(rows[1]["apart"])
    assert all(0 < value < 1e-3 for value in apart)
    assert rank_correlation > 0.999


def test_the_evidence_benchmark_knows_which_answers_it_made_wrong(tmp_path: Path) -> None:
    rows = [{"text": f"a {word} number {n}", "label": label} for n in range(40) for word, label in WORDS.items()]
    for split, some in (("train", rows), ("eval", rows[:20])):
        (tmp_path / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in some))
    (tmp_path / "settings.yaml").write_text(SETTINGS)
    few = ("--share", "0.1", "--set", 'validation.measures=["mislabeled"]')
    folder = ("--config", str(tmp_path / "settings.yaml"), "--folder", str(tmp_path / "run"))
    lines = printed("evidence.py", *folder, *few)
    given = [json.loads(line) for line in (tmp_path / "run/train.jsonl").read_text().splitlines()]
    assert [row["truth"] for row in given] == [row["label"] for row in rows]
    assert sum(row["output"] != row["truth"] for row in given) == 8
    assert {row["output"] for row in given} == set(WORDS.values())
    [measured] = [line for line in lines if line.startswith("mislabeled_auroc")]
    assert all(0 <= value <= 1 for value in numbers(measured))
