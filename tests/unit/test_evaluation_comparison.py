"""Measures against scikit-learn, scipy and hand-worked values; the join of answers and training examples."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import f1_score

from whence.errors import DataError
from whence.estimates import Bootstrap, mean_statistic
from whence.evaluation.comparison import compare_models, headline_metrics, join_influences
from whence.evaluation.metrics import (
    AnswerKind,
    chrf,
    macro_f1_statistic,
    rouge_l,
    token_f1,
)

LABELS = ["Physics", "Textiles", "Mechanics"]
REFERENCES = {"p1": "Tilda Marrow", "p0": "Port Ember", "p2": None}


@pytest.fixture
def eval_answers():
    rng = np.random.default_rng(5)
    labels = rng.choice(LABELS, size=60)
    frames = []
    for model_id, share in (("base", 0.3), ("finetuned", 0.9)):
        right = rng.random(60) < share
        wrong = rng.choice(LABELS, size=60)
        predicted = np.where(right, labels, wrong)
        frame = pd.DataFrame(
            {"example_id": [f"eval-{n:06d}" for n in range(60)], "label": labels, "predicted": predicted}
        )
        frame["correct"] = frame["exact_match"] = frame["predicted"] == frame["label"]
        frame["loss"], frame["tokens"] = rng.random(60), rng.integers(1, 4, 60)
        frames.append(frame.assign(ranked=True, model_id=model_id, reference=frame["label"], answer=frame["predicted"]))
    frames[1] = frames[1].sample(frac=1, random_state=0)  # the order must not matter
    return pd.concat(frames, ignore_index=True)


@pytest.fixture
def generations():
    answers = {"base": ["Port", "Marrow Tilda", "?"], "finetuned": ["Port  Ember", "Tilda Marrow", "yes"]}
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "prompt_id": ["p0", "p1", "p2"],
                    "prompt": ["a?", "b?", "c?"],
                    "answer": given,
                    "model_id": m,
                    "ended": "end of text",
                    "shortened": False,
                }
            ).assign(mean_logprob=[-0.1, -0.2, -0.3] if m == "base" else [-0.4, -0.5, -0.6])
            for m, given in answers.items()
        ],
        ignore_index=True,
    )


@pytest.fixture
def influences():
    def row(query_id, direction, rank, example):
        return {
            "query_id": query_id, "direction": direction, "rank": rank, "example_id": example, "score": 1.5,
            "z_score": 2.0, "sign_in_words": "lowers the loss", "prompt": "e?", "completion": "E", "label": "L",
        }  # fmt: skip

    return pd.DataFrame(
        [
            row("p1", "harmful", 1, "train-3"),
            row("p1", "helpful", 2, "train-2"),
            row("p1", "helpful", 1, "train-1"),
            row("p0/generated", "helpful", 1, "train-9"),
        ]
    )


def test_macro_f1_of_any_resample_is_scikit_learns():
    rng = np.random.default_rng(0)
    labels, predicted = rng.choice(list("abcd"), size=(2, 40))
    weights = rng.multinomial(40, np.full(40, 1 / 40), size=20)
    values = macro_f1_statistic(list(labels), list(predicted))(weights.astype(float))
    for row, value in zip(weights, values, strict=True):
        chosen = np.repeat(np.arange(40), row)
        assert value == pytest.approx(f1_score(labels[chosen], predicted[chosen], average="macro"))


def test_intervals_agree_with_scipys_percentile_bootstrap():
    rng = np.random.default_rng(1)
    base, tuned = rng.random(200), rng.random(200) + 0.3
    (low, high), difference = Bootstrap(4000, 0.95, seed=0).paired([mean_statistic(base), mean_statistic(tuned)], 200)
    for interval, values in ((low, base), (high, tuned), (difference, tuned - base)):
        expected = stats.bootstrap(
            (values,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(2)
        )
        assert interval.value == pytest.approx(values.mean())
        assert interval.low == pytest.approx(expected.confidence_interval.low, abs=0.01)
        assert interval.high == pytest.approx(expected.confidence_interval.high, abs=0.01)


def test_the_interval_of_the_difference_is_paired():
    values = np.random.default_rng(3).normal(size=100) * 10
    _, difference = Bootstrap(500, 0.95, seed=0).paired([mean_statistic(values), mean_statistic(values + 1)], 100)
    assert difference.low == pytest.approx(1.0)
    assert difference.high == pytest.approx(1.0)


def test_intervals_follow_the_seed():
    values = np.random.default_rng(3).random(50)

    def low(seed):
        return Bootstrap(200, 0.9, seed=seed).paired([mean_statistic(values)], 50)[0][0].low

    assert low(1) == low(1) != low(2)


def test_rouge_l_and_chrf_of_hand_worked_pairs():
    # longest common subsequence "the cat sat" (3 words) of 4 answered and 3 wanted words: P 3/4, R 1, F 6/7
    np.testing.assert_allclose(rouge_l(["the cat sat down", "x"], ["The cat sat", "y"]), [6 / 7, 0])
    scores = chrf(["Port Ember", "zzz", "Port"], ["Port Ember", "Port Ember", "Port Ember"])
    assert scores[0] == pytest.approx(1.0)
    assert scores[1] == 0.0
    assert 0 < scores[2] < 1


def test_models_are_compared_on_the_same_rows_whatever_their_order(eval_answers, generations, make_config):
    comparison = compare_models(
        eval_answers, generations, REFERENCES, make_config({"evaluation.bootstrap_samples": 300})
    )
    assert json.loads(json.dumps(comparison)) == comparison
    for role in ("base", "finetuned"):
        rows = eval_answers[eval_answers["model_id"] == role]
        assert comparison["metrics"]["accuracy"][role]["value"] == pytest.approx(rows["correct"].mean())
        expected = f1_score(rows["label"], rows["predicted"], average="macro")
        assert comparison["metrics"]["macro_f1"][role]["value"] == pytest.approx(expected)
        loss = rows["loss"].sum() / rows["tokens"].sum()
        assert comparison["metrics"]["loss"][role]["value"] == pytest.approx(loss)
        assert comparison["metrics"]["perplexity"][role]["value"] == pytest.approx(np.exp(loss))
    assert set(comparison["metrics"]) == {
        "accuracy", "macro_f1", "exact_match", "loss", "perplexity", "prompt_exact_match", "prompt_token_f1",
    }  # fmt: skip
    for measured in comparison["metrics"].values():
        for role in ("base", "finetuned", "difference"):
            assert measured[role]["low"] <= measured[role]["value"] <= measured[role]["high"]
    metrics = headline_metrics(comparison)
    assert metrics["difference.accuracy"] == pytest.approx(metrics["finetuned.accuracy"] - metrics["base.accuracy"])
    assert comparison["metrics"]["accuracy"]["difference"]["low"] > 0.2


def test_prompts_without_reference_do_not_count(eval_answers, generations, make_config):
    comparison = compare_models(
        eval_answers, generations, REFERENCES, make_config({"evaluation.bootstrap_samples": 50})
    )
    assert (comparison["prompts"], comparison["prompts_with_reference"]) == (3, 2)
    metrics = headline_metrics(comparison)
    assert metrics["finetuned.prompt_exact_match"] == metrics["finetuned.prompt_token_f1"] == 1.0
    assert metrics["base.prompt_exact_match"] == 0.0
    # "Port" of "Port Ember": P 1, R 1/2, F 2/3; "Marrow Tilda" of "Tilda Marrow": the same words
    assert metrics["base.prompt_token_f1"] == pytest.approx((2 / 3 + 1) / 2)
    none = compare_models(eval_answers, generations, {}, make_config({"evaluation.bootstrap_samples": 50}))
    assert not [name for name in none["metrics"] if name.startswith("prompt_")]
    assert "no prompt has a reference" in none["notes"][0]


LONG = "the cat sat on the mat and looked at the dog that looked at the cat"


def test_free_text_is_measured_by_what_fits_its_length_and_the_result_says_so(eval_answers, generations, make_config):
    config = make_config({"evaluation.bootstrap_samples": 50})
    short = eval_answers.assign(ranked=False, predicted=None, reference="Port Ember", answer="the Port")
    comparison = compare_models(short, generations, dict.fromkeys(REFERENCES, LONG), config)
    assert set(comparison["metrics"]) == {
        "exact_match", "token_f1", "loss", "perplexity", "prompt_exact_match", "prompt_rouge_l", "prompt_chrf",
    }  # fmt: skip
    assert comparison["metrics"]["token_f1"]["base"]["value"] == pytest.approx(2 / 3)
    assert "short answers, so what was generated is measured and no labels were ranked" in comparison["notes"][0]
    long = short.assign(reference=LONG, answer=" ".join(LONG.split()[:8]))
    comparison = compare_models(long, generations, {}, config)
    assert set(comparison["metrics"]) == {"exact_match", "rouge_l", "chrf", "loss", "perplexity"}
    assert comparison["metrics"]["rouge_l"]["base"]["value"] == pytest.approx(16 / 24)


def test_f1_of_words_is_that_of_squad():
    answers = ["The Port, Ember!", "ember port port", "", "", "a"]
    references = ["port ember", "Port Ember", "", "x", "the"]
    # without articles and punctuation equal; 2 of 3 and 2 words: P 2/3, R 1; nothing was right; wrong; nothing both
    np.testing.assert_allclose(token_f1(answers, references), [1, 0.8, 1, 0, 1])


@pytest.mark.parametrize(
    ("labels", "answers", "kind"),
    [
        (["A", "B"] * 9, [LONG] * 18, AnswerKind.CLASSES),
        ([str(number) for number in range(99)], ["two words"] * 99, AnswerKind.SHORT),
        (["A"] * 9, [LONG] * 9, AnswerKind.LONG),
    ],
)
def test_the_kind_of_answers_is_that_of_few_labels_or_of_their_length(labels, answers, kind):
    assert AnswerKind.of(labels, answers) == kind


def test_a_single_model_is_measured_without_a_difference(eval_answers, generations, make_config):
    comparison = compare_models(
        eval_answers[eval_answers["model_id"] == "finetuned"], generations, REFERENCES, make_config()
    )
    assert comparison["models"] == {"finetuned": "finetuned"}
    assert set(comparison["metrics"]["accuracy"]) == {"over", "finetuned"}


def test_models_that_answered_different_rows_are_refused(eval_answers, generations, make_config):
    with pytest.raises(DataError, match=r"eval_answers\.parquet: 'finetuned' did not answer the same example_ids"):
        compare_models(eval_answers.iloc[:-1], generations, REFERENCES, make_config())


def test_answers_of_other_models_are_refused_with_their_names(eval_answers, generations, make_config):
    config = make_config({"models.base.id": "llama", "models.finetuned.id": "llama-tuned"})
    with pytest.raises(DataError, match=r"'base', 'finetuned'.*'llama' and 'llama-tuned'"):
        compare_models(eval_answers, generations, REFERENCES, config)


def test_every_prompt_stands_beside_both_answers_and_the_examples_behind_them(generations, influences, make_config):
    table = join_influences(generations, influences, REFERENCES, make_config())
    assert table["prompt_id"].tolist() == ["p0", "p1", "p1", "p1", "p2"]
    assert table["example_id"].tolist()[:4] == ["train-9", "train-1", "train-2", "train-3"]
    assert table["direction"].tolist()[1:4] == ["helpful", "helpful", "harmful"]
    assert table["scored_answer"].tolist()[:2] == ["generated", "reference"]
    first = table.iloc[1]
    assert (first["prompt"], first["reference"], first["example_prompt"]) == ("b?", "Tilda Marrow", "e?")
    assert (first["base_answer"], first["finetuned_answer"]) == ("Marrow Tilda", "Tilda Marrow")
    assert (first["base_mean_logprob"], first["finetuned_mean_logprob"]) == (-0.2, -0.5)
    assert pd.isna(table.iloc[4]["example_id"])


def test_the_joined_table_survives_parquet(generations, influences, make_config, tmp_path):
    table = join_influences(generations, influences, REFERENCES, make_config())
    table.to_parquet(tmp_path / "comparison.parquet", index=False)
    back = pd.read_parquet(tmp_path / "comparison.parquet")
    assert back["example_id"].tolist()[:4] == table["example_id"].tolist()[:4]


def test_influences_of_another_run_are_refused(generations, influences, make_config):
    influences.loc[0, "query_id"] = "other"
    with pytest.raises(DataError, match=r"query 'other', which is none of the 3 prompts"):
        join_influences(generations, influences, REFERENCES, make_config())


def test_comparing_needs_no_torch():
    code = (
        "import sys; import whence.evaluation.comparison; "
        "print([m for m in ('torch', 'transformers', 'deepeval') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
