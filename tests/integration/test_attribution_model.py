"""What is measured of models, each done by hand: tail patch, refits and retrainings."""

from __future__ import annotations

import copy
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from influence_helpers import settings, tiny_examples, tiny_llama, trained
from torch.nn import functional

from whence.config_file import parse_config
from whence.data.tokenization import IGNORED, TokenizedExamples
from whence.estimates import Bootstrap
from whence.evaluation.outcomes import answer_logprobs
from whence.models.builtin import tiny_llama as demo_llama
from whence.models.builtin import train_tokenizer
from whence.models.loading import load_base
from whence.training import train
from whence.validation.counterfactual import Change, harm, plan
from whence.validation.retraining import Retrainer
from whence.validation.stability import scores_of_refits
from whence.validation.tail_patch import tail_patch_changes, tail_patch_measure, with_room

TRAINING = """
general: {max_length: 32, device: cpu}
models: {base: {name: "builtin:tiny-llama"}}
dataset: {name: "builtin:demo"}
prompts: {items: [x]}
generation: {max_new_tokens: 4}
training: {num_train_epochs: 12, per_device_train_batch_size: 4, learning_rate: 5e-3, dataloader_num_workers: 0}
"""


def loss_of(model, example):
    """Summed loss of one example, alone and without padding."""
    logits = model(torch.tensor([example["input_ids"]])).logits[0, :-1]
    return functional.cross_entropy(logits, torch.tensor(example["labels"][1:]), ignore_index=IGNORED, reduction="sum")


def test_log_probabilities_are_those_of_each_query_alone():
    model, queries = tiny_llama(), tiny_examples(7, seed=2)
    with torch.no_grad():
        expected = [-float(loss_of(model, queries[row])) for row in range(7)]
    assert answer_logprobs(model, queries) == pytest.approx(expected, rel=1e-5)
    assert answer_logprobs(model, queries, [[4, 1], [0, 2, 3, 5, 6]]) == pytest.approx(expected, rel=1e-5)


def test_a_tail_patch_is_measured_where_an_answer_can_become_more_probable():
    assert with_room(np.log([0.95, 0.89, 1.0, 0.2, 0.91, 1e-9])).tolist() == [1, 3, 5]
    changes = {"influence": np.array([0.5, 0.7, 0.6]), "random": np.array([0.1, 0.0, 0.2])}
    found = tail_patch_measure(changes, 6, 10, 1e-4, 1, Bootstrap(100, 0.95, 0))
    assert found.methods["influence"].value == pytest.approx(0.6)
    assert found.methods["influence"].items == 3
    assert "3 of 6 answers are certain already" in found.explanation
    few = {method: values[:2] for method, values in changes.items()}
    missing = tail_patch_measure(few, 6, 10, 1e-4, 1, Bootstrap(100, 0.95, 0))
    assert missing.why.startswith("4 of 6 answers are certain already (probability of 90% or more)")


@pytest.mark.parametrize("steps", [1, 3])
def test_the_tail_patch_is_a_step_of_adam_done_by_hand(steps):
    model, train_examples, queries = tiny_llama(), tiny_examples(9, seed=1), tiny_examples(2, seed=2)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    top = {"influence": np.array([[3, 0, 5], [8, 1, 2]]), "random": np.array([[1, 2, 4], [0, 7, 6]])}
    found = tail_patch_changes(model, train_examples, queries, top, 0.01, steps)
    for method, rows in top.items():
        for query, chosen in enumerate(rows):
            patched = copy.deepcopy(model)
            weights = list(patched.parameters())
            first, second = ([torch.zeros_like(weight) for weight in weights] for _ in range(2))
            counted = sum(label != IGNORED for index in chosen for label in train_examples[index]["labels"])
            for step in range(1, steps + 1):
                loss = sum(loss_of(patched, train_examples[index]) for index in chosen) / counted
                gradients = torch.autograd.grad(loss, weights)
                with torch.no_grad():
                    for w, g, m, v in zip(weights, gradients, first, second, strict=True):
                        m.mul_(0.9).add_(0.1 * g)
                        v.mul_(0.999).add_(0.001 * g * g)
                        w -= 0.01 * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
            with torch.no_grad():
                expected = float(loss_of(model, queries[query]) - loss_of(patched, queries[query]))
            assert found[method][query] == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items()), "put back"


