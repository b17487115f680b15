"""The evidence file, and the grade that stands in it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from whence.errors import DataError
from whence.estimates import Estimate
from whence.validation.evidence import Criterion, Evidence, Grade, Measure, NotMeasured


def test_evidence_is_read_back_as_it_was_written(tmp_path):
    recall = Measure(
        name="planted_recall",
        title="Planted examples found",
        explanation="Share among the first ten.",
        higher_is_better=True,
        methods={"influence": Estimate(value=0.9, low=0.8, high=1.0, items=10), "random": Estimate(value=0.0)},
    )
    criterion = Criterion(measure="planted_recall", sentence="at least 0.8", passed=True)
    evidence = Evidence(
        grade=Grade(word="strong", sentence="It can be trusted.", criteria=[criterion]),
        measures=[recall],
        not_measured=[NotMeasured(name="lds", why="not asked for")],
        settings={"top_k": 5},
        fingerprints={"model": "abc"},
    )
    path = tmp_path / "new" / "evidence.json"
    evidence.write(path)
    assert Evidence.read(path) == evidence
    assert Evidence.read(path).measure("planted_recall") == recall
    assert evidence.measure("lds") is None


@pytest.mark.parametrize("text", [None, "{}", "not json", '{"grade": 1}'])
def test_what_is_no_evidence_is_refused_with_the_way_out(tmp_path, text):
    path = tmp_path / "evidence.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match="run `whence validate` again"):
        Evidence.read(path)


def test_evidence_is_read_graded_and_shown_without_torch():
    code = (
        "import sys; from whence.validation import bm25, evidence, grade, truth, lds; "
        "from whence.validation import summary, counterfactual; "
        "bm25.bm25_scores(['a b'], ['b c']); import whence.pipelines.local.summary; "
        "print([m for m in ('torch', 'transformers', 'sklearn') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout == "[]\n", run.stderr
