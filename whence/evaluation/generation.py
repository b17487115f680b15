"""What a model answers: to the prompts people ask about, and to held-out examples."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from transformers import TextIteratorStreamer

from whence.data.batching import plan_batches
from whence.data.formatting import UNLIMITED
from whence.data.prompts import Prompt
from whence.evaluation.decoding import (
    Generated,
    completion_logprobs,
    continue_prompts,
    read_prompts,
)
from whence.evaluation.metrics import can_be_ranked, same_text
from whence.evaluation.outcomes import answer_logprobs
from whence.models.language import LanguageModel
from whence.progress import progress


@dataclass(frozen=True)
class Answer:
    """One answer: the tokens of its prompt and its own, its text, seconds, and label scores."""

    prompt_ids: list[int]
    generated: Generated
    text: str
    seconds: float
    label_logprobs: np.ndarray | None


def generate(language: LanguageModel, prompts: Sequence[Prompt], model_id: str) -> pd.DataFrame:
    """Answer the prompts, greedily unless ``generation.do_sample`` is set (seeded by ``general.seed``).

    Returns:
        One row per prompt in the given order: ``prompt_id, model_id, prompt, answer, prompt_token_ids`` (as the model
        read it), ``token_ids`` (as it answered, the last being an end-of-text token if it produced one), ``ended``
        (``end of text``, ``cut off`` by ``generation.max_new_tokens``, or ``empty``: it ended at once),
        ``mean_logprob`` (per generated token, end of text included), ``seconds`` (its share of the batch),
        ``shortened`` (whether the prompt was, to fit).

    Raises:
        DataError: a prompt's question leaves no room for ``generation.max_new_tokens`` in ``general.max_length``.
    """
    texts = [prompt.prompt for prompt in prompts]
    answers = _answer(language, texts, language.config.generation.batch_size, f"prompts to {model_id}")
    return pd.DataFrame(
        {
            "prompt_id": [prompt.prompt_id for prompt in prompts],
            "model_id": model_id,
            "prompt": texts,
            "answer": [answer.text for answer in answers],
            "prompt_token_ids": [answer.prompt_ids for answer in answers],
            "token_ids": [answer.generated.token_ids for answer in answers],
            "ended": [answer.generated.ended for answer in answers],
            "mean_logprob": [answer.generated.mean_logprob for answer in answers],
            "seconds": [answer.seconds for answer in answers],
            "shortened": [
                len(answer.prompt_ids) < len(language.encoder.prompt(text, 0, UNLIMITED))
                for text, answer in zip(texts, answers, strict=True)
            ],
        }
    )


def stream_answer(language: LanguageModel, prompt: str) -> Iterator[str | Answer]:
    """The pieces of the answer to one prompt as the model gives them, and then the :class:`Answer`.

    Raises:
        DataError: the prompt's question leaves no room for ``generation.max_new_tokens`` in ``general.max_length``.
    """
    config, started = language.config, time.perf_counter()
    prompt_ids = language.encode_prompt(prompt, config.generation.max_new_tokens) or [language.eos_token_id]
    streamer = TextIteratorStreamer(language.tokenizer, skip_prompt=True, skip_special_tokens=True)

    def run() -> Generated:
        try:
            with _seeded(config.general.seed):
                prefix = read_prompts(language, [prompt_ids])
                return continue_prompts(language, prefix, config.generation, streamer)[0]
        finally:
            streamer.end()  # also where nothing was generated: whoever listens must not wait for ever

    with ThreadPoolExecutor(1) as thread:
        generated = thread.submit(run)
        yield from streamer
        own = generated.result()
    yield Answer(prompt_ids, own, language.decode(own.text_ids), time.perf_counter() - started, None)


def answer_examples(language: LanguageModel, frame: pd.DataFrame, labels: Sequence[str]) -> pd.DataFrame:
    """Answer held-out examples, and rank the candidate labels by the log-probability of the whole answer.

    Ranking is meant for classification: with too many distinct answers (free text, see
    :func:`whence.evaluation.metrics.can_be_ranked`) it is left out, ``ranked`` is False, ``predicted`` missing, and
    ``correct`` is the exact match of the generated answer.

    Args:
        frame: examples (:data:`whence.data.dataset.COLUMNS`); of more than ``evaluation.num_samples`` rows a seeded
            choice is answered.
        labels: the distinct answers.

    Returns:
        One row per answered example in the frame's order: ``example_id, label, reference, predicted, answer,
        mean_logprob, exact_match, correct, ranked, seconds``, and of the reference answer the ``tokens`` that count and
        their summed ``loss`` in nats.
    """
    config = language.config
    wanted = config.evaluation.num_samples
    if wanted is not None and wanted < len(frame):
        frame = frame.sample(wanted, random_state=config.general.seed).sort_index()
    ranked = can_be_ranked(labels)
    prompts, size = frame["prompt"].tolist(), config.evaluation.batch_size
    answers = _answer(language, prompts, size, "held-out examples", labels if ranked else ())
    table = pd.DataFrame(
        {
            "example_id": frame["example_id"].to_numpy(),
            "label": frame["label"].to_numpy(),
            "reference": frame["completion"].to_numpy(),
            "predicted": [_best(answer, labels) for answer in answers],
            "answer": [answer.text for answer in answers],
            "mean_logprob": [answer.generated.mean_logprob for answer in answers],
        }
    )
    table["predicted"] = table["predicted"].astype("string")
    table["exact_match"] = [same_text(a, b) for a, b in zip(table["answer"], frame["completion"], strict=True)]
    table["correct"] = (table["predicted"] == table["label"]) if ranked else table["exact_match"]
    table["correct"] = table["correct"].astype(bool)
    table["ranked"] = ranked
    table["seconds"] = [answer.seconds for answer in answers]
    examples = language.tokenize(frame)
    # Nothing predicts the first token.
    table["tokens"] = [sum(place > 0 for place in examples.counted(index)) for index in range(len(examples))]
    # Batches as in training, which has been through the same logits.
    size = config.training.per_device_train_batch_size * config.general.max_length
    table["loss"] = -answer_logprobs(language.model, examples, plan_batches(examples.lengths, size))
    return table


def _answer(
    language: LanguageModel,
    texts: Sequence[str],
    batch_size: int,
    description: str,
    labels: Sequence[str] = (),
) -> list[Answer]:
    """Answers in the order of ``texts``; ``batch_size`` is that of prompts of ``general.max_length``."""
    config = language.config
    completions = [language.encoder.answer(label) for label in labels]
    room = max([config.generation.max_new_tokens, *(len(completion) for completion in completions)])
    # No BOS and no text: something must be read.
    prompts = [language.encode_prompt(text, room) or [language.eos_token_id] for text in texts]
    answers: dict[int, Answer] = {}
    with (
        _seeded(config.general.seed),
        progress(total=len(texts), desc=description, unit="prompt") as bar,
    ):
        for batch in plan_batches([len(ids) + room for ids in prompts], batch_size * config.general.max_length):
            started = time.perf_counter()
            prefix = read_prompts(language, [prompts[index] for index in batch])
            ranks = completion_logprobs(language, prefix, completions).numpy() if completions else None
            generated = continue_prompts(language, prefix, config.generation)
            seconds = (time.perf_counter() - started) / len(batch)
            for row, index in enumerate(batch):
                answers[index] = Answer(
                    prompt_ids=prompts[index],
                    generated=generated[row],
                    text=language.decode(generated[row].text_ids),
                    seconds=seconds,
                    label_logprobs=None if ranks is None else ranks[row],
                )
            bar.update(len(batch))
    return [answers[index] for index in range(len(texts))]


def _best(answer: Answer, labels: Sequence[str]) -> str | None:
    return None if answer.label_logprobs is None else labels[int(answer.label_logprobs.argmax())]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