def test_refits_differ_by_seed_and_by_half_and_true_labels_leave_no_difference_by_seed(tmp_path):
    model, train_examples, queries = tiny_llama(), tiny_examples(12, seed=1), tiny_examples(3, seed=2)
    truth = {"factors__use_empirical_fisher": True}
    plain, empirical, again = (
        trained(model, train_examples, settings(**values)) for values in ({}, truth, truth | {"general__seed": 5})
    )
    sampled = scores_of_refits(plain, queries, tmp_path / "sampled")
    assert all(matrix.shape == (3, 12) for matrix in sampled.values())
    assert not np.allclose(sampled["first"], sampled["second"])
    true = scores_of_refits(empirical, queries, tmp_path / "true")
    whole = scores_of_refits(again, queries, tmp_path / "again")
    np.testing.assert_allclose(true["seed"], whole["seed"], rtol=1e-4)
    assert not np.allclose(sampled["seed"], true["seed"])


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A base model and data where two examples of 24 alone teach what the first query asks."""
    folder = tmp_path_factory.mktemp("small")
    config = parse_config(TRAINING)
    rows = [(f"the sky {number} is", "blue") for number in range(11)]
    rows += [(f"the coal {number} is", "black") for number in range(11)]
    rows += [("zork", "green"), ("zork now", "green")]
    frame = pd.DataFrame(rows, columns=["prompt", "completion"])
    tokenizer = train_tokenizer([f"{p} {c}" for p, c in rows] * 3, vocabulary=400)
    demo_llama(len(tokenizer), 32, seed=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    asked = pd.DataFrame({"prompt": ["zork", "the sky 3 is"], "completion": ["green", "blue"]})
    examples, queries = (TokenizedExamples.from_frame(some, tokenizer, config) for some in (frame, asked))
    return folder, config, examples, queries


@pytest.fixture(scope="module")
def retrained(small, tmp_path_factory):
    folder, config, examples, queries = small
    scores = np.zeros((2, 24))
    scores[0, [22, 23]] = 1.0
    planned = plan({"influence": scores, "bm25": -scores}, k=2, queries=2, seeds=1, random_sets=1, seed=0)
    retrainer = Retrainer(folder, examples, queries, config, tmp_path_factory.mktemp("retrainings"), folder)
    for change in dict.fromkeys(planned.changes):  # here, for a worker takes seconds to start
        retrainer._one(change)
    return planned, retrainer, retrainer.outcomes(planned.changes)


def test_leaving_out_what_taught_an_answer_hurts_that_answer_alone(retrained):
    planned, _, outcomes = retrained
    lost = harm(planned, outcomes)
    assert lost["influence"].shape == (2, 1)
    assert (lost["influence"][0] > 1.0).all(), "without both examples of zork, its answer is not known"
    assert (lost["influence"][0] > 3 * np.abs(lost["random"][0])).all()
    assert np.abs(lost["bm25"][1]).max() < 0.5, "two of eleven like it are not missed"


def test_the_unchanged_retraining_is_the_plain_training(small, retrained):
    folder, config, examples, queries = small
    _, _, outcomes = retrained
    base = load_base(folder, config, dtype=torch.float32)
    work = folder / "plain"
    train(base, examples, queries, output=work, checkpoints=work, on_log=lambda *_: None)
    found = answer_logprobs(base.model, queries)
    np.testing.assert_allclose(outcomes[Change(0)], found, rtol=1e-3, atol=1e-4)


def test_finished_retrainings_are_read_and_only_missing_ones_are_done(retrained, monkeypatch):
    planned, retrainer, outcomes = retrained
    assert len(list(retrainer.folder.glob("*.json"))) == len(outcomes) == len(set(planned.changes))
    monkeypatch.setattr(Retrainer, "_retrain", lambda self, changes, of: pytest.fail(f"retrains {changes}"))
    again = retrainer.outcomes(planned.changes)
    assert all((again[change] == outcome).all() for change, outcome in outcomes.items())
    asked = []
    monkeypatch.setattr(Retrainer, "_retrain", lambda self, changes, of: asked.extend(changes))
    gone = planned.changes[1]
    retrainer.file(gone).rename(retrainer.folder / "kept")
    with pytest.raises(FileNotFoundError):  # nobody has done it
        retrainer.outcomes(planned.changes)
    (retrainer.folder / "kept").rename(retrainer.file(gone))
    assert asked == [gone]


def test_retrainings_of_other_tasks_are_taken_over(retrained, monkeypatch, tmp_path):
    planned, retrainer, outcomes = retrained
    parts = [tmp_path / "part 1", tmp_path / "part 2"]
    for number, change in enumerate(outcomes):
        part = parts[number % 2]
        part.mkdir(exist_ok=True)
        shutil.copy2(retrainer.file(change), part)
    fresh = Retrainer(
        retrainer.base_model, retrainer.train, retrainer.queries, retrainer.config, tmp_path / "all", tmp_path
    )
    monkeypatch.setattr(Retrainer, "_retrain", lambda self, changes, of: pytest.fail(f"retrains {changes}"))
    fresh.adopt(parts)
    found = fresh.outcomes(planned.changes)
    assert all((found[change] == outcome).all() for change, outcome in outcomes.items())


def test_absent_examples_keep_their_place_but_teach_nothing(small):
    _, _, examples, _ = small
    changed = Change(0, without=(1, 5)).examples(examples)
    assert changed.lengths == examples.lengths
    assert changed.counted(1) == changed.counted(5) == []
    assert changed[2] == examples[2]
    assert examples.counted(1), "the original is as it was"
    assert Change(0, only=(2, 4)).examples(examples)[1] == examples[4]
    assert changed.fingerprint != examples.fingerprint


def test_a_batch_of_absent_examples_alone_does_not_stop_the_training(small, tmp_path):
    folder, config, examples, queries = small
    retrainer = Retrainer(folder, examples, queries, config, tmp_path, tmp_path)
    everything = Change(0, without=tuple(range(24)))
    retrainer._one(everything)
    outcome = retrainer.outcomes([everything])[everything]
    base = load_base(folder, config, dtype=torch.float32)
    before = answer_logprobs(base.model, queries)
    assert np.isfinite(outcome).all()
    assert outcome == pytest.approx(before, abs=0.5), "nothing was learned; weight decay alone was at work"
    assert json.loads(next(tmp_path.glob("*.json")).read_text())["change"]["without"] == list(range(24))
