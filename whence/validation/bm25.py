"""BM25 between queries and training examples: what plain word overlap finds, the baseline nobody may skip.

Robertson & Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009, in Lucene's variant, computed by
bm25s (Lù, 2024, arXiv:2407.03618). Needs no torch.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

import numpy as np

K1, B = 1.5, 0.75
_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """The words of a text, case folded; numbers are words, punctuation is not."""
    return _WORD.findall(text.casefold())


def bm25_scores(queries: Sequence[str], documents: Sequence[str]) -> np.ndarray:
    """BM25 of every document for every query, ``[queries, documents]`` float64; 0 where no word is shared.

    Common words are not left out: the inverse document frequency weighs them down. A word that stands twice in a query
    counts twice.
    """
    index = WordIndex(documents)
    return np.stack([index.scores(query) for query in queries]) if queries else np.zeros((0, len(documents)))


class WordIndex:
    """Documents, ready to be compared with one query after another."""

    def __init__(self, documents: Sequence[str]) -> None:
        import bm25s  # only where it is used: the models of the evidence are read without it

        logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets itself to DEBUG
        corpus = [words(document) for document in documents]
        self._size, self._index = len(documents), None
        if any(corpus):
            self._index = bm25s.BM25(k1=K1, b=B, method="lucene", dtype="float64")
            self._index.index(corpus, show_progress=False)

    def scores(self, query: str) -> np.ndarray:
        """BM25 of every document, ``[documents]`` float64."""
        terms = words(query)
        if self._index is None or not terms:
            return np.zeros(self._size)
        return np.asarray(self._index.get_scores(terms))
