"""The answers view: every query with both answers, and the training examples at both ends of its ranking."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple
from urllib.parse import urlencode

import numpy as np
import pandas as pd

from whence.data.formatting import GENERATED_SUFFIX
from whence.evaluation.metrics import same_text
from whence.report.details import Details, Shares, TokenText
from whence.report.material import Material
from whence.report.words import LONGEST_NAME, Piece, differences, shortened, standing, visible

DIRECTIONS = ("helpful", "harmful")
LONGEST_ANSWER = 2000  # characters of a prompt or an answer
WITHOUT_SCRIPT = 3  # examples of each end that stand in the page's own text
LONGEST_ADDRESS = 16_000  # characters
EXCERPT = 220  # characters of those
NEIGHBOURS = 5  # of BM25's ranking, shown beside the influence's


@dataclass(frozen=True)
class Card:
    """A listed training example of one query. ``overlap_rank`` is BM25's; None where no word is shared."""

    place: int
    rank: int
    score: float
    z_score: float
    standing: str
    overlap_rank: int | None
    tokens: Sequence[float] | None
    layers: Shares | None
    kinds: Shares | None
    turns: Shares | None
    excerpt: str


class Neighbour(NamedTuple):
    """An example at the top of BM25's ranking, and its rank by influence (1 is the most helpful)."""

    place: int
    influence_rank: int


@dataclass(frozen=True)
class Entry:
    """One query: a prompt and the answer that was scored; prompts without a scored answer have no cards."""

    slug: str
    name: str
    prompt: str
    reference: str | None
    base: list[Piece] | None
    finetuned: list[Piece] | None
    base_confidence: float | None
    finetuned_confidence: float | None
    base_ended: str | None
    finetuned_ended: str | None
    shortened: bool
    matches: bool | None
    scored: str | None
    helpful: list[Card]
    harmful: list[Card]
    layers: Shares | None
    kinds: Shares | None
    neighbours: list[Neighbour]
    shared: int
    asked_at: str | None  # the service's page with this question, and the answer that was scored

    @property
    def opening(self) -> str:
        """How the prompt begins, for the list of answers."""
        return self.prompt if len(self.prompt) <= EXCERPT else f"{self.prompt[:EXCERPT]}…"

    @property
    def cards(self) -> list[Card]:
        """Those of both ends."""
        return [*self.helpful, *self.harmful]

    def first(self, count: int) -> Entry:
        """The same with the first ``count`` cards of each end."""
        return replace(self, helpful=self.helpful[:count], harmful=self.harmful[:count])

    @property
    def strongest(self) -> dict[str, float]:
        """The z-score of the first card of each end, 0 without one."""
        return {name: getattr(self, name)[0].z_score if getattr(self, name) else 0.0 for name in DIRECTIONS}


def entries(material: Material, details: Details) -> list[Entry]:
    """The queries in the order their prompts were asked, those of one prompt side by side."""
    rows = _rows_by_prompt(material.queries)
    listed = dict(list(material.influences.groupby(["query_id", "direction"], sort=False)))
    slugs: set[str] = set()
    return [
        _entry(material, details, answer, row, listed, slugs)
        for answer in material.answers.itertuples()
        for row in rows.get(answer.prompt_id, [None])
    ]


def script_data(material: Material, details: Details, found: Sequence[Entry], characters: int) -> dict[str, Any]:
    """What the page's script draws the cards of ``found`` from.

    Returns:
        ``examples``, each once: ``id, label``, its text in ``pieces`` (one where tokens are unknown) and its
        ``completion``; ``entries``, in the order of the page, with cards ``helpful`` and ``harmful``, whose ``parts``
        are the pieces' shares of the score; ``layers`` and ``kinds``, what shares by layer and module are in the order
        of; ``count``, all training examples.
    """
    cards = dict.fromkeys(card.place for entry in found for card in entry.cards)
    places = list(cards | dict.fromkeys(near.place for entry in found for near in entry.neighbours))
    index = {place: number for number, place in enumerate(places)}
    texts = {place: _token_text(material, details, place, characters) for place in places}

    def card_data(card: Card) -> dict[str, Any]:
        text = texts[card.place]
        return {
            "example": index[card.place],
            "standing": card.standing,
            "score": float(f"{card.score:.5g}"),
            "z_score": round(card.z_score, 2),
            "overlap_rank": card.overlap_rank,
            "parts": text.parts(card.tokens) if text and card.tokens is not None else [],
            "layers": card.layers,
            "kinds": card.kinds,
            "turns": card.turns,
        }

    return {
        "layers": details.layers,
        "kinds": details.kinds,
        "count": len(material.train.frame),
        "examples": [_example_data(material, place, texts[place], characters) for place in places],
        "entries": [
            {
                "helpful": [card_data(card) for card in entry.helpful],
                "harmful": [card_data(card) for card in entry.harmful],
                "layers": entry.layers,
                "kinds": entry.kinds,
                "neighbours": [
                    {"example": index[near.place], "influence_rank": near.influence_rank} for near in entry.neighbours
                ],
            }
            for entry in found
        ],
    }


def _token_text(material: Material, details: Details, place: int, limit: int) -> TokenText | None:
    pieces = details.pieces.get(material.examples[place].example_id)
    text = None if pieces is None else TokenText.of(pieces, limit)
    return text if text and any(text.pieces) else None


