"""Batched answers and rankings, held against one prompt at a time without cache, padding or batches."""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import GenerationConfig

from whence.data.prompts import Prompt
from whence.data.tokenization import answer_ids, encode_prompt
from whence.errors import DataError
from whence.evaluation.decoding import completion_logprobs, continue_prompts, read_prompts
from whence.evaluation.generation import answer_examples, generate
from whence.models.language import LanguageModel

TEXTS = [
    "A lens bends light.",
    "A valve seals the boiler and a loom weaves yarn. The claim names a sensor.",
    "A",
    "The bridge carries a polymer sensor. Answer:",
    "A loom weaves yarn.",
]
LABELS = ["Physics", "Textiles", "Mechanics", "Physics and Mechanics"]


@pytest.fixture
def prompts():
    return [Prompt(prompt_id=f"p{number}", prompt=text) for number, text in enumerate(TEXTS)]


@pytest.fixture
def held_out():
    labels = ["Physics", "Mechanics", "Textiles", "Physics", "Textiles"]
    return pd.DataFrame(
        {
            "example_id": [f"eval-{number:06d}" for number in range(5)],
            "prompt": TEXTS,
            "completion": labels,
            "label": labels,
            "source_id": "x",
        }
    )


def greedy_alone(model, ids, steps, ends):
    """Greedy decoding written out: the whole text through the model for every token, no cache."""
    text, logprobs = list(ids), []
    for _ in range(steps):
        with torch.no_grad():
            row = model(input_ids=torch.tensor([text]), use_cache=False).logits[0, -1].log_softmax(-1)
        text.append(int(row.argmax()))
        logprobs.append(float(row[text[-1]]))
        if text[-1] in ends:
            break
    return text[len(ids) :], logprobs


