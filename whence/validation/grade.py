"""The grade of a run's evidence: thresholds on what was measured, and one word derived from them. Needs no torch.

Nothing here sees an influence score. What a method says of itself is no evidence; what becomes of the model is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from whence.estimates import Estimate
from whence.validation.evidence import METHOD_NAMES, Criterion, Grade, Measure, Method, Word

# Measures that know what is behind an answer: they were there when it came about, or they make it go away.
CAUSAL = ("planted_recall", "counterfactual", "lds")
Kind = Literal["chance", "standard", "baseline"]
Test = Callable[[Measure], bool]


@dataclass(frozen=True)
class Threshold:
    """What a measure must show.

    Attributes:
        kind: better than ``chance``, as good as one would want (``standard``), or no worse than a ``baseline``.
        of_queries: whether it is about what is behind answers; a wrong label found by self-influence is not.
    """

    measure: str
    kind: Kind
    wanted: str
    holds: Test
    of_queries: bool = True


def _beats_random(measure: Measure) -> bool:
    """The whole interval lies above what a random choice reaches, and above 0."""
    return _low(measure) > max(_value(measure, "random"), 0.0)


def _not_below(method: Method) -> Test:
    return lambda measure: _value(measure, "influence") >= _value(measure, method)


def _at_least(value: float) -> Test:
    return lambda measure: _value(measure, "influence") >= value


THRESHOLDS = (
    Threshold("planted_recall", "chance", "more planted examples are found than at random", _beats_random),
    Threshold("planted_recall", "standard", "at least 80 % of the planted examples are found", _at_least(0.8)),
    Threshold("planted_recall", "baseline", "no fewer planted examples are found than by BM25", _not_below("bm25")),
    Threshold(
        "mislabeled_auroc", "chance", "wrong labels are found better than by guessing (AUROC above 0.5)",
        lambda measure: _low(measure) > 0.5, of_queries=False,
    ),
    Threshold(
        "mislabeled_auroc", "standard", "wrong labels stand out (AUROC of at least 0.8)", _at_least(0.8),
        of_queries=False,
    ),
    Threshold("tail_patch", "chance", "a step on the top examples helps more than one on random ones", _beats_random),
    Threshold("tail_patch", "baseline", "it helps no less than one on BM25's top examples", _not_below("bm25")),
    Threshold(
        "stability_seeds", "standard", "factors of another seed rank alike (0.8 or more)", _at_least(0.8),
    ),
    Threshold(
        "stability_halves", "standard", "factors of either half of the samples rank alike (0.6 or more)",
        _at_least(0.6),
    ),
    Threshold("counterfactual", "chance", "leaving the top examples out hurts more than random ones", _beats_random),
    Threshold(
        "counterfactual", "standard", "it hurts at least 3 times as much",
        lambda measure: _value(measure, "influence") >= 3 * max(_value(measure, "random"), 0.0),
    ),
    Threshold("counterfactual", "baseline", "it hurts no less than leaving BM25's out", _not_below("bm25")),
    Threshold(
        "lds", "chance", "the scores predict models trained on random subsets better than guessing", _beats_random
    ),
    Threshold("lds", "standard", "the prediction correlates by 0.1 or more", _at_least(0.1)),
    Threshold("lds", "baseline", "they predict no worse than BM25", _not_below("bm25")),
)  # fmt: skip


def grade(measures: Sequence[Measure]) -> Grade:
    """The grade that these measures deserve.

    - ``none``: nothing about what is behind the answers is better than chance.
    - ``weak``: some of it is, some is not; or only self-influence was shown to mean something.
    - ``moderate``: all is better than chance, but a standard or a baseline was missed, or nothing causal was measured.
    - ``strong``: every threshold is reached, and one of :data:`CAUSAL` was measured.
    """
    by_name = {measure.name: measure for measure in measures}
    judged = [(threshold, _judge(threshold, by_name.get(threshold.measure))) for threshold in THRESHOLDS]
    criteria = [criterion for _, criterion in judged]
    known = [(threshold, criterion) for threshold, criterion in judged if criterion.passed is not None]
    word = _word(known)
    return Grade(word=word, sentence=_sentence(word, known), criteria=criteria)


def _word(known: Sequence[tuple[Threshold, Criterion]]) -> Word:
    chance = [(threshold, criterion.passed) for threshold, criterion in known if threshold.kind == "chance"]
    if not chance:  # stable is not the same as right
        return "not measured"
    of_queries = [passed for threshold, passed in chance if threshold.of_queries]
    if not any(of_queries):
        alone = not of_queries and any(passed for _, passed in chance)
        return "weak" if alone else "none"
    if not all(passed for _, passed in chance):
        return "weak"
    causal = any(threshold.measure in CAUSAL for threshold, _ in known)
    return "strong" if causal and all(criterion.passed for _, criterion in known) else "moderate"


def _sentence(word: Word, known: Sequence[tuple[Threshold, Criterion]]) -> str:
    """Without the numbers, which stand in the criteria."""
    reached = f"{sum(bool(criterion.passed) for _, criterion in known)} of {len(known)} thresholds are reached"
    failed = [threshold.wanted for threshold, criterion in known if not criterion.passed]
    missed = f"; missed: {'; '.join(failed)}" if failed else ""
    return {
        "strong": f"Strong evidence that the examples shown are behind the answers: {reached}.",
        "moderate": f"Moderate evidence: better than chance in everything measured, and {reached}{missed}.",
        "weak": f"Weak evidence, so trust no single example: {reached}{missed}.",
        "none": f"No evidence: these attributions are no better than chance, do not believe them ({reached}{missed}).",
        "not measured": "Not measured: nothing is known about whether these attributions can be trusted.",
    }[word]


def _judge(threshold: Threshold, measure: Measure | None) -> Criterion:
    """A criterion with the numbers it hangs on; a threshold cannot be judged without influence in its measure."""
    if measure is None or "influence" not in measure.methods:
        return Criterion(measure=threshold.measure, sentence=threshold.wanted, passed=None)
    numbers = ", ".join(
        f"{METHOD_NAMES[method]} {_number(estimate)}"
        for method, estimate in measure.methods.items()
        if method in ("influence", "bm25", "random")
    )
    sentence = f"{threshold.wanted} ({numbers})"
    return Criterion(measure=threshold.measure, sentence=sentence, passed=threshold.holds(measure))


def _number(estimate: Estimate) -> str:
    interval = "" if estimate.low is None or estimate.high is None else f" [{estimate.low:.2f}, {estimate.high:.2f}]"
    return f"{estimate.value:.2f}{interval}"


def _value(measure: Measure, method: Method) -> float:
    """The method's value; of one that was not measured, one that everything reaches."""
    estimate = measure.methods.get(method)
    return float("-inf") if estimate is None else estimate.value


def _low(measure: Measure) -> float:
    estimate = measure.methods["influence"]
    return estimate.value if estimate.low is None else estimate.low
