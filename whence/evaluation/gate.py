"""The gate: whether a candidate may take the champion's place. Needs no torch.

What counts is not the difference that was measured but what is certain of it: the lower bound of its paired bootstrap
interval (``evaluation.confidence``), champion and candidate having answered the same rows and questions. With fewer
rows the interval is wider, and a candidate has to be better by more; none is let through for want of evidence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from whence.config import Config, Retraining
from whence.errors import ConfigError, DataError
from whence.evaluation.metrics import can_be_ranked

LABEL_MEASURES = ("accuracy", "macro_f1")
PROMPT_MEASURES = ("prompt_exact_match", "rouge_l", "chrf")


@dataclass(frozen=True)
class Check:
    """One rule and what came of it; ``low`` and ``high`` bound ``difference``, which is candidate minus champion."""

    measure: str
    rule: str
    champion: float
    candidate: float
    difference: float
    low: float
    high: float
    bound: float
    """What ``low`` must be above (the gain), or at least (a guarded measure)."""
    passed: bool


@dataclass(frozen=True)
class Decision:
    """All checks, the decisive one first; the candidate passes when every one of them does."""

    checks: tuple[Check, ...]
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether the candidate may be promoted."""
        return all(check.passed for check in self.checks)

    @property
    def reason(self) -> str:
        """In one sentence what decided."""
        failed = [check for check in self.checks if not check.passed]
        if not failed:
            return f"{self.checks[0].measure} has gained, and no guarded measure has lost more than it may"
        words = {"gain": "more than", "loss": "at least"}
        return "; ".join(
            f"{check.measure}: {words[check.rule]} {check.bound:+.4f} is asked for, only {check.low:+.4f} is certain"
            for check in failed
        )

    def table(self) -> pd.DataFrame:
        """A row per check."""
        return pd.DataFrame([asdict(check) for check in self.checks])


def decide(metrics: Mapping[str, Mapping[str, Any]], rules: Retraining) -> Decision:
    """Apply the rules.

    A candidate passes when the lower bound of its gain in ``metric`` is above ``min_gain``, and the lower bound of the
    difference in every guarded measure is at least minus its ``max_loss``. So with a ``min_gain`` of 0 the gain must be
    certain, however small; a negative one also takes candidates that are as good.

    Args:
        metrics: by measure ``base`` (the champion), ``finetuned`` (the candidate) and ``difference``, each
            ``{value, low, high}``, as :func:`whence.evaluation.comparison.compare_models` has them.

    Raises:
        DataError: a measure of the rules was not taken. MMLU is the exception: it is switched off by its own setting,
            and a guard on it is then noted as not applied.
    """
    limits = [(rules.metric, "gain", rules.min_gain), *((name, "loss", -most) for name, most in rules.max_loss.items())]
    checks, notes = [], []
    for name, rule, bound in limits:
        if name in metrics:
            checks.append(_check(name, rule, bound, metrics[name]))
        elif name == "mmlu" and rule == "loss":
            notes.append("mmlu is guarded but was not measured: evaluation.mmlu.enabled is false")
        else:
            raise DataError(
                f"retraining: {name} was not measured, so nothing can be decided on it", hint=_way_out(name)
            )
    return Decision(tuple(checks), tuple(notes))


def check_rules(config: Config, labels: Sequence[str], references: int) -> None:
    """Find out before anything is trained whether the measures of the rules can be taken.

    Args:
        labels: the distinct answers of the held-out rows.
        references: how many prompts have a reference answer.

    Raises:
        ConfigError: naming the measure and why it cannot be.
    """
    rules = config.retraining
    for key, names in (("metric", [rules.metric]), ("max_loss", list(rules.max_loss))):
        for name in names:
            if name in LABEL_MEASURES and not can_be_ranked(labels):
                why = f"the held-out rows have {len(labels)} distinct answers, which are no classes"
            elif name in PROMPT_MEASURES and not references:
                why = "no prompt has a reference answer"
            else:
                continue
            raise ConfigError(f"retraining.{key}: {name} cannot be measured, because {why}", hint=_way_out(name))


def _check(name: str, rule: str, bound: float, measured: Mapping[str, Any]) -> Check:
    if "difference" not in measured:
        raise DataError(f"retraining: {name} was measured of one model only", hint="both must answer")
    difference = measured["difference"]
    return Check(
        measure=name,
        rule=rule,
        champion=measured["base"]["value"],
        candidate=measured["finetuned"]["value"],
        difference=difference["value"],
        low=difference["low"],
        high=difference["high"],
        bound=bound,
        passed=difference["low"] > bound if rule == "gain" else difference["low"] >= bound,
    )


def _way_out(name: str) -> str:
    if name in LABEL_MEASURES:
        return "for free text decide on exact_match, or on rouge_l or chrf of the prompts"
    return "decide on accuracy, or give the prompts references" if name in PROMPT_MEASURES else "enable evaluation.mmlu"