def logprob_alone(model, ids, completion):
    """Log-probability of a completion: one text, one pass, no cache."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*ids, *completion]]), use_cache=False).logits[0].log_softmax(-1)
    return sum(float(logits[len(ids) - 1 + step, token]) for step, token in enumerate(completion))


def test_batched_answers_are_those_of_each_prompt_alone(tiny_model, tiny_tokenizer, prompts, make_config):
    config = make_config({"generation.batch_size": 3})
    table = generate(LanguageModel(tiny_model, tiny_tokenizer, config), prompts, "finetuned")
    assert table["prompt_id"].tolist() == [prompt.prompt_id for prompt in prompts]
    for row, text in zip(table.itertuples(), TEXTS, strict=True):
        new, logprobs = greedy_alone(tiny_model, tiny_tokenizer(text)["input_ids"], 8, {2})
        assert row.answer == tiny_tokenizer.decode(new, skip_special_tokens=True).strip()
        assert row.mean_logprob == pytest.approx(np.mean(logprobs), abs=1e-4)
        assert row.seconds > 0


def test_answers_stop_at_the_end_token_and_padding_after_it_does_not_count(tiny_model, tiny_tokenizer, make_config):
    ids = [tiny_tokenizer(text)["input_ids"] for text in TEXTS]
    alone = [greedy_alone(tiny_model, row, 8, {2}) for row in ids]
    end = alone[0][0][2]  # a token the first answer contains: take it as the end token
    expected = [greedy_alone(tiny_model, row, 8, {2, end}) for row in ids]
    assert len({len(new) for new, _ in expected}) > 1, "answers must differ in length for this test to mean something"
    other = copy.deepcopy(tiny_tokenizer)
    other.eos_token = other.convert_ids_to_tokens(end)
    language = LanguageModel(tiny_model, other, make_config())
    prefix = read_prompts(language, ids)
    answers = continue_prompts(language, prefix, make_config().generation)
    for answer, (new, logprobs) in zip(answers, expected, strict=True):
        assert answer.token_ids == new
        assert answer.text_ids == [token for token in new if token not in (2, end)]
        assert answer.mean_logprob == pytest.approx(np.mean(logprobs), abs=1e-4)


def test_ranking_equals_the_summed_logprobability_of_prompt_and_answer(tiny_model, tiny_tokenizer, make_config):
    language = LanguageModel(tiny_model, tiny_tokenizer, make_config())
    ids = [tiny_tokenizer(text)["input_ids"] for text in TEXTS]
    completions = [answer_ids(tiny_tokenizer, label) for label in LABELS] + [(5,), (9,)]
    scores = completion_logprobs(language, read_prompts(language, ids), completions)
    expected = [[logprob_alone(tiny_model, row, completion) for completion in completions] for row in ids]
    np.testing.assert_allclose(scores.numpy(), expected, atol=1e-4)


def test_letters_are_ranked_with_a_single_pass(tiny_model, tiny_tokenizer, make_config):
    language = LanguageModel(tiny_model, tiny_tokenizer, make_config())
    prefix = read_prompts(language, [[1, 5, 6], [1, 7]])
    passes = []
    hook = tiny_model.register_forward_hook(lambda *_: passes.append(1))
    try:
        completion_logprobs(language, prefix, [(10,), (11,), (12,), (13,)])
    finally:
        hook.remove()
    assert len(passes) == 1


def test_prompts_of_one_token_need_no_cache(tiny_model, tiny_tokenizer, make_config):
    language = LanguageModel(tiny_model, tiny_tokenizer, make_config())
    prefix = read_prompts(language, [[1], [5]])
    assert prefix.cache is None
    scores = completion_logprobs(language, prefix, [(4, 2)])
    expected = [logprob_alone(tiny_model, ids, (4, 2)) for ids in ([1], [5])]
    np.testing.assert_allclose(scores[:, 0].numpy(), expected, atol=1e-4)


def test_held_out_rows_get_the_most_probable_label_and_a_greedy_answer(
    tiny_model, tiny_tokenizer, held_out, make_config
):
    table = answer_examples(
        LanguageModel(tiny_model, tiny_tokenizer, make_config({"evaluation.batch_size": 2})), held_out, LABELS
    )
    assert table["ranked"].all()
    for row, text in zip(table.itertuples(), TEXTS, strict=True):
        ids = tiny_tokenizer(text)["input_ids"]
        scores = [logprob_alone(tiny_model, ids, answer_ids(tiny_tokenizer, label)) for label in LABELS]
        assert row.predicted == LABELS[int(np.argmax(scores))]
        assert row.correct == (row.predicted == row.label)
        new, _ = greedy_alone(tiny_model, ids, 8, {2})
        assert row.answer == tiny_tokenizer.decode(new, skip_special_tokens=True).strip()


def test_free_text_answers_are_not_ranked_but_compared_exactly(tiny_model, tiny_tokenizer, held_out, make_config):
    config = make_config()
    language = LanguageModel(tiny_model, tiny_tokenizer, config)
    first = answer_examples(language, held_out, LABELS)["answer"][0]
    held_out.loc[0, ["completion", "label"]] = f"  {first} "
    table = answer_examples(
        LanguageModel(tiny_model, tiny_tokenizer, config), held_out, [f"label {n}" for n in range(51)]
    )
    assert not table["ranked"].any()
    assert table["predicted"].isna().all()
    assert table["correct"].tolist() == table["exact_match"].tolist() == [True, False, False, False, False]


@pytest.mark.parametrize("loss_on", ["answer", "all"])
def test_the_loss_of_the_reference_answer_is_the_model_s_own(
    tiny_model, tiny_tokenizer, held_out, make_config, loss_on
):
    config = make_config({"evaluation.batch_size": 2, "dataset.loss_on": loss_on})
    language = LanguageModel(tiny_model, tiny_tokenizer, config)
    table = answer_examples(language, held_out, LABELS)
    for row, example in zip(table.itertuples(), language.tokenize(held_out), strict=True):
        ids, labels = (torch.tensor([example[name]]) for name in ("input_ids", "labels"))
        count = int((labels[:, 1:] != -100).sum())
        with torch.no_grad():
            expected = float(tiny_model(input_ids=ids, labels=labels).loss) * count
        assert row.tokens == count
        assert row.loss == pytest.approx(expected, rel=1e-4)
    assert table["reference"].tolist() == held_out["completion"].tolist()


def test_num_samples_answers_a_seeded_choice_of_rows(tiny_model, tiny_tokenizer, held_out, make_config):
    def ids(seed):
        config = make_config({"evaluation.num_samples": 2, "general.seed": seed})
        return answer_examples(LanguageModel(tiny_model, tiny_tokenizer, config), held_out, LABELS)[
            "example_id"
        ].tolist()

    chosen = [ids(seed) for seed in (0, 0, 1, 2, 3)]
    assert all(len(rows) == 2 and rows == sorted(rows) for rows in chosen)
    assert chosen[0] == chosen[1]
    assert len({tuple(rows) for rows in chosen}) > 1


def test_sampling_follows_the_seed_and_leaves_torchs_generator_alone(tiny_model, tiny_tokenizer, prompts, make_config):
    def answers(seed):
        config = make_config({"generation.do_sample": True, "generation.top_p": 0.9, "general.seed": seed})
        return generate(LanguageModel(tiny_model, tiny_tokenizer, config), prompts, "m")["answer"].tolist()

    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    assert answers(1) == answers(1) != answers(2)
    assert torch.equal(before, torch.random.get_rng_state())


def test_settings_shipped_with_a_checkpoint_do_not_change_the_answers(
    tiny_model, tiny_tokenizer, prompts, make_config, monkeypatch
):
    expected = generate(LanguageModel(tiny_model, tiny_tokenizer, make_config()), prompts, "m")["answer"].tolist()
    shipped = GenerationConfig(repetition_penalty=5.0, suppress_tokens=list(range(3, 300)), min_new_tokens=5)
    monkeypatch.setattr(tiny_model, "generation_config", shipped)
    assert (
        generate(LanguageModel(tiny_model, tiny_tokenizer, make_config()), prompts, "m")["answer"].tolist() == expected
    )
    assert tiny_model.generation_config is shipped


def test_a_long_prompt_is_shortened_before_its_question(tiny_model, tiny_tokenizer, make_config):
    config = make_config({"dataset.template": "{input} Which class? Answer:"})
    prompt = Prompt(prompt_id="long", prompt="A lens bends light. " * 40 + " Which class? Answer:")
    seen = []
    hook = tiny_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True
    )
    try:
        generate(LanguageModel(tiny_model, tiny_tokenizer, config), [prompt], "m")
    finally:
        hook.remove()
    expected = encode_prompt(tiny_tokenizer, prompt.prompt, 8, 64, " Which class? Answer:")
    assert len(expected) == 64 - 8
    assert seen[0][0].tolist() == expected[:-1]


def test_a_question_that_leaves_no_room_for_an_answer_is_refused(tiny_model, tiny_tokenizer, make_config):
    template = "{input} " + "Which class does this text belong to? " * 12 + "Answer:"
    config = make_config({"dataset.template": template, "general.max_length": 24})
    prompt = Prompt(prompt_id="x", prompt=template.replace("{input}", "A lens."))
    with pytest.raises(DataError, match=r"general\.max_length"):
        generate(LanguageModel(tiny_model, tiny_tokenizer, config), [prompt], "m")
