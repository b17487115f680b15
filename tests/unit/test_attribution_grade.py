"""The grade: useless attributions are called useless, good ones strong, and nothing is claimed without a measure."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from whence.estimates import Bootstrap, Estimate
from whence.validation.evidence import Evidence, Measure, NotMeasured
from whence.validation.grade import CAUSAL, THRESHOLDS, grade
from whence.validation.lds import lds_measure, random_subsets
from whence.validation.summary import flat_table, headline, markdown
from whence.validation.truth import mislabeled_measures, planted_measures

BOOTSTRAP = Bootstrap(samples=200, confidence=0.95, seed=0)
GOOD = {
    "planted_recall": (0.98, 0.4, 0.01),
    "mislabeled_auroc": (0.95, 0.5, 0.5),
    "tail_patch": (1.0, 0.4, 0.0),
    "stability_seeds": (0.95, 0.0, 0.0),
    "stability_halves": (0.9, 0.0, 0.0),
    "counterfactual": (3.0, 1.0, 0.2),
    "lds": (0.4, 0.1, 0.0),
}


def measure(name, influence, bm25, random, width=0.05):
    methods = {"influence": influence, "bm25": bm25, "random": random}
    estimates = {m: Estimate(value=v, low=v - width, high=v + width, items=10) for m, v in methods.items()}
    return Measure(name=name, title=name, explanation="", higher_is_better=True, methods=estimates)


def measures(**changes):
    return [measure(name, *numbers) for name, numbers in (GOOD | changes).items() if numbers]


def test_good_numbers_throughout_are_strong_evidence():
    found = grade(measures())
    assert found.word == "strong"
    assert all(criterion.passed for criterion in found.criteria)
    assert "15 of 15 thresholds" in found.sentence


@pytest.mark.parametrize("name", sorted(GOOD))
def test_every_measure_can_cost_the_grade(name):
    bad = {name: (-0.2, 0.0, 0.0)}
    found = grade(measures(**bad))
    assert found.word in ("weak", "moderate")
    missed = [criterion for criterion in found.criteria if criterion.passed is False]
    assert {criterion.measure for criterion in missed} == {name}
    wanted, _, numbers = missed[0].sentence.partition(" (influence ")
    assert wanted in found.sentence
    assert numbers.startswith("-0.20 [-0.25, -0.15]")


def test_being_worse_than_bm25_is_said_and_is_not_strong():
    found = grade(measures(planted_recall=(0.9, 1.0, 0.01)))
    assert found.word == "moderate"
    said = "no fewer planted examples are found than by BM25"
    assert said in found.sentence
    assert any(criterion.sentence.startswith(f"{said} (influence 0.90") for criterion in found.criteria)


def test_nothing_causal_measured_is_at_most_moderate():
    assert grade(measures(**dict.fromkeys(CAUSAL))).word == "moderate"


def test_only_self_influence_shown_is_weak_however_good():
    only = dict.fromkeys(GOOD) | {"mislabeled_auroc": (1.0, 0.5, 0.5)}
    assert grade(measures(**only)).word == "weak"


def test_queries_at_chance_are_graded_none_though_wrong_labels_are_found():
    chance = {"planted_recall": (0.01, 0.4, 0.01), "tail_patch": (0.01, 0.4, 0.0), "counterfactual": (0.2, 1, 0.2)}
    found = grade(measures(**chance, lds=(0.01, 0.1, 0.0)))
    assert found.word == "none"
    assert "do not believe them" in found.sentence


def test_nothing_measured_is_said_to_be_nothing_measured():
    assert grade([]).word == "not measured"
    assert all(criterion.passed is None for criterion in grade([]).criteria)
    stable = grade([measure("stability_seeds", 1.0, 0.0, 0.0)])
    assert stable.word == "not measured", "stable is not the same as right"


def test_a_method_that_ranks_at_random_is_graded_useless_from_end_to_end():
    """No numbers made up: random scores go through the real measures against a world that is known."""
    rng = np.random.default_rng(0)
    queries, examples = 12, 400
    facts = np.array([f"fact-{number % queries}" if number < 60 else "" for number in range(examples)])
    asked = [f"fact-{number}" for number in range(queries)]
    ids = [str(number) for number in range(examples)]
    truth = pd.DataFrame({"example_id": ids, "planted": facts, "flipped": rng.random(examples) < 0.05})
    effects = (facts[None] == np.array(asked)[:, None]).astype(float)
    subsets = random_subsets(examples, 0.5, 20, seed=0)
    outcomes = np.stack([effects[:, list(subset)].sum(axis=1) for subset in subsets])
    words = {"influence": rng.normal(size=effects.shape), "random": rng.normal(size=effects.shape)}

    def graded(influence, own):
        scores = words | {"influence": influence, "bm25": rng.normal(size=effects.shape)}
        return grade(
            [
                *planted_measures(scores, asked, ids, truth, 10, BOOTSTRAP),
                *mislabeled_measures({"influence": own}, ids, truth, BOOTSTRAP),
                lds_measure(scores, subsets, outcomes, 0.5, BOOTSTRAP),
            ]
        ).word

    assert graded(words["influence"], rng.random(examples)) == "none"
    assert graded(effects, truth["flipped"].to_numpy() + rng.random(examples)) == "strong"


def test_thresholds_name_measures_that_exist():
    assert {threshold.measure for threshold in THRESHOLDS} == set(GOOD)


def test_the_summary_shows_grade_numbers_and_what_was_not_measured():
    taken = measures(lds=None)
    evidence = Evidence(grade=grade(taken), measures=taken, not_measured=[NotMeasured(name="lds", why="not asked for")])
    text = markdown(evidence)
    assert "# Evidence: strong" in text
    assert "| planted_recall | 0.98 [0.93, 1.03] | 0.40 [0.35, 0.45] |" in text
    assert "- lds: not asked for" in text
    assert headline(evidence)["tail_patch.bm25"] == 0.4
    table = flat_table(evidence)
    assert table.set_index(["measure", "method"]).loc[("counterfactual", "random"), "value"] == pytest.approx(0.2)
    assert flat_table(Evidence(grade=grade([]), measures=[], not_measured=[])).empty
