"""Scores divided among tokens and modules: against autograd, stock kronfluence, and the scores they must sum to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from influence_helpers import MODULES, PAD, settings, tiny_examples, tiny_llama, trained
from influence_reference import RELATIVE, Reference, stock_analyzer
from kronfluence.arguments import ScoreArguments
from torch.utils.data import Dataset
from transformers import LlamaForCausalLM

from whence.config import Config
from whence.data.tokenization import IGNORED, Encoded, TokenizedExamples
from whence.influence.detail import Detail, Pair, divide_scores, module_table, token_table, turn_table
from whence.influence.factors import fit_factors
from whence.influence.layout import short_names
from whence.influence.scoring import Scoring

TRAIN, QUERIES = tiny_examples(23, seed=1), tiny_examples(5, seed=2)
# Some queries with the same examples, one example twice in a row's list of lengths, one query with none.
PAIRS: list[Pair] = [(0, 3), (0, 20), (1, 3), (1, 0), (3, 22), (3, 20), (3, 11), (4, 7), (2, 3)]


def biased(**more: Any) -> LlamaForCausalLM:
    network = tiny_llama(mlp_bias=True, **more)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    return network


def divided(
    model: LlamaForCausalLM, config: Config, folder: Path, pairs: list[Pair] = PAIRS
) -> tuple[torch.Tensor, Detail]:
    """The scores of all pairs, and the detail of some."""
    if not (folder / "factors.json").exists():
        fit_factors(trained(model, TRAIN, config), folder)
    scoring = Scoring(trained(model, TRAIN, config), folder, folder / "scores", queries=QUERIES)
    scoring.compute()
    return scoring.joined(), divide_scores(scoring, pairs)


def assert_close(found: Any, expected: Any, scale: float) -> None:
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=RELATIVE, atol=RELATIVE * scale)


@pytest.mark.parametrize("make", [tiny_llama, biased], ids=["no bias", "bias"])
def test_the_share_of_a_token_is_its_output_gradient_times_the_preconditioned_query_gradient_times_its_activation(
    tmp_path: Path, make: Any
) -> None:
    model = make()
    scores, detail = divided(model, settings(general__seed=7), tmp_path / "f")
    reference = Reference(model, MODULES)
    inverse = reference.inverse_ekfac(TRAIN, 7)
    asked = reference.gradients(QUERIES)
    for number, (query, example) in enumerate(PAIRS):
        _, inputs, outputs = reference.run(**TRAIN[example])
        shares = torch.stack(
            [((outputs[name] @ inverse(asked[query], name, None)) * inputs[name]).sum(1) for name in MODULES]
        )
        assert_close(detail.tokens[number], shares.sum(0), float(scores.std()))
        assert_close(detail.modules[number], shares.sum(1), float(scores.std()))
    assert detail.module_names == MODULES


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"factors__strategy": "identity"},
        {"scores__query_gradient_low_rank": 2},
        {"scores__query_batch_size": 1, "scores__query_gradient_accumulation_steps": 2},
        {"scores__train_batch_size": 1, "scores__damping_factor": 1e-3},
        {"dataset__loss_on": "all"},
    ],
    ids=["full rank", "identity", "low rank", "queries in turns", "small batches", "loss on all"],
)
def test_tokens_and_modules_sum_to_the_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: Any) -> None:
    monkeypatch.setattr("whence.influence.queries.OVERSAMPLING", 0)  # so that the low rank's chance matters
    scores, detail = divided(biased(), settings(**more), tmp_path / "f")
    expected = np.array([float(scores[pair]) for pair in PAIRS])
    assert_close([shares.sum(dtype=np.float64) for shares in detail.tokens], expected, float(scores.std()))
    assert_close(detail.modules.sum(1, dtype=np.float64), expected, float(scores.std()))
    assert [len(shares) for shares in detail.tokens] == [TRAIN.lengths[example] for _, example in PAIRS]


def test_the_sums_are_as_near_as_the_models_precision_lets_them(tmp_path: Path) -> None:
    model = tiny_llama(torch.bfloat16)
    scores, detail = divided(model, settings(general__dtype="bfloat16", scores__train_batch_size=1), tmp_path / "f")
    expected = np.array([float(scores[pair]) for pair in PAIRS])
    sums = np.array([shares.sum() for shares in detail.tokens])
    np.testing.assert_allclose(sums, expected, rtol=0.05, atol=0.05 * float(scores.std()))
    np.testing.assert_allclose(detail.modules.sum(1), sums, rtol=1e-4, atol=1e-4 * float(scores.std()))


CONVERSATIONS = TokenizedExamples(
    [
        Encoded(ids, [token if place in counted else IGNORED for place, token in enumerate(ids)], 0)
        for ids, counted in [
            (list(range(1, 15)), {3, 4, 8, 9, 10, 13}),
            (list(range(5, 13)), {6, 7}),
            (list(range(3, 15)), {1, 2, 3, 7, 11}),
        ]
    ],
    PAD,
)


def test_the_share_of_a_turn_is_the_score_by_the_gradient_of_its_loss_alone(tmp_path: Path) -> None:
    model, config = tiny_llama(), settings(general__seed=7)
    fit_factors(trained(model, TRAIN, config), tmp_path / "f")
    scoring = Scoring(trained(model, CONVERSATIONS, config), tmp_path / "f", tmp_path / "s", queries=QUERIES)
    scoring.compute()
    scores = scoring.joined()
    pairs = [(query, example) for query in (0, 3) for example in (2, 1, 0)]
    detail = divide_scores(scoring, pairs)
    reference = Reference(model, MODULES)
    inverse = reference.inverse_ekfac(TRAIN, 7)
    asked = reference.gradients(QUERIES)
    turns = {0: [{3, 4}, {8, 9, 10}, {13}], 1: [{6, 7}], 2: [{1, 2, 3}, {7}, {11}]}
    for number, (query, example) in enumerate(pairs):
        expected = []
        for counted in turns[example]:
            ids = CONVERSATIONS[example]["input_ids"]
            alone = Encoded(ids, [token if place in counted else IGNORED for place, token in enumerate(ids)], 0)
            [own] = reference.gradients(TokenizedExamples([alone], PAD))
            expected.append(sum(float((inverse(asked[query], name, None) * own[name]).sum()) for name in MODULES))
        assert_close(detail.turns[number], expected, float(scores.std()))
        for shares in (detail.turns[number], detail.tokens[number], detail.modules[number]):
            assert_close(shares.sum(dtype=np.float64), float(scores[query, example]), float(scores.std()))
    listed = pd.DataFrame({"query_id": [f"q{query}" for query, _ in pairs], "example_id": [e for _, e in pairs]})
    table = turn_table(listed, detail)
    assert table[["query_id", "example_id", "turn"]].values.tolist() == [
        [query, example, turn] for query in ("q0", "q3") for example in (2, 0) for turn in (1, 2, 3)
    ]
    assert table["score"].tolist() == [share for number in (0, 2, 3, 5) for share in detail.turns[number].tolist()]


class Padded(Dataset[dict[str, torch.Tensor]]):
    """Examples padded to one length: stock kronfluence's per-token scores need that."""

    def __init__(self, examples: TokenizedExamples) -> None:
        longest = max(range(len(TRAIN)), key=TRAIN.lengths.__getitem__)
        everything = TRAIN.collate([*examples, TRAIN[longest]])
        self.rows = [{name: tensor[row] for name, tensor in everything.items()} for row in range(len(examples))]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.rows[index]


