"""The report as one HTML document: below a stated size, and it says what it leaves out for that."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import pandas as pd

from whence.report import data, overview
from whence.report.answers import WITHOUT_SCRIPT, Entry, entries, script_data
from whence.report.base import data_address, packed, render
from whence.report.material import Material
from whence.report.model import spectra_figures, spectra_numbers, training_figures
from whence.validation.evidence import METHOD_NAMES

LARGEST = 5_000_000  # bytes
LONGEST_TEXT = 4000  # characters of an example, even where there is room
# In this order until the page is small enough: shorter texts, then fewer examples, then fewer answers.
CHARACTERS = (LONGEST_TEXT, 2000, 1400, 1000, 700, 500, 350, 250)
EXAMPLES = (10, 5, 3)
SETTINGS_SHOWN = ("general", "models", "dataset", "training", "factors", "scores", "generation", "evaluation")


class Limits(NamedTuple):
    """How much of a run a page holds: queries, examples per query and direction, characters of each example."""

    queries: int
    examples: int
    characters: int


@dataclass(frozen=True)
class Report:
    """The document, and in sentences what of the run it does not hold."""

    html: str
    left_out: list[str]


def report(material: Material, largest: int = LARGEST) -> Report:
    """The report of a run, smaller than ``largest`` bytes where that can be had by showing less."""
    details = material.details
    answers = entries(material, details)
    fixed, pictures_left_out = _fixed(material)

    @cache
    def made(limits: Limits) -> Report:
        selection = [entry.first(limits.examples) for entry in answers[: limits.queries]]
        left_out = _left_out(material, answers, selection, limits, pictures_left_out)
        content = packed(script_data(material, details, selection, limits.characters))
        html = render(
            "report.html", ["cards.js", "report.js"], **fixed, entries=selection, left_out=left_out, data=content
        )
        return Report(html, left_out)

    def fits(limits: Limits) -> bool:
        return len(made(limits).html.encode("utf-8")) < largest

    ladder = list(_ladder(answers))
    step = 0 if fits(ladder[0]) else bisect_left(ladder, True, lo=1, hi=len(ladder) - 1, key=fits)
    return made(ladder[step])


def _ladder(answers: Sequence[Entry]) -> Iterator[Limits]:
    """From everything to next to nothing, each step smaller than the one before."""
    queries = len(answers)
    listed = _most_listed(answers)
    for characters in CHARACTERS:
        yield Limits(queries, listed, characters)
    for examples in EXAMPLES:
        if examples < listed:
            yield Limits(queries, examples, CHARACTERS[-1])
    while queries > 1:
        queries //= 2
        yield Limits(queries, min(listed, EXAMPLES[-1]), CHARACTERS[-1])


def _left_out(
    material: Material, answers: Sequence[Entry], selection: Sequence[Entry], limits: Limits, pictures: Sequence[str]
) -> list[str]:
    sentences = []
    if len(selection) < len(answers):
        sentences.append(f"Of {len(answers):,} answers the first {len(selection):,} are here.")
    longest = _most_listed(answers)
    if limits.examples < longest:
        sentences.append(
            f"Of up to {longest} examples listed at each end of a ranking the first {limits.examples} are here."
        )
    places = {card.place for entry in selection for card in entry.cards}
    cut = sum(len(material.texts[place]) > limits.characters for place in places)
    if cut:
        sentences.append(
            f"Of training examples longer than {limits.characters:,} characters the middle is left out "
            f"({cut:,} of the {len(places):,} shown)."
        )
    if pictures:
        sentences.append(f"Pictures that found no room: {', '.join(pictures)}; they are among the outputs of inspect.")
    return sentences


def _most_listed(answers: Sequence[Entry]) -> int:
    return max((len(cards) for entry in answers for cards in (entry.helpful, entry.harmful)), default=0)


def _fixed(material: Material) -> tuple[dict[str, Any], list[str]]:
    """What the page shows whatever its limits are, and the names of pictures that found no room."""
    suspects, config = data.suspects(material), material.config
    spectra = pd.DataFrame() if material.spectra is None else material.spectra
    curvature, left_out = spectra_figures(spectra, material.pictures)
    return {
        "title": overview.title(material),
        "profile": config.profile,
        "facts": overview.facts(material),
        "measures": overview.measures(material),
        "notes": overview.notes(material),
        "confidence": material.measured["confidence"],
        "benchmark": overview.benchmark(material),
        "benchmark_name": overview.benchmark_name(material),
        "absent": material.absent,
        "failures": material.failures,
        "evidence": material.evidence,
        "links": material.links,
        "service": config.serving.url,
        "without_script": WITHOUT_SCRIPT,
        "often": {direction: data.often(material, direction) for direction in ("helpful", "harmful")},
        "query_count": len(material.queries),
        "example_count": len(material.train.frame),
        "top_k": config.scores.top_k,
        "suspects": suspects.head(data.SUSPECTS_SHOWN),
        "suspects_in_file": len(suspects),
        "suspects_csv": data_address("text/csv;charset=utf-8", data.for_spreadsheets(suspects).encode()),
        "flow": data.class_flow(material),
        "sources": data.by_source(material),
        "sources_shown": data.SOURCES_SHOWN,
        "history": material.history,
        "figures": [*training_figures(material.history), *curvature],
        "spectra": spectra_numbers(spectra),
        "method_names": METHOD_NAMES,
        "settings": _settings(material),
    }, left_out


def _settings(material: Material) -> list[tuple[str, list[tuple[str, str]]]]:
    """Groups of names and values: fingerprints, versions, then every setting that decides the result."""
    origin, evidence = material.origin, material.evidence
    prints = {name: origin[name] for name in ("model", "tokenizer", "train_data", "factors") if origin.get(name)}
    if evidence is not None:
        prints |= {f"evidence: {name}": value for name, value in evidence.fingerprints.items()}
    groups = {"Fingerprints (sha256)": prints, "Versions": origin.get("versions", {})}
    groups |= material.config.model_dump(mode="json", include=set(SETTINGS_SHOWN))
    if evidence is not None:
        groups["evidence"] = evidence.settings
    return [(name, list(_in_words(values))) for name, values in groups.items() if values]


def _in_words(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Settings and their values in one list, those of inner groups under dotted names."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _in_words(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
