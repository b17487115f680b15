"""The first screen: what was trained on what, the headline numbers with their intervals, and the model view's figures."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from whence.evaluation.comparison import PROMPTS
from whence.report.charts import Line, line_chart
from whence.report.material import Material
from whence.report.words import number, percent

NAMES = {
    "accuracy": "Accuracy",
    "macro_f1": "Macro-F1",
    "exact_match": "Exact match",
    "prompt_exact_match": "Exact match",
    "rouge_l": "ROUGE-L",
    "chrf": "chrF",
}
WILSON_Z = 1.959964  # of a 95 % interval
PICTURES = {
    "all_layers": "Lambda of every tracked module as one heat map: how much the loss curves, largest values first.",
    "lambda": "Lambda over the pairs of eigenvectors of {module}.",
}
MOST_PICTURES = 1_000_000  # bytes, so that figures never crowd out the answers


@dataclass(frozen=True)
class Estimate:
    """A share with its interval."""

    value: float
    low: float
    high: float

    @property
    def text(self) -> str:
        return percent(self.value)

    @property
    def bounds(self) -> str:
        return f"{100 * self.low:.1f} to {100 * self.high:.1f}".replace("-", "−")


@dataclass(frozen=True)
class Row:
    """A measure of both models; models that were not measured are None."""

    title: str
    over: str
    base: Estimate | None
    finetuned: Estimate | None
    difference: Estimate | None


def measures(material: Material) -> list[Row]:
    """The comparison's measures, all from 0 to 1, with bootstrap intervals."""
    counts = {PROMPTS: material.measured["prompts_with_reference"]}
    rows = []
    for name, measured in material.measured["metrics"].items():
        count = counts.get(measured["over"], material.measured["eval_rows"])
        found = {role: Estimate(**measured[role]) for role in ("base", "finetuned", "difference") if role in measured}
        over = f"{count:,} {measured['over']}"
        rows.append(
            Row(
                NAMES.get(name, name.replace("_", " ")),
                over,
                found.get("base"),
                found.get("finetuned"),
                found.get("difference"),
            )
        )
    return rows


def benchmark(material: Material) -> list[Row]:
    """Accuracy per subject of the question set, and over all, with Wilson's 95 % intervals (Wilson, 1927)."""
    models = material.config.models
    found = {
        role: material.benchmark[model_id]
        for role, model_id in (("base", models.base.id), ("finetuned", models.finetuned.id))
        if material.benchmark and model_id in material.benchmark
    }
    if not found:
        return []
    some: Mapping[str, Any] = next(iter(found.values()))
    rows = []
    for task in (None, *some["tasks"]):
        scored = {role: result if task is None else result["tasks"][task] for role, result in found.items()}
        questions = next(iter(scored.values()))["questions"]
        rows.append(
            Row(
                "All subjects" if task is None else task.replace("_", " "),
                f"{questions:,} questions",
                *(_wilson(scored[role]["accuracy"], questions) if role in scored else None for role in ("base", "finetuned")),
                difference=None,
            )
        )
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
    training = f"{config.training.num_train_epochs:g} epochs"
    if "step" in last:
        training += f", {int(last['step']):,} steps"
    if "eval_loss" in last:
        training += f", evaluation loss {last['eval_loss']:.3g}"
    dropped = sum(info.dropped.values())
    data = f"{info.rows:,} examples of {info.source}" + (f" ({dropped:,} rows dropped)" if dropped else "")
    layers = "all layers" if config.factors.layers == "all" else f"{len(config.factors.layers)} layers"
    return [
        ("Base model", config.models.base.name + (f" @ {config.models.base.revision}" if config.models.base.revision else "")),
        ("Fine-tuned on", data),
        ("Training", training),
        ("Influence", f"{config.factors.strategy.upper()} over {', '.join(config.factors.modules)} of {layers}"),
        ("Asked", f"{len(material.answers):,} prompts, {len(material.queries):,} answers scored"),
    ]


def loss_chart(material: Material) -> Markup:
    """Training and evaluation loss over the steps."""
    lines = []
    for key, name in (("loss", "training"), ("eval_loss", "evaluation")):
        points = [(entry["step"], entry[key]) for entry in material.history if key in entry]
        lines.append(Line(name, [x for x, _ in points], [y for _, y in points], marked=key == "eval_loss"))
    return line_chart("Loss while fine-tuning, over the optimizer's steps", "optimizer step", "loss, nats per token", lines)


def lambda_chart(material: Material) -> Markup:
    """Lambda from largest to smallest: a line per module, or the middle one of each type where there are many."""
    if material.spectra is None or material.spectra.empty:
        return Markup("")
    shown = material.spectra
    if len(shown) > 6:
        middle = {kind: rows.iloc[len(rows) // 2] for kind, rows in shown.groupby("kind", sort=False)}
        shown = shown.loc[[row.name for row in middle.values()]]
    lines = [
        Line(str(row.module), [rank / row.size * 100 for rank in row.ranks], [float(v) for v in row.values_])
        for row in shown.rename(columns={"values": "values_", "size": "size"}).itertuples()
    ]
    return line_chart(
        "Lambda from largest to smallest", "percent of the module's eigenvalue pairs", "lambda, mean squared gradient", lines, log_y=True
    )


def spectra_rows(material: Material) -> list[dict[str, str]]:
    """The spectra's numbers by module."""
    if material.spectra is None:
        return []
    return [
        {
            "module": str(row.module),
            "effective_rank": number(float(row.effective_rank)),
            "top": percent(float(row.top_1_percent_share)),
            "condition": number(float(row.condition_number)) if math.isfinite(row.condition_number) else "infinite",
        }
        for row in material.spectra.itertuples()
    ]


def pictures(material: Material) -> tuple[list[tuple[str, str]], list[str]]:
    """``(address, caption)`` of the heat maps, all layers first, and the names of those that found no room."""
    wanted = sorted(
        (name for name in material.pictures if name == "all_layers" or name.endswith(".lambda")),
        key=lambda name: (name != "all_layers", name),
    )
    shown, left_out, room = [], [], MOST_PICTURES
    for name in wanted:
        content = material.pictures[name]
        if len(content) > room:
            left_out.append(name)
            continue
        room -= len(content)
        module, _, kind = name.rpartition(".")
        address = "data:image/png;base64," + base64.b64encode(content).decode("ascii")
        shown.append((address, PICTURES[kind].format(module=module)))
    return shown, left_out


def _wilson(share: float, count: int) -> Estimate:
    if not count:
        return Estimate(share, 0.0, 1.0)
    squared = WILSON_Z**2
    centre = (share + squared / (2 * count)) / (1 + squared / count)
    margin = WILSON_Z * math.sqrt(share * (1 - share) / count + squared / (4 * count**2)) / (1 + squared / count)
    return Estimate(share, max(0.0, centre - margin), min(1.0, centre + margin))
