"""The gate: decided on intervals that are known, and on those of answers that are known."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from whence.config import Config, Retraining
from whence.errors import ConfigError, DataError
from whence.evaluation.comparison import compare_benchmark
from whence.evaluation.gate import check_rules, decide
from whence.evaluation.metrics import AnswerKind
from whence.stages import gate

LONG, SHORT = AnswerKind.LONG, AnswerKind.SHORT
RULES = Retraining(metric="accuracy", min_gain=0.01, max_loss={"macro_f1": 0.02, "mmlu": 0.05})


def measured(low: float, difference: float, high: float, champion: float = 0.8) -> dict[str, Any]:
    def around(value: float) -> dict[str, float]:
        return {"value": value, "low": value - 0.05, "high": value + 0.05}

    return {
        "over": "evaluation rows",
        "base": around(champion),
        "finetuned": around(champion + difference),
        "difference": {"value": difference, "low": low, "high": high},
    }


GOOD = {
    "accuracy": measured(0.02, 0.05, 0.08),
    "macro_f1": measured(-0.01, 0.0, 0.01),
    "mmlu": measured(-0.04, 0.0, 0.04),
}


def test_a_gain_that_is_certain_and_losses_within_bounds_pass() -> None:
    decision = decide(GOOD, RULES)
    assert decision.passed
    assert [check.measure for check in decision.checks] == ["accuracy", "macro_f1", "mmlu"]
    assert decision.notes == ()


def test_a_large_gain_that_is_not_certain_is_refused() -> None:
    decision = decide(GOOD | {"accuracy": measured(0.005, 0.2, 0.4)}, RULES)
    assert not decision.passed
    assert "accuracy: more than +0.0100 is asked for, only +0.0050 is certain" in decision.reason


@pytest.mark.parametrize("name", ["macro_f1", "mmlu"])
def test_one_guarded_measure_that_may_have_lost_too_much_refuses_whatever_is_gained(name: str) -> None:
    decision = decide(GOOD | {name: measured(-0.06, 0.01, 0.08), "accuracy": measured(0.3, 0.4, 0.5)}, RULES)
    assert [check.measure for check in decision.checks if not check.passed] == [name]
    assert not decision.passed


@pytest.mark.parametrize(("low", "passed"), [(0.0100001, True), (0.01, False), (0.0099999, False)])
def test_the_lower_bound_of_the_gain_must_be_above_the_minimum(low: float, passed: bool) -> None:
    assert decide(GOOD | {"accuracy": measured(low, 0.05, 0.1)}, RULES).passed == passed


@pytest.mark.parametrize(("low", "passed"), [(-0.0199, True), (-0.02, True), (-0.0201, False)])
def test_the_lower_bound_of_a_guarded_measure_may_be_at_its_maximum_loss(low: float, passed: bool) -> None:
    assert decide(GOOD | {"macro_f1": measured(low, 0.0, 0.1)}, RULES).passed == passed


@pytest.mark.parametrize(("min_gain", "passed"), [(0.0, False), (-0.01, True)])
def test_the_same_model_again_is_no_gain_unless_as_good_will_do(min_gain: float, passed: bool) -> None:
    same = {"accuracy": measured(0.0, 0.0, 0.0)}
    assert decide(same, Retraining(min_gain=min_gain, max_loss={})).passed == passed


def test_a_metric_may_be_guarded_as_well() -> None:
    rules = Retraining(metric="accuracy", min_gain=-0.5, max_loss={"accuracy": 0.02})
    decision = decide({"accuracy": measured(-0.1, 0.0, 0.1)}, rules)
    assert [(check.rule, check.passed) for check in decision.checks] == [("gain", True), ("loss", False)]


def test_a_guard_on_a_benchmark_that_is_switched_off_is_noted_and_any_other_gap_is_an_error() -> None:
    without = {name: value for name, value in GOOD.items() if name != "mmlu"}
    decision = decide(without, RULES)
    assert decision.passed
    assert "mmlu is guarded but was not measured" in decision.notes[0]
    with pytest.raises(DataError, match=r"macro_f1 was not measured.*; decide on one of accuracy"):
        decide({"accuracy": GOOD["accuracy"]}, RULES)


def test_one_model_alone_decides_nothing() -> None:
    alone = {name: value for name, value in GOOD["accuracy"].items() if name not in ("base", "difference")}
    with pytest.raises(DataError, match="accuracy was measured of one model only"):
        decide({"accuracy": alone}, Retraining(max_loss={}))


@pytest.mark.parametrize(
    ("rules", "rows", "prompts", "words"),
    [
        ({"metric": "accuracy"}, SHORT, SHORT, r"metric: accuracy cannot be measured, .* short answers; .*exact_match"),
        ({"max_loss": {"rouge_l": 0.1}}, SHORT, LONG, r"retraining\.max_loss: rouge_l cannot be measured"),
        ({"metric": "prompt_chrf"}, LONG, None, r"prompt_chrf cannot be measured, because no prompt has a reference"),
        ({"metric": "prompt_chrf"}, LONG, SHORT, r"prompt_chrf cannot .*short answers; there are prompt_exact_match,"),
    ],
)
def test_rules_that_this_data_cannot_satisfy_are_refused_before_training(
    make_config: Callable[..., Config], rules: dict[str, Any], rows: AnswerKind, prompts: AnswerKind | None, words: str
) -> None:
    config = make_config({f"retraining.{name}": value for name, value in rules.items()})
    with pytest.raises(ConfigError, match=words):
        check_rules(config, rows, prompts)


def test_rules_that_can_be_measured_are_let_through(make_config: Callable[..., Config]) -> None:
    for kind in AnswerKind:
        check_rules(make_config(), kind, None)
    rules = {"retraining.metric": "rouge_l", "retraining.max_loss": {"loss": 0.1, "prompt_token_f1": 0.1}}
    check_rules(make_config(rules), LONG, SHORT)


@pytest.mark.parametrize(
    ("taken", "decided"),
    [
        (("accuracy", "macro_f1"), "accuracy"),
        (("token_f1", "exact_match"), "token_f1"),
        (("rouge_l", "chrf"), "rouge_l"),
    ],
)
def test_what_fits_the_answers_decides_where_the_rules_do_not_say(taken: tuple[str, str], decided: str) -> None:
    metrics = {name: measured(0.02, 0.05, 0.08) for name in (*taken, "loss")}
    decision = decide(metrics, Retraining())
    assert [(check.measure, check.rule) for check in decision.checks] == [
        (decided, "gain"),
        *((n, "loss") for n in taken),
    ]
    assert decision.passed
    assert not decide(metrics | {taken[1]: measured(-0.03, 0.0, 0.03)}, Retraining()).passed


@pytest.mark.parametrize(("high", "passed"), [(-0.1, True), (0.1, False)])
def test_a_loss_has_to_become_less(high: float, passed: bool) -> None:
    metrics = {"loss": measured(-0.5, -0.3, high, champion=2.0)}
    decision = decide(metrics, Retraining(metric="loss", max_loss={}))
    [check] = decision.checks
    assert decision.passed == passed
    assert (check.low, check.difference, check.high) == pytest.approx((-high, 0.3, 0.5))
    assert (check.champion, check.candidate) == pytest.approx((2.0, 1.7))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"retraining.metric": "mmlu", "evaluation.mmlu.enabled": False}, "evaluation.mmlu.enabled is false"),
        ({"retraining.max_loss": {"acuracy": 0.1}}, "retraining.max_loss"),
        ({"retraining.max_loss": {"accuracy": -0.1}}, "retraining.max_loss"),
    ],
)
def test_impossible_rules_are_refused_with_the_settings(
    make_config: Callable[..., Config], values: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        make_config(values)


def predictions(config: Config, champion: list[bool], candidate: list[bool]) -> pd.DataFrame:
    """Both models' answers to the questions of two subjects, the candidate's in another order."""
    models = {config.models.base.id: champion, config.models.finetuned.id: candidate}
    rows = [
        {"model_id": model_id, "task": task, "number": number, "correct": correct}
        for model_id, answers in models.items()
        for task, part in (("law", answers[:20]), ("ethics", answers[20:]))
        for number, correct in enumerate(part, start=1)
    ]
    table = pd.DataFrame(rows)
    halves = [table[table["model_id"] == model_id] for model_id in models]
    return pd.concat([halves[0], halves[1].sample(frac=1, random_state=3)], ignore_index=True)


def test_the_interval_of_a_benchmark_is_a_paired_one(make_config: Callable[..., Config]) -> None:
    config = make_config({"evaluation.bootstrap_samples": 4000})
    rng = np.random.default_rng(0)
    champion = rng.random(60) < 0.6
    candidate = champion.copy()
    candidate[:3] = ~candidate[:3]  # they differ in three of sixty questions
    table = predictions(config, champion.tolist(), candidate.tolist())
    interval = compare_benchmark(table, config)["difference"]
    differences = candidate.astype(float) - champion
    resampled = rng.choice(differences, size=(20000, 60)).mean(axis=1)
    assert interval["value"] == pytest.approx(differences.mean())
    assert [interval["low"], interval["high"]] == pytest.approx(np.quantile(resampled, [0.025, 0.975]), abs=0.018)
    unpaired = np.sqrt(candidate.var() / 60 + champion.var() / 60)
    assert interval["high"] - interval["low"] < 2 * unpaired


def test_models_that_answered_other_questions_are_not_compared(make_config: Callable[..., Config]) -> None:
    config = make_config()
    table = predictions(config, [True] * 30, [True] * 30)
    with pytest.raises(DataError, match=r"predictions\.parquet: .* did not answer the same question_ids"):
        compare_benchmark(table.iloc[:-1], config)


def test_the_verdict_reads_well_where_markdown_has_no_room_between_columns_and_no_bullets(
    make_config: Callable[..., Config],
) -> None:
    decision = decide({name: values for name, values in GOOD.items() if name != "mmlu"}, RULES)
    text = gate._summary(decision, "3", make_config())
    assert not re.search(r"^\s*(\||-|\*\s|\d+\.)", text, re.MULTILINE), "a table or a list"
    paragraphs = text.split("\n\n")
    assert paragraphs[0].startswith("**Passed** against the champion, version 3: ")
    assert [line[:10] for line in paragraphs[1:3]] == ["✓ gain of ", "✓ loss of "]
    assert "mmlu is guarded but was not measured" in paragraphs[-1]
