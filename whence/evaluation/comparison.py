"""Base against fine-tuned: measures with confidence intervals, and answers beside the examples behind them.

Needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from whence.config import Config
from whence.data.formatting import GENERATED_SUFFIX
from whence.errors import DataError
from whence.estimates import Bootstrap, Statistic, mean_statistic
from whence.evaluation.metrics import (
    PROMPT,
    AnswerKind,
    chrf,
    macro_f1_statistic,
    rouge_l,
    same_text,
    token_f1,
    token_loss_statistic,
)

ROWS, PROMPTS, QUESTIONS = "evaluation rows", "prompts", "questions"
TEXT_MEASURES: dict[AnswerKind, dict[str, Callable[[Sequence[str], Sequence[str]], np.ndarray]]] = {
    AnswerKind.CLASSES: {},
    AnswerKind.SHORT: {"token_f1": token_f1},
    AnswerKind.LONG: {"rouge_l": rouge_l, "chrf": chrf},
}

_INFLUENCE_COLUMNS = {
    "direction": "direction",
    "rank": "rank",
    "example_id": "example_id",
    "score": "score",
    "z_score": "z_score",
    "sign_in_words": "sign_in_words",
    "prompt": "example_prompt",
    "completion": "example_completion",
    "label": "example_label",
}


def compare_models(
    eval_answers: pd.DataFrame, generations: pd.DataFrame, references: Mapping[str, str | None], config: Config
) -> dict[str, Any]:
    """Measure the models on the evaluation rows and on the prompts that have a reference, by what fits the answers.

    Classes are ranked: ``accuracy`` and ``macro_f1``. Of short answers the words are compared (``token_f1``), of long
    ones ``rouge_l`` and ``chrf``; beside them always ``exact_match`` of the generated answers, the reference answer's
    ``loss`` per token and ``perplexity``, its exponential. Measures of prompts begin with ``prompt_``.

    Args:
        eval_answers: rows of :func:`whence.evaluation.generation.answer_examples` with ``model_id``.
        generations: rows of :func:`whence.evaluation.generation.generate`.
        references: the reference answer by prompt_id, None where there is none.

    Returns:
        JSON-able: ``models`` (id by role, ``base`` and ``finetuned``, of those that answered), counts, the bootstrap's
        settings, ``notes``, and ``metrics``: by name ``over`` (what it is measured on) and, per role and for
        ``difference`` (fine-tuned minus base), ``{value, low, high}``. Measures go from 0 to 1, and more is better, but
        for :data:`whence.evaluation.metrics.LESS_IS_BETTER`.

    Raises:
        DataError: a model has no answers, or the models did not answer the same rows or prompts.
    """
    models = _models_present(eval_answers, generations, config)
    rows = _per_model(eval_answers, models, "example_id", "eval_answers.parquet")
    by_role = _per_model(generations, models, "prompt_id", "generations.parquet")
    referenced = [prompt_id for prompt_id in next(iter(by_role.values())).index if references.get(prompt_id)]
    notes = []
    metrics: dict[str, Any] = {}

    def measure(name: str, over: str, items: int, statistics: Sequence[Statistic]) -> None:
        metrics[name] = _measured(over, items, dict(zip(models, statistics, strict=True)), config)

    count = len(next(iter(rows.values())))
    kind = _kind(list(rows.values()))
    if kind == AnswerKind.CLASSES:
        measure("accuracy", ROWS, count, [mean_statistic(table["correct"]) for table in rows.values()])
        f1 = [macro_f1_statistic(table["label"].tolist(), table["predicted"].tolist()) for table in rows.values()]
        measure("macro_f1", ROWS, count, f1)
    else:
        notes.append(f"the answers are free text, {kind}, so what was generated is measured and no labels were ranked")
    measure("exact_match", ROWS, count, [mean_statistic(table["exact_match"]) for table in rows.values()])
    for name, score in TEXT_MEASURES[kind].items():
        scores = [score(table["answer"].tolist(), table["reference"].tolist()) for table in rows.values()]
        measure(name, ROWS, count, [mean_statistic(values) for values in scores])
    losses = [token_loss_statistic(table["loss"], table["tokens"]) for table in rows.values()]
    measure("loss", ROWS, count, losses)
    measure("perplexity", ROWS, count, [_exponential(loss) for loss in losses])
    if referenced:
        expected = [str(references[prompt_id]) for prompt_id in referenced]
        answers = [table.loc[referenced, "answer"].tolist() for table in by_role.values()]
        exact = [[same_text(*pair) for pair in zip(texts, expected, strict=True)] for texts in answers]
        measure(f"{PROMPT}exact_match", PROMPTS, len(expected), [mean_statistic(values) for values in exact])
        for name, score in TEXT_MEASURES[AnswerKind.of_text(expected)].items():
            scores = [score(texts, expected) for texts in answers]
            measure(f"{PROMPT}{name}", PROMPTS, len(expected), [mean_statistic(values) for values in scores])
    else:
        notes.append("no prompt has a reference answer, so the answers to them are not measured")
    return {
        "models": models,
        "eval_rows": count,
        "prompts": len(next(iter(by_role.values()))),
        "prompts_with_reference": len(referenced),
        "confidence": config.evaluation.confidence,
        "bootstrap_samples": config.evaluation.bootstrap_samples,
        "seed": config.general.seed,
        "notes": notes,
        "metrics": metrics,
    }


def compare_benchmark(predictions: pd.DataFrame, config: Config) -> dict[str, Any]:
    """Accuracy of both models over the questions of all subjects, in the shape of a metric of :func:`compare_models`.

    Args:
        predictions: ``model_id, task, number, correct``, a row per model and question.

    Raises:
        DataError: a model is missing, or the models did not answer the same questions.
    """
    models = _models_present(predictions, predictions, config)
    questions = predictions.assign(question_id=predictions["task"] + "/" + predictions["number"].astype(str))
    answers = _per_model(questions, models, "question_id", "predictions.parquet")
    statistics = {role: mean_statistic(table["correct"]) for role, table in answers.items()}
    return _measured(QUESTIONS, len(next(iter(answers.values()))), statistics, config)


def headline_metrics(comparison: Mapping[str, Any]) -> dict[str, float]:
    """The values alone, for tracking: ``finetuned.accuracy``, ``base.accuracy``, ``difference.accuracy``, ..."""
    return {
        f"{role}.{name}": interval["value"]
        for name, measured in comparison["metrics"].items()
        for role, interval in measured.items()
        if role != "over"
    }


def join_influences(
    generations: pd.DataFrame, influences: pd.DataFrame, references: Mapping[str, str | None], config: Config
) -> pd.DataFrame:
    """The answers of both models beside the most helpful and most harmful training examples of each query.

    Returns:
        One row per query and listed example, prompts in the order asked, helpful before harmful, strongest first:
        ``prompt_id, query_id, scored_answer`` (``reference`` or ``generated``), ``prompt, shortened, reference``, of
        each role as in ``base_answer`` the ``answer``, its ``mean_logprob`` and how it ``ended``, ``direction, rank,
        example_id, score, z_score,
        sign_in_words, example_prompt, example_completion, example_label``. A prompt without listed examples keeps one
        row, its example columns empty.

    Raises:
        DataError: an influence belongs to a query that is none of the prompts.
    """
    models = _models_present(generations, generations, config)
    by_role = _per_model(generations, models, "prompt_id", "generations.parquet")
    first = next(iter(by_role.values()))
    answers = pd.DataFrame(
        {"prompt_id": first.index} | {name: first[name].to_numpy() for name in ("prompt", "shortened")}
    )
    answers["reference"] = [references.get(prompt_id) for prompt_id in answers["prompt_id"]]
    for role in ("base", "finetuned"):
        for column in ("answer", "mean_logprob", "ended"):
            answers[f"{role}_{column}"] = by_role[role][column].to_numpy() if role in by_role else None
    examples = influences.rename(columns=_INFLUENCE_COLUMNS)[["query_id", *_INFLUENCE_COLUMNS.values()]].copy()
    known = set(answers["prompt_id"])
    own = [query_id not in known for query_id in examples["query_id"]]
    asked_for = examples["query_id"].str.removesuffix(GENERATED_SUFFIX)
    examples["prompt_id"] = asked_for.where(own, examples["query_id"])
    examples["scored_answer"] = ["generated" if is_own else "reference" for is_own in own]
    unknown = examples.loc[~examples["prompt_id"].isin(known), "query_id"]
    if len(unknown):
        raise DataError(
            f"influences.parquet scores the query {unknown.iloc[0]!r}, which is none of the {len(known)} prompts",
            hint="score and compare with the same generations",
        )
    examples["direction"] = pd.Categorical(examples["direction"], ["helpful", "harmful"], ordered=True)
    joined = answers.reset_index(names="order").merge(examples, on="prompt_id", how="left")
    joined = joined.sort_values(["order", "query_id", "direction", "rank"], kind="stable", ignore_index=True)
    joined["direction"] = joined["direction"].astype("string")
    leading = ["prompt_id", "query_id", "scored_answer", *answers.columns.drop("prompt_id")]
    return joined[[*leading, *_INFLUENCE_COLUMNS.values()]]


def _kind(tables: Sequence[pd.DataFrame]) -> AnswerKind:
    """What kind of answers there are: classes where both models ranked them."""
    if all(table["ranked"].all() for table in tables):
        return AnswerKind.CLASSES
    return AnswerKind.of_text(tables[0]["reference"].tolist())


def _exponential(statistic: Statistic) -> Statistic:
    return lambda weights: np.exp(statistic(weights))


def _measured(over: str, items: int, statistics: Mapping[str, Statistic], config: Config) -> dict[str, Any]:
    """What is measured on ``items``, by role: ``{value, low, high}``, and the difference of two."""
    estimates, difference = Bootstrap.of(config).paired(list(statistics.values()), items)
    named = dict(zip(statistics, estimates, strict=True)) | ({"difference": difference} if difference else {})
    return {"over": over} | {role: estimate.model_dump(exclude={"items"}) for role, estimate in named.items()}


def _models_present(eval_answers: pd.DataFrame, generations: pd.DataFrame, config: Config) -> dict[str, str]:
    """Model id by role of the models that answered both."""
    ids = {"base": config.models.base.id, "finetuned": config.models.finetuned.id}
    answered = set(eval_answers["model_id"]) & set(generations["model_id"])
    present = {role: model_id for role, model_id in ids.items() if model_id in answered}
    if not present:
        raise DataError(
            f"the answers are of {sorted(answered) or 'no model'}, the settings name {ids['base']!r} and "
            f"{ids['finetuned']!r}",
            hint="run generate again with these settings",
        )
    return present


def _per_model(table: pd.DataFrame, models: Mapping[str, str], key: str, origin: str) -> dict[str, pd.DataFrame]:
    """The table of each role, indexed by ``key``, all in the order of the first."""
    tables = {role: table[table["model_id"] == model_id].set_index(key) for role, model_id in models.items()}
    first = next(iter(tables.values()))
    for role, other in tables.items():
        if other.index.has_duplicates or set(other.index) != set(first.index):
            raise DataError(
                f"{origin}: {models[role]!r} did not answer the same {key}s as the other model",
                hint="run generate again",
            )
    return {role: other.loc[first.index] for role, other in tables.items()}