def stock_scores(folder: Path, name: str, **arguments: Any) -> dict[str, torch.Tensor]:
    """Stock kronfluence's scores of every pair on the factors in ``folder``, with nothing of Whence's engine."""
    analyzer = stock_analyzer(tiny_llama(torch.float32), MODULES, folder, num_workers=0)
    analyzer.compute_pairwise_scores(
        name, "ekfac", Padded(QUERIES), Padded(TRAIN), per_device_query_batch_size=len(QUERIES),
        per_device_train_batch_size=len(TRAIN), score_args=ScoreArguments(damping_factor=None, **arguments),
    )  # fmt: skip
    return analyzer.load_pairwise_scores(name)


@pytest.mark.filterwarnings("ignore:.*GradScaler:FutureWarning")
def test_tokens_and_modules_are_those_of_stock_kronfluence(tmp_path: Path) -> None:
    pairs = [(query, example) for query in range(len(QUERIES)) for example in range(len(TRAIN))]
    scores, detail = divided(tiny_llama(torch.float32), settings(), tmp_path / "f", pairs)
    tokens = stock_scores(tmp_path / "f", "tokens", compute_per_token_scores=True)["all_modules"]
    modules = stock_scores(tmp_path / "f", "modules", compute_per_module_scores=True)
    for number, (query, example) in enumerate(pairs):
        length = TRAIN.lengths[example]
        assert_close(detail.tokens[number], tokens[query, example, :length], float(scores.std()))
        assert not tokens[query, example, length:].any()
        assert_close(detail.modules[number], [modules[name][query, example] for name in MODULES], float(scores.std()))


