"""BM25 against the formula, worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from whence.validation.bm25 import bm25_scores

DOCUMENTS = ["The cat sat.", "The dog ate the dog's food", "A bird"]
LENGTHS = {0: 3, 1: 7, 2: 2}  # the apostrophe parts a word: the, dog, ate, the, dog, s, food
MEAN = 4.0


def term(count: int, document: int, holding: int) -> float:
    """Lucene's BM25 of one word with k1 = 1.5 and b = 0.75 (its constant factor k1 + 1 left off)."""
    idf = math.log(1 + (3 - holding + 0.5) / (holding + 0.5))
    return idf * count / (count + 1.5 * (1 - 0.75 + 0.75 * LENGTHS[document] / MEAN))


def test_scores_are_those_of_the_formula():
    scores = bm25_scores(["DOG the", "the the", "bird?"], DOCUMENTS)
    expected = [
        [term(1, 0, 2), term(2, 1, 1) + term(2, 1, 2), 0],
        [2 * term(1, 0, 2), 2 * term(2, 1, 2), 0],
        [0, 0, term(1, 2, 1)],
    ]
    assert scores == pytest.approx(np.array(expected))


@pytest.mark.parametrize(
    ("query", "documents"), [("", DOCUMENTS), ("...", DOCUMENTS), ("zebra", DOCUMENTS), ("a", [""])]
)
def test_without_a_shared_word_the_score_is_zero(query, documents):
    assert (bm25_scores([query], documents) == np.zeros((1, len(documents)))).all()


def test_it_ranks_as_a_second_implementation_does_on_random_text():
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{n}" for n in rng.zipf(1.6, size=rng.integers(3, 20)) % 50) for _ in range(30)]
    corpus = [text.split() for text in texts]
    mean = np.mean([len(document) for document in corpus])
    expected = np.zeros((30, 30))
    for q, query in enumerate(corpus):
        for word in query:
            holding = sum(word in document for document in corpus)
            idf = math.log(1 + (30 - holding + 0.5) / (holding + 0.5))
            for d, document in enumerate(corpus):
                count = document.count(word)
                expected[q, d] += idf * count / (count + 1.5 * (0.25 + 0.75 * len(document) / mean))
    assert bm25_scores(texts, texts) == pytest.approx(expected)
