"""Generation, ranking and MMLU with a real pretrained Llama, real patents and real questions."""

from __future__ import annotations

import csv
import json

import pandas as pd
import pytest
import torch

from whence.data.formatting import to_prompt
from whence.data.prompts import Prompt
from whence.data.tokenization import encode_prompt
from whence.evaluation.generation import answer_examples, generate
from whence.evaluation.mmlu import evaluate_mmlu
from whence.models.language import LanguageModel
from whence.models.loading import load_model
from whence.models.trained import own_config

QUESTIONS = 30  # of each subject

# What llama2.c's own greedy sampler writes from nothing with these weights (its test_llama2.py).
PUBLISHED = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a "
    "big, red ball. She wanted to play with it, but it was too high.\nLily's mom said, \"Lily, let's go to the park.\" "
    "Lily was sad and didn't know what to do. She said, \"I want to play with your ball, but I can't find it.\"\nLily "
    "was sad and didn't know what to do."
)


@pytest.fixture(scope="module")
def stories(shared):
    """The model with its tokenizer."""
    config = own_config({"general.device": "cpu", "general.dtype": "float32"})
    loaded = load_model(shared / "models" / "stories260k", config)
    return loaded.model, loaded.tokenizer


def letter_tokens(tokenizer, letters):
    """Token ids of each letter as they stand after "Answer:"; here some are one token, some two."""
    word = len(tokenizer("Answer:")["input_ids"])
    return [tokenizer(f"Answer: {letter}")["input_ids"][word:] for letter in letters]


def summed_logprob(model, ids, completion):
    """Log-probability of a completion: one text, one pass, no cache."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*ids, *completion]]), use_cache=False).logits[0].log_softmax(-1)
    return sum(float(logits[len(ids) - 1 + step, token]) for step, token in enumerate(completion))


def test_greedy_answers_of_a_mixed_batch_are_the_published_text(stories, make_config):
    config = make_config({"general.max_length": 256, "generation.max_new_tokens": 128})
    cuts = [PUBLISHED.index(word) for word in (", there", " girl", " One day", " She wanted")]
    prompts = [Prompt(prompt_id=f"p{cut}", prompt=PUBLISHED[:cut]) for cut in cuts]
    table = generate(LanguageModel(*stories, config), prompts, "base")
    for row in table.itertuples():
        rest = PUBLISHED[len(row.prompt) :].strip()
        assert row.answer[:150] == rest[:150]


def test_labels_of_real_patents_are_ranked_as_one_at_a_time(stories, shared, make_config):
    template = "{input}\n\nQuestion: Which section does this patent belong to?\nAnswer:"
    config = make_config(
        {
            "general.max_length": 512,
            "dataset.template": template,
            "evaluation.num_samples": 24,
            "generation.max_new_tokens": 4,
        }
    )
    lines = (shared / "data" / "patents" / "eval.jsonl").read_text(encoding="utf-8").splitlines()[:200]
    rows = [json.loads(line) for line in lines]
    frame = pd.DataFrame(
        {
            "example_id": [f"eval-{number:06d}" for number in range(len(rows))],
            "prompt": [to_prompt(template, row["abstract"]) for row in rows],
            "completion": [row["section"] for row in rows],
            "label": [row["section"] for row in rows],
        }
    )
    labels = list("ABCDEFGH")
    model, tokenizer = stories
    table = answer_examples(LanguageModel(model, tokenizer, config), frame, labels)
    by_id = frame.set_index("example_id")
    for row in table.itertuples():
        ids = encode_prompt(tokenizer, by_id.loc[row.example_id, "prompt"], 4, 512, template.removeprefix("{input}"))
        scores = [summed_logprob(model, ids, [*letter, 2]) for letter in letter_tokens(tokenizer, labels)]
        assert row.predicted == labels[scores.index(max(scores))]
    assert table["predicted"].nunique() > 1


def test_accuracy_on_real_questions_is_that_of_an_independent_loop(stories, shared, make_config):
    model, tokenizer = stories
    folder, tasks = shared / "data" / "mmlu", ["business_ethics", "international_law"]
    config = make_config(
        {
            "general.max_length": 512,
            "evaluation.mmlu.source": str(folder),
            "evaluation.mmlu.tasks": tasks,
            "evaluation.mmlu.n_shots": 1,
            "evaluation.mmlu.max_questions": QUESTIONS,
        }
    )
    result = evaluate_mmlu(LanguageModel(model, tokenizer, config), "finetuned")
    letters = letter_tokens(tokenizer, "ABCD")
    right: dict[str, list[bool]] = {}
    too_long = 0
    for task in tasks:
        solved, *_ = csv.reader((folder / f"{task}_dev.csv").open(encoding="utf-8"))
        head = f"The following are multiple choice questions (with answers) about {task.replace('_', ' ')}.\n\n"
        right[task] = []
        for row in list(csv.reader((folder / f"{task}_test.csv").open(encoding="utf-8")))[:QUESTIONS]:
            ask = [
                "\n".join(
                    [text, *(f"{name}. {choice}" for name, choice in zip("ABCD", choices, strict=True)), "Answer:"]
                )
                for text, *choices, _ in (solved, row)
            ]
            ids = tokenizer(head + f"{ask[0]} {solved[-1]}\n\n{ask[1]}")["input_ids"]
            if len(ids) > 510:
                ids = tokenizer(head + ask[1])["input_ids"]
            too_long += len(ids) > 510
            scores = [summed_logprob(model, ids[:1] + ids[1:][-509:], letter) for letter in letters]
            right[task].append("ABCD"[scores.index(max(scores))] == row[-1])
    for task in tasks:
        assert result.summary["tasks"][task]["questions"] == len(right[task])
        assert result.summary["tasks"][task]["accuracy"] == pytest.approx(sum(right[task]) / len(right[task]))
    everything = [answer for task in tasks for answer in right[task]]
    assert result.summary["accuracy"] == pytest.approx(sum(everything) / len(everything))
    assert 0 < result.summary["with_fewer_shots"] < len(everything)
    assert result.summary["shortened"] == too_long
