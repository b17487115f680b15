"""The report as one HTML document: everything inside, nothing from the network, below a stated size.

Kubeflow shows HTML in an iframe with ``sandbox="allow-scripts"``, MLflow likewise: the page's own script runs there
without storage, popups or downloads. A content security policy lets exactly this script and this style through, by
their hashes, and no request; all text is escaped, and data reaches the script as JSON that cannot end its element.
"""

from __future__ import annotations

import base64
import hashlib
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from markupsafe import Markup

from whence.report import data_view, model_view, overview
from whence.report.answers import WITHOUT_SCRIPT, Entry, entries
from whence.report.details import Details
from whence.report.material import Material
from whence.report.method import reproduction, settings_of
from whence.report.script_data import Limits, script_data
from whence.report.templating import environment, json_for_script
from whence.report.words import LONGEST_NAME, measured, number, percent, shortened, signed
from whence.validation.evidence import METHOD_NAMES

LARGEST = 5_000_000  # bytes
LONGEST_TEXT = 4000  # characters of an example, even where there is room
# In this order until the page is small enough: shorter texts, then fewer examples, then fewer answers.
CHARACTERS = (LONGEST_TEXT, 2000, 1400, 1000, 700, 500, 350, 250)
EXAMPLES = (10, 5, 3)


@dataclass(frozen=True)
class Report:
    """The document, and in sentences what of the run it does not hold."""

    html: str
    left_out: list[str]


def report(material: Material, largest: int = LARGEST) -> Report:
    """The report of a run, smaller than ``largest`` bytes where that can be had by showing less."""
    details = Details(material)
    found = entries(material, details)
    fixed = _fixed(material)

    @cache
    def made(limits: Limits) -> Report:
        left_out = _left_out(material, found, limits, fixed["pictures_left_out"])
        html = _render(material, details, found[: limits.queries], limits, fixed | {"left_out": left_out})
        return Report(html, left_out)

    def fits(limits: Limits) -> bool:
        return len(made(limits).html.encode("utf-8")) < largest

    ladder = list(_ladder(found))
    step = 0 if fits(ladder[0]) else bisect_left(ladder, True, lo=1, hi=len(ladder) - 1, key=fits)
    return made(ladder[step])


def _ladder(found: Sequence[Entry]) -> Iterator[Limits]:
    """From everything to next to nothing, each step smaller than the one before."""
    queries = len(found)
    listed = max((len(cards) for entry in found for cards in (entry.helpful, entry.harmful)), default=0)
    for characters in CHARACTERS:
        yield Limits(queries, listed, characters)
    for examples in EXAMPLES:
        if examples < listed:
            yield Limits(queries, examples, CHARACTERS[-1])
    while queries > 1:
        queries //= 2
        yield Limits(queries, min(listed, EXAMPLES[-1]), CHARACTERS[-1])


def _left_out(material: Material, found: Sequence[Entry], limits: Limits, pictures: Sequence[str]) -> list[str]:
    sentences = []
    if limits.queries < len(found):
        sentences.append(f"Of {len(found):,} answers the first {limits.queries:,} are here.")
    longest = max((len(cards) for entry in found for cards in (entry.helpful, entry.harmful)), default=0)
    if limits.examples < longest:
        sentences.append(
            f"Of up to {longest} examples listed at each end of a ranking the first {limits.examples} are here."
        )
    shown = {
        card.place
        for entry in found[: limits.queries]
        for cards in (entry.helpful, entry.harmful)
        for card in cards[: limits.examples]
    }
    cut = sum(len(material.texts[place]) > limits.characters for place in shown)
    if cut:
        sentences.append(
            f"Of training examples longer than {limits.characters:,} characters the middle is left out "
            f"({cut:,} of the {len(shown):,} shown)."
        )
    if pictures:
        sentences.append(f"Pictures that found no room: {', '.join(pictures)}; they are among the outputs of inspect.")
    return sentences


def _fixed(material: Material) -> dict[str, Any]:
    """What the page shows whatever its limits are."""
    suspects = data_view.suspects(material)
    shown, pictures_left_out = model_view.pictures(material)
    return {
        "title": overview.title(material),
        "facts": overview.facts(material),
        "measures": overview.measures(material),
        "confidence": material.measured["confidence"],
        "benchmark": overview.benchmark(material),
        "benchmark_name": overview.benchmark_name(material),
        "benchmark_enabled": material.config.evaluation.mmlu.enabled,
        "evidence": material.evidence,
        "links": material.links,
        "often": {direction: data_view.often(material, direction) for direction in ("helpful", "harmful")},
        "query_count": len(material.queries),
        "example_count": len(material.train.frame),
        "suspects": suspects[: data_view.SUSPECTS_SHOWN],
        "suspects_in_file": len(suspects),
        "suspects_csv": _data_address("text/csv", data_view.suspects_csv(suspects)) if suspects else "",
        "flow": data_view.class_flow(material),
        "loss_chart": model_view.loss_chart(material),
        "lambda_chart": model_view.lambda_chart(material),
        "spectra": model_view.spectra_rows(material),
        "pictures": shown,
        "pictures_left_out": pictures_left_out,
        "settings": settings_of(material),
        "reproduction": reproduction(material),
        "top_k": material.config.scores.top_k,
        "method_names": METHOD_NAMES,
        "profile": material.config.profile,
    }


def _render(
    material: Material, details: Details, found: Sequence[Entry], limits: Limits, context: dict[str, Any]
) -> str:
    style, script = asset("report.css"), asset("report.js")
    return (
        environment()
        .get_template("report.html")
        .render(
            context,
            style=Markup(style),
            style_hash=_hash(style),
            script=Markup(script),
            script_hash=_hash(script),
            entries=found,
            without_script=WITHOUT_SCRIPT,
            data=json_for_script(script_data(material, details, found, limits)),
            number=number,
            percent=percent,
            signed=signed,
            measured=measured,
            name=lambda text: shortened(str(text), LONGEST_NAME),
        )
    )


@cache
def asset(name: str) -> str:
    """The page's own style or script."""
    return files("whence.report").joinpath("assets", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _data_address(kind: str, text: str) -> str:
    return f"data:{kind};charset=utf-8;base64," + base64.b64encode(text.encode("utf-8")).decode("ascii")