def _example_data(material: Material, place: int, text: TokenText | None, limit: int) -> dict[str, Any]:
    example = material.examples[place]
    return {
        "id": visible(shortened(str(example.example_id), LONGEST_NAME)),
        "label": None if example.label is None else visible(shortened(str(example.label), LONGEST_NAME)),
        "pieces": text.pieces if text else [visible(shortened(material.texts[place], limit))],
        "completion": visible(str(example.completion))[:limit],
    }


def _entry(
    material: Material,
    details: Details,
    answer: Any,
    row: int | None,
    listed: dict[tuple[str, str], pd.DataFrame],
    slugs: set[str],
) -> Entry:
    base, own, reference = map(_text, (answer.base_answer, answer.finetuned_answer, answer.reference))
    pieces = differences(base or "", own or "")
    query_id = "" if row is None else str(material.queries["query_id"].iloc[row])
    ends = {
        direction: _cards(material, details, row, direction, listed.get((query_id, direction)))
        for direction in DIRECTIONS
    }
    layers, kinds = details.split([(query_id, material.examples[card.place].example_id) for card in ends["helpful"]])
    neighbours, shared = _neighbours(material, row, ends["helpful"])
    return Entry(
        slug=_slug(query_id or answer.prompt_id, slugs),
        name=query_id or answer.prompt_id,
        prompt=shortened(str(answer.prompt), LONGEST_ANSWER),
        reference=reference,
        base=pieces[0] if base is not None else None,
        finetuned=pieces[1] if own is not None else None,
        base_confidence=_confidence(answer.base_mean_logprob),
        finetuned_confidence=_confidence(answer.finetuned_mean_logprob),
        base_ended=answer.base_ended,
        finetuned_ended=answer.finetuned_ended,
        shortened=bool(answer.shortened),
        matches=same_text(own, reference) if own is not None and reference else None,
        scored=None if row is None else str(material.queries["source"].iloc[row]),
        **ends,
        layers=layers,
        kinds=kinds,
        neighbours=neighbours,
        shared=shared,
        asked_at=_asked_at(material, str(answer.prompt), row),
    )


def _asked_at(material: Material, question: str, row: int | None) -> str | None:
    """A permanent link of the service's page, where there is a service; as ``assets/ask.js`` makes and reads it."""
    if material.config.serving.url is None:
        return None
    asked = {"question": question} | ({} if row is None else {"answer": str(material.queries["completion"].iloc[row])})
    address = f"{material.config.serving.url.rstrip('/')}/#{urlencode(asked)}"
    return address if len(address) <= LONGEST_ADDRESS else None


def _cards(
    material: Material, details: Details, row: int | None, direction: str, listed: pd.DataFrame | None
) -> list[Card]:
    if row is None or listed is None:
        return []
    overlap = material.word_overlap[row]
    cards = []
    for shown in listed.sort_values("rank").itertuples():
        pair = (shown.query_id, shown.example_id)
        place = material.places[shown.example_id]
        layers, kinds = details.split([pair])
        cards.append(
            Card(
                place=place,
                rank=int(shown.rank),
                score=float(shown.score),
                z_score=float(shown.z_score),
                standing=standing(int(shown.rank), len(overlap), direction),
                overlap_rank=int((overlap > overlap[place]).sum()) + 1 if overlap[place] > 0 else None,
                tokens=details.token_scores.get(pair),
                layers=layers,
                kinds=kinds,
                turns=details.turns.get(pair),
                excerpt=shortened(material.texts[place], EXCERPT),
            )
        )
    return cards


def _neighbours(material: Material, row: int | None, helpful: Sequence[Card]) -> tuple[list[Neighbour], int]:
    """The top of BM25's ranking, and how many of the listed helpful examples are among as many of BM25's first."""
    if row is None:
        return [], 0
    overlap, influence = material.word_overlap[row], material.scores[row]
    order = np.argsort(-overlap, kind="stable")[: max(NEIGHBOURS, len(helpful))]
    order = order[overlap[order] > 0]
    shared = len({card.place for card in helpful} & set(order[: len(helpful)].tolist()))
    near = [Neighbour(int(place), int((influence > influence[place]).sum()) + 1) for place in order[:NEIGHBOURS]]
    return near, shared


def _rows_by_prompt(queries: pd.DataFrame) -> dict[str, list[int | None]]:
    """Rows of the score matrix by prompt; the model's own answers are queries of their own."""
    rows: dict[str, list[int | None]] = defaultdict(list)
    for row, query in enumerate(queries.itertuples()):
        own = query.source == "generated"
        rows[query.query_id.removesuffix(GENERATED_SUFFIX) if own else query.query_id].append(row)
    return rows


def _confidence(mean_logprob: float | None) -> float | None:
    return None if mean_logprob is None or math.isnan(mean_logprob) else math.exp(mean_logprob)


def _text(value: Any) -> str | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return shortened(str(value), LONGEST_ANSWER)


def _slug(name: str, slugs: set[str]) -> str:
    """A name that can stand in an address and in an ``id``, and that no other entry has."""
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-") or "prompt"
    slug, number = plain, 1
    while slug in slugs:
        number += 1
        slug = f"{plain}-{number}"
    slugs.add(slug)
    return slug
