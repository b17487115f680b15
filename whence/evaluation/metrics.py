"""Measures of answers. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from whence.estimates import Statistic

MAX_RANKED_LABELS = 50


def can_be_ranked(labels: Sequence[str]) -> bool:
    """Whether the distinct answers are few enough to be classes, not free text."""
    return 1 < len(labels) <= MAX_RANKED_LABELS


def same_text(answer: str, reference: str) -> bool:
    """Whether two answers agree but for white space."""
    return " ".join(answer.split()) == " ".join(reference.split())


def rouge_l(answers: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """ROUGE-L F-measure of each answer, 0 to 1 (Lin, 2004; words lower-cased, no stemming)."""
    from rouge_score.rouge_scorer import RougeScorer  # only where answers are compared

    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    pairs = zip(references, answers, strict=True)
    return np.array([scorer.score(reference, answer)["rougeL"].fmeasure for reference, answer in pairs])


def chrf(answers: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """chrF2 of each answer by sacrebleu, here from 0 to 1 (Popović, 2015: character n-grams up to 6)."""
    from sacrebleu.metrics import CHRF

    scorer = CHRF()
    pairs = zip(answers, references, strict=True)
    return np.array([scorer.sentence_score(answer, [reference]).score / 100 for answer, reference in pairs])


def macro_f1_statistic(labels: Sequence[str], predicted: Sequence[str]) -> Statistic:
    """F1 averaged over the classes that occur among the weighted labels or predictions, as scikit-learn has it."""
    classes, codes = np.unique(np.concatenate([labels, predicted]).astype(str), return_inverse=True)
    true, guess = (np.eye(len(classes))[part] for part in np.split(codes, 2))  # [items, classes], one 1 per row
    hits = true * guess

    def statistic(weights: np.ndarray) -> np.ndarray:
        occurring = weights @ (true + guess)  # true positives count twice, false ones of both kinds once
        f1 = np.divide(2 * (weights @ hits), occurring, out=np.zeros_like(occurring), where=occurring > 0)
        return np.asarray(f1.sum(axis=1) / (occurring > 0).sum(axis=1))

    return statistic
