"""What the page's script draws cards from, as JSON, in names of one letter: they stand there by the thousand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from whence.report.answers import DIRECTIONS, Card, Entry
from whence.report.details import Details
from whence.report.material import Material
from whence.report.templating import visible
from whence.report.tokens import TokenText, utf16_length
from whence.report.words import LONGEST_NAME, shortened, standing


class Limits(NamedTuple):
    """How much of a run a page holds: queries, examples per query and direction, characters of each example."""

    queries: int
    examples: int
    characters: int


def script_data(material: Material, details: Details, found: Sequence[Entry], limits: Limits) -> dict[str, Any]:
    """The entries as the script reads them.

    ``examples``, each once: ``i`` id, ``l`` label, ``t`` text, ``n`` lengths of its tokens (null: unknown), ``a`` where
    the answer begins. ``entries``, in the order of the page, with cards ``helpful`` and ``harmful``: ``e`` example,
    ``s`` score, ``z`` z-score, ``b`` BM25's rank (null: no word shared), ``m`` and ``w`` the tokens' parts
    (:meth:`whence.report.tokens.TokenText.weights`), ``y`` and ``k`` shares of layers and types of module in permille.
    """
    shown = [_Shown(entry, limits.examples) for entry in found]
    places = dict.fromkeys(place for entry in shown for place in entry.places())
    index = {place: number for number, place in enumerate(places)}
    tokens = {place: _tokens(material, details, place, limits.characters) for place in places}
    count = len(material.train.frame)
    return {
        "layers": details.layers,
        "kinds": details.kinds,
        "count": count,
        "standing": {end: [standing(rank, count, end) for rank in range(1, limits.examples + 1)] for end in DIRECTIONS},
        "examples": [_example(material, place, tokens[place], limits.characters) for place in places],
        "entries": [
            {end: [_card(card, index, tokens[card.place]) for card in entry.ends[end]] for end in DIRECTIONS}
            | {
                "y": entry.entry.layers.permille if entry.entry.layers else None,
                "k": entry.entry.kinds.permille if entry.entry.kinds else None,
                "bm25": [[index[near.place], near.influence_rank] for near in entry.entry.neighbours],
            }
            for entry in shown
        ],
    }


class _Shown:
    """The part of an entry that the page holds."""

    def __init__(self, entry: Entry, examples: int) -> None:
        self.entry = entry
        self.ends: dict[str, list[Card]] = {end: getattr(entry, end)[:examples] for end in DIRECTIONS}

    def places(self) -> Iterable[int]:
        yield from (card.place for end in DIRECTIONS for card in self.ends[end])
        yield from (near.place for near in self.entry.neighbours)


def _tokens(material: Material, details: Details, place: int, limit: int) -> TokenText | None:
    pieces = details.pieces.get(material.examples[place].example_id)
    text = None if pieces is None else TokenText.of(pieces, limit)
    return text if text is not None and text.text else None


def _example(material: Material, place: int, tokens: TokenText | None, limit: int) -> dict[str, Any]:
    example = material.examples[place]
    text = tokens.text if tokens else visible(shortened(material.texts[place], limit))
    ending = visible(str(example.completion))
    begins = len(text) - len(ending) if text.endswith(ending) else len(text)
    return {
        "i": shortened(str(example.example_id), LONGEST_NAME),
        "l": None if example.label is None else shortened(str(example.label), LONGEST_NAME),
        "t": text,
        "n": tokens.lengths() if tokens else None,
        "a": utf16_length(text[:begins]),
    }


def _card(card: Card, index: dict[int, int], tokens: TokenText | None) -> dict[str, Any]:
    values: dict[str, Any] = {
        "e": index[card.place],
        "s": float(f"{card.score:.5g}"),
        "z": round(card.z_score, 2),
        "b": card.overlap_rank,
    }
    if card.tokens is not None and tokens is not None:
        values |= tokens.weights(card.tokens)
    if card.layers is not None and card.kinds is not None:
        values |= {"y": card.layers.permille, "k": card.kinds.permille}
    return values
