"""The first screen: what was trained on what, and the headline numbers with their intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whence.data.dataset import DatasetInfo
from whence.data.prompts import prompt_changes
from whence.estimates import Estimate
from whence.evaluation.comparison import PROMPTS
from whence.evaluation.metrics import LESS_IS_BETTER, PROMPT
from whence.report.material import Material
from whence.report.words import at_revision, counted, covered

NAMES = {
    "accuracy": "Accuracy",
    "macro_f1": "Macro-F1",
    "exact_match": "Exact match",
    "token_f1": "F1 of words",
    "rouge_l": "ROUGE-L",
    "chrf": "chrF",
    "loss": "Loss per token",
    "perplexity": "Perplexity",
}
ROLES = ("base", "finetuned", "difference")
WILSON_Z = 1.959964  # of a 95 % interval


@dataclass(frozen=True)
class Row:
    """A measure of both models; models that were not measured are None.

    Attributes:
        is_share: whether it goes from 0 to 1 and more is better; else it is a loss, and less is better.
    """

    title: str
    over: str
    base: Estimate | None
    finetuned: Estimate | None
    difference: Estimate | None
    is_share: bool = True


def title(material: Material) -> str:
    """What the page is called."""
    sources = ", ".join(map(_last_part, material.train.info.source.split(", ")))
    return f"What {_last_part(material.config.models.base.name)} learned from {sources}"


def measures(material: Material) -> list[Row]:
    """The comparison's measures with bootstrap intervals."""
    counts = {PROMPTS: material.measured["prompts_with_reference"]}
    rows = []
    for name, measured in material.measured["metrics"].items():
        count = counts.get(measured["over"], material.measured["eval_rows"])
        results = {role: Estimate(**measured[role]) for role in ROLES if role in measured}
        over = f"{count:,} {measured['over']}"
        plain = name.removeprefix(PROMPT)
        base, finetuned, difference = map(results.get, ROLES)
        rows.append(Row(NAMES.get(plain, plain), over, base, finetuned, difference, name not in LESS_IS_BETTER))
    return rows


def notes(material: Material) -> list[str]:
    """What to know of the measures: who the models are where they have other names, and what was not measured."""
    models = material.measured["models"]
    others = [f"{role.replace('finetuned', 'fine-tuned')} is {name}" for role, name in models.items() if name != role]
    who = [f"here {' and '.join(others)}"] if others else []
    return [f"{note[:1].upper()}{note[1:]}." for note in (*who, *material.measured["notes"])]


def benchmark(material: Material) -> list[Row]:
    """Accuracy per subject of the question set, and over all, with Wilson's 95 % intervals (Wilson, 1927)."""
    models = material.config.models
    results = {
        role: material.benchmark[model_id]
        for role, model_id in (("base", models.base.id), ("finetuned", models.finetuned.id))
        if material.benchmark and model_id in material.benchmark
    }
    if not results:
        return []
    some: Mapping[str, Any] = next(iter(results.values()))
    rows = []
    for task in (None, *some["tasks"]):
        scored = {role: result if task is None else result["tasks"][task] for role, result in results.items()}
        questions = next(iter(scored.values()))["questions"]
        estimates = {role: _wilson(result["accuracy"], questions) for role, result in scored.items()}
        name = "All subjects" if task is None else task.replace("_", " ").capitalize()
        over = f"{questions:,} questions"
        rows.append(Row(name, over, estimates.get("base"), estimates.get("finetuned"), difference=None))
    return rows


def benchmark_name(material: Material) -> str:
    """The question set's name, ``MMLU`` or another's."""
    results = material.benchmark or {}
    name = next((str(result["benchmark"]) for result in results.values()), "MMLU")
    return "MMLU" if name.lower() == "mmlu" else name.replace("_", " ").capitalize()


def facts(material: Material) -> list[tuple[str, str]]:
    """What was trained on what, in a few lines."""
    config, info = material.config, material.train.info
    last = {key: entry[key] for entry in material.history for key in ("loss", "eval_loss", "step") if key in entry}
    epochs = config.training.num_train_epochs
    training = f"{epochs:g} epoch{'' if epochs == 1 else 's'}"
    if "step" in last:
        training += f", {int(last['step']):,} steps"
    if "eval_loss" in last:
        training += f", evaluation loss {last['eval_loss']:.3g}"
    coverage = material.origin["coverage"]
    kinds = ", ".join(coverage["kinds"])
    layers = "all layers" if config.factors.layers == "all" else f"{len(config.factors.layers)} layers"
    return [
        ("Base model", at_revision(config.models.base.name, config.models.base.revision)),
        ("Fine-tuned on", _data(info)),
        ("Training", training),
        ("Influence", f"{config.factors.strategy.upper()} over {kinds} of {layers}: {covered(coverage)}"),
        ("Asked", _asked(material)),
    ]


def _asked(material: Material) -> str:
    """How many prompts, and which were changed, shortened or answered in part: nothing of that in silence either."""
    answers = material.answers
    counts = prompt_changes(material.config) | {
        "shortened": int(answers["shortened"].sum()),
        "answers cut off": int((answers["finetuned_ended"] == "cut off").sum()),
        "answers empty": int((answers["finetuned_ended"] == "empty").sum()),
    }
    return f"{len(answers):,} prompts{_noted(counts)}, {len(material.queries):,} answers scored"


def _data(info: DatasetInfo) -> str:
    """How many examples of what, and which rows were left out or changed: nothing of that in silence."""
    counts = {**info.dropped, **info.changed, f"shortened to {info.max_length:,} tokens": info.truncated}
    return f"{info.rows:,} examples of {info.source}{_noted(counts)}"


def _noted(counts: Mapping[str, int]) -> str:
    others = counted(counts)
    return f" ({others})" if others else ""


def _last_part(name: str) -> str:
    """The name of a file or folder on this machine; other names, of the hub or of a bucket, are whole."""
    return Path(name).name if Path(name).is_absolute() else name


def _wilson(share: float, count: int) -> Estimate:
    if not count:
        return Estimate(value=share, low=0.0, high=1.0)
    squared = WILSON_Z**2
    centre = (share + squared / (2 * count)) / (1 + squared / count)
    margin = WILSON_Z * math.sqrt(share * (1 - share) / count + squared / (4 * count**2)) / (1 + squared / count)
    return Estimate(value=share, low=max(0.0, centre - margin), high=min(1.0, centre + margin))
