"""Measures of answers, and which of them fit what kind of answers. Needs no torch."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Container, Sequence
from enum import StrEnum

import numpy as np

from whence.estimates import Statistic

MAX_RANKED_LABELS = 50
SHORT_ANSWER = 10  # words, in the median
ALWAYS = ("exact_match", "loss", "perplexity")  # of held-out rows
LESS_IS_BETTER = frozenset({"loss", "perplexity"})
PROMPT = "prompt_"
"""Begins the name of a measure of prompts; the others are of held-out rows."""


class AnswerKind(StrEnum):
    """What kind of answers there are, by which they are measured."""

    CLASSES = "classes"
    SHORT = "short answers"
    LONG = "long answers"

    @classmethod
    def of(cls, labels: Sequence[str], answers: Sequence[str]) -> AnswerKind:
        """The kind of reference ``answers``, whose classes are ``labels`` where they are few enough."""
        return cls.CLASSES if can_be_ranked(sorted(set(labels))) else cls.of_text(answers)

    @classmethod
    def of_text(cls, answers: Sequence[str]) -> AnswerKind:
        """The same where there are no classes."""
        return cls.SHORT if np.median([len(answer.split()) for answer in answers]) <= SHORT_ANSWER else cls.LONG

    @property
    def measures(self) -> tuple[str, str]:
        """What fits them, the first of which decides."""
        if self == AnswerKind.CLASSES:
            return "accuracy", "macro_f1"
        return ("token_f1", "exact_match") if self == AnswerKind.SHORT else ("rouge_l", "chrf")


def fitting(taken: Container[str]) -> tuple[str, str]:
    """The measures that fit the answers, the first of which decides, by those that were ``taken``."""
    return next((kind.measures for kind in AnswerKind if kind.measures[0] in taken), AnswerKind.CLASSES.measures)


def can_be_ranked(labels: Sequence[str]) -> bool:
    """Whether the distinct answers are few enough to be classes, not free text."""
    return 1 < len(labels) <= MAX_RANKED_LABELS


def same_text(answer: str, reference: str) -> bool:
    """Whether two answers agree but for white space."""
    return " ".join(answer.split()) == " ".join(reference.split())


def token_f1(answers: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """F1 of the words of each answer, 0 to 1, as SQuAD counts them (Rajpurkar et al., 2016): without order, upper case,
    punctuation and articles.
    """
    return np.array(
        [_f1(_words(answer), _words(reference)) for answer, reference in zip(answers, references, strict=True)]
    )


def _words(text: str) -> list[str]:
    plain = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def _f1(answer: list[str], reference: list[str]) -> float:
    if not answer or not reference:
        return float(answer == reference)
    return 2 * (Counter(answer) & Counter(reference)).total() / (len(answer) + len(reference))


def token_loss_statistic(losses: Sequence[float], tokens: Sequence[int]) -> Statistic:
    """Mean loss per token, in nats, from summed losses and numbers of tokens by item."""
    summed, counts = np.asarray(losses, dtype=np.float64), np.asarray(tokens, dtype=np.float64)
    return lambda weights: (weights @ summed) / (weights @ counts)


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
