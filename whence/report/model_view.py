"""The model view: how training went, and the spectra of the curvature that influence is seen through."""

from __future__ import annotations

import base64
import math

import pandas as pd
from markupsafe import Markup

from whence.report.charts import Line, line_chart
from whence.report.material import Material
from whence.report.words import number, percent

ALL_LAYERS = "all_layers"
MOST_LINES = 6
MOST_BYTES = 1_000_000  # of pictures, so that they never crowd out the answers


def loss_chart(material: Material) -> Markup:
    """Training and evaluation loss over the steps."""
    lines = []
    for key, name in (("loss", "training"), ("eval_loss", "evaluation")):
        points = [(entry["step"], entry[key]) for entry in material.history if key in entry]
        lines.append(Line(name, [x for x, _ in points], [y for _, y in points], marked=key == "eval_loss"))
    title = "Loss while fine-tuning, over the optimizer's steps"
    return line_chart(title, "optimizer step", "loss, nats per token", lines)


def lambda_chart(material: Material) -> Markup:
    """Lambda from largest to smallest: a line per module, or the middle one of each type where there are many."""
    shown = material.spectra
    if shown is None or shown.empty:
        return Markup("")
    if len(shown) > MOST_LINES:
        shown = pd.concat([rows.iloc[[len(rows) // 2]] for _, rows in shown.groupby("kind", sort=False)])
    columns = (shown[name] for name in ("module", "size", "ranks", "values"))
    lines = [
        Line(str(module), [100 * rank / size for rank in ranks], [float(value) for value in values])
        for module, size, ranks, values in zip(*columns, strict=True)
    ]
    title = "Lambda from largest to smallest"
    return line_chart(title, "percent of the module's values", "lambda, mean squared gradient", lines, log_y=True)


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
    """``(address, caption)`` of the heat maps, and the names of those that found no room.

    One of all layers stands for those of single modules.
    """
    single = [name for name in sorted(material.pictures) if name.endswith(".lambda")]
    shown, left_out, room = [], [], MOST_BYTES
    for name in [ALL_LAYERS] if ALL_LAYERS in material.pictures else single:
        content = material.pictures[name]
        if len(content) > room:
            left_out.append(name)
            continue
        room -= len(content)
        caption = "all tracked modules" if name == ALL_LAYERS else name.removesuffix(".lambda")
        address = "data:image/png;base64," + base64.b64encode(content).decode("ascii")
        shown.append((address, f"Lambda of {caption}: how strongly the loss curves, the largest values first."))
    return shown, left_out
