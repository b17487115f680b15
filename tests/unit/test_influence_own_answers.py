"""The model's own answers are scored as it said them, token by token; held against autograd."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from influence_helpers import MODULES, PAD, VOCABULARY, settings, tiny_llama
from influence_reference import Reference, close, expected_scores
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.nn import functional
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from whence.config import Config
from whence.data.prompts import Prompt, query_frame
from whence.data.tokenization import IGNORED, Encoded, TokenizedExamples
from whence.evaluation.generation import generate
from whence.evaluation.outcomes import answer_logprobs
from whence.influence.factors import fit_factors
from whence.influence.scores import score
from whence.models.language import LanguageModel
from whence.models.trained import TrainedModel

LONGEST = 4
END = 3  # this model's answers to these prompts: one ends at once, one after some tokens, the others are cut off
PROMPTS = [[8, 21, 23, 8], [20, 4, 6], [5, 6, 7, 8], [12, 20], [15, 2, 17, 24, 6], [25], [10, 11]]


def fused_tokenizer() -> PreTrainedTokenizerFast:
    """Words ``w01`` ... whose texts run together when decoded, so that no answer of two encodes to them again."""
    words = {"<pad>": PAD} | {f"w{token:02}": token for token in range(1, VOCABULARY)}
    backend = Tokenizer(models.WordLevel(words, unk_token="w01"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.WhitespaceSplit(), decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", unk_token="w01", eos_token=f"w{END:02}")


def greedy(model: LlamaForCausalLM, prompt: list[int]) -> list[int]:
    said: list[int] = []
    while len(said) < LONGEST and said[-1:] != [END]:
        with torch.no_grad():
            said.append(int(model(torch.tensor([prompt + said])).logits[0, -1].argmax()))
    return said


def exactly(prompt: list[int], answer: list[int], loss_on: str) -> Encoded:
    start = prompt if loss_on == "all" else [IGNORED] * len(prompt)
    return Encoded(prompt + answer, start + answer, 0)


def cross_entropy(model: LlamaForCausalLM, input_ids: list[int], labels: list[int]) -> float:
    with torch.no_grad():
        logits = model(torch.tensor([input_ids])).logits[0, :-1]
    return float(functional.cross_entropy(logits, torch.tensor(labels[1:]), ignore_index=IGNORED, reduction="sum"))


def train_rows() -> pd.DataFrame:
    generator = torch.Generator().manual_seed(1)
    texts = [
        [" ".join(f"w{token:02}" for token in torch.randint(2, VOCABULARY, (length,), generator=generator))
         for length in (4 + number % 5, 1 + number % 3)]
        for number in range(19)
    ]  # fmt: skip
    return pd.DataFrame(texts, columns=["prompt", "completion"])


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return tiny_llama()


def asked(model: LlamaForCausalLM, config: Config) -> pd.DataFrame:
    """The generations for the prompts, as the stage writes them."""
    prompts = [
        Prompt(prompt_id=f"q{number}", prompt=" ".join(f"w{token:02}" for token in ids))
        for number, ids in enumerate(PROMPTS)
    ]
    model.generation_config.eos_token_id = None
    return generate(LanguageModel(model, fused_tokenizer(), config), prompts, config.models.finetuned.id)


@pytest.mark.parametrize("loss_on", ["answer", "all"])
def test_own_answers_are_scored_as_the_model_said_them(tmp_path, model, loss_on) -> None:
    config = settings(
        factors__use_empirical_fisher=True, scores__use_generated=True, scores__top_k=30, dataset__loss_on=loss_on
    )
    answers = [greedy(model, prompt) for prompt in PROMPTS]
    generations = asked(model, config)
    assert generations["token_ids"].tolist() == answers
    ended = ["empty" if ids == [END] else "end of text" if ids[-1] == END else "cut off" for ids in answers]
    assert generations["ended"].tolist() == ended
    assert ended[0] == "empty"
    assert {"cut off", "end of text"} <= set(ended)

    generations.to_parquet(tmp_path / "generations.parquet")
    queries = query_frame(config, pd.read_parquet(tmp_path / "generations.parquet"))
    trained = TrainedModel.of(model, fused_tokenizer(), train_rows(), config)
    encoded = [exactly(prompt, answer, loss_on) for prompt, answer in zip(PROMPTS, answers, strict=True)]
    exact = TokenizedExamples(encoded, PAD)
    as_text = trained.tokenize(queries[["prompt", "completion"]])
    assert sum(as_text[row] != exact[row] for row in range(len(exact))) >= 5, "the text alone must not do here"

    fit_factors(trained, tmp_path / "factors")
    found = score(trained, tmp_path / "factors", queries, tmp_path / "scores")
    expected = expected_scores(Reference(model, MODULES), exact, trained.examples)
    close(torch.from_numpy(found.matrix), expected)
    listed = found.influences.merge(found.tokens, on=["query_id", "example_id"])
    rows = listed["query_id"].str.extract(r"(\d+)/generated")[0].astype(int).to_numpy()
    columns = listed["example_id"].astype(int).to_numpy()
    assert len(listed) == expected.numel()
    close(torch.tensor([sum(shares) for shares in listed["scores"]]), expected[rows, columns])

    again = trained.tokenize(found.queries)  # as the validation reads them
    assert again.fingerprint == exact.fingerprint
    logprobs = [-cross_entropy(model, one.input_ids, one.labels) for one in encoded]
    assert answer_logprobs(model, again).tolist() == pytest.approx(logprobs, rel=1e-5)


def test_reference_answers_beside_own_ones_are_encoded_from_their_text(model) -> None:
    items = [{"prompt_id": f"q{number}", "prompt": "w05 w06", "reference": "w07 w08"} for number in range(len(PROMPTS))]
    config = settings(scores__use_generated="both", prompts__items=items)
    trained = TrainedModel.of(model, fused_tokenizer(), train_rows(), config)
    examples = trained.tokenize(query_frame(config, asked(model, config)))
    assert examples[0]["input_ids"] == [5, 6, 7, 8, END]
    assert examples[len(PROMPTS)]["input_ids"] == [*PROMPTS[0], END]
    assert len(examples) == 2 * len(PROMPTS)