def test_detail_does_not_change_from_run_to_run_and_leaves_model_and_scores_as_they_are(tmp_path: Path) -> None:
    model = tiny_llama()
    scores, first = divided(model, settings(scores__query_gradient_low_rank=2), tmp_path / "f")
    again, second = divided(model, settings(scores__query_gradient_low_rank=2), tmp_path / "f")
    assert torch.equal(scores, again)
    assert all(np.array_equal(one, other) for one, other in zip(first.tokens, second.tokens, strict=True))
    assert np.array_equal(first.modules, second.modules)
    fresh = tiny_llama()
    assert type(model.model.layers[0].mlp.up_proj) is type(fresh.model.layers[0].mlp.up_proj)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True))


def test_only_the_listed_examples_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores, _ = divided(tiny_llama(), settings(), tmp_path / "f")
    seen: list[int] = []
    monkeypatch.setattr(
        "whence.influence.detail.plan_batches",
        lambda lengths, tokens, indices: seen.extend(lengths) or [[index] for index in indices],
    )
    _, detail = divided(tiny_llama(), settings(), tmp_path / "f", [(1, 4), (2, 9), (1, 9)])
    assert seen == [TRAIN.lengths[4], TRAIN.lengths[9]]
    sums = [shares.sum() for shares in detail.tokens]
    assert_close(sums, [scores[1, 4], scores[2, 9], scores[1, 9]], float(scores.std()))


def test_no_pairs_make_empty_tables_of_the_same_columns(tmp_path: Path) -> None:
    _, detail = divided(tiny_llama(), settings(), tmp_path / "f", [])
    nothing = pd.DataFrame({"query_id": [], "example_id": []})
    assert list(token_table(nothing, [], detail).columns) == ["query_id", "example_id", "pieces", "scores"]
    assert list(module_table(nothing, detail).columns) == ["query_id", "example_id", "layer", "module", "score"]


def test_the_tables_have_a_row_per_pair_and_one_per_pair_and_module() -> None:
    names = ["model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj", "lm_head"]
    tokens = [np.array([1.0, -2.0], np.float32), np.array([0.5], np.float32)]
    detail = Detail(tokens, np.arange(6, dtype=np.float32).reshape(2, 3), names)
    listed = pd.DataFrame({"query_id": ["q", "r"], "example_id": ["a", "b"], "rank": [1, 1]}, index=[5, 6])
    by_token = token_table(listed, [["A ", "valve"], ["x"]], detail)
    assert by_token["pieces"].tolist() == [["A ", "valve"], ["x"]]
    assert [shares.tolist() for shares in by_token["scores"]] == [[1.0, -2.0], [0.5]]
    by_module = module_table(listed, detail)
    assert by_module["query_id"].tolist() == ["q"] * 3 + ["r"] * 3
    assert by_module["module"].tolist() == ["up_proj", "down_proj", "lm_head"] * 2
    assert by_module["layer"].tolist() == [0, 0, pd.NA] * 2
    assert by_module["score"].tolist() == [0, 1, 2, 3, 4, 5]


def test_modules_of_a_layer_are_called_by_the_shortest_name_that_tells_them_apart() -> None:
    names = ["h.0.attn.c_proj", "h.0.mlp.c_proj", "h.0.mlp.c_fc", "h.1.mlp.c_fc", "lm_head"]
    assert list(short_names(names).values()) == ["attn.c_proj", "mlp.c_proj", "c_fc", "c_fc", "lm_head"]
    adapters = ["l.0.q_proj.lora_A.default", "l.0.q_proj.lora_B.default", "l.0.v_proj.lora_A.default"]
    assert list(short_names(adapters).values()) == ["q_proj.lora_A.default", "lora_B.default", "v_proj.lora_A.default"]
