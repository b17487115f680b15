"""The gate: whether a candidate may take the champion's place. Needs no torch.

What counts is not the difference that was measured but what is certain of it: the lower bound of its paired bootstrap
interval (``evaluation.confidence``), champion and candidate having answered the same rows and questions. With fewer
rows the interval is wider, and a candidate has to be better by more; none is let through for want of evidence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from whence.config import Config, Retraining
from whence.errors import ConfigError, DataError
from whence.evaluation.metrics import ALWAYS, LESS_IS_BETTER, PROMPT, AnswerKind, fitting

AUTO = "auto"
MOST_LOST, MOST_LOST_OF_MMLU = 0.02, 0.05  # where the settings leave it to us


@dataclass(frozen=True)
class Check:
    """One rule and what came of it.

    ``low`` and ``high`` bound ``difference``, what the candidate is better by: candidate minus champion or, where less
    is better, champion minus candidate.
    """

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
    """Apply the rules, those that are ``auto`` by what fits the answers, which is what was measured.

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
    fit = fitting(metrics)
    metric = fit[0] if rules.metric == AUTO else rules.metric
    guarded: Mapping[Any, float] = dict.fromkeys(fit, MOST_LOST) | {"mmlu": MOST_LOST_OF_MMLU}
    if not isinstance(rules.max_loss, str):
        guarded = rules.max_loss
    limits = [(metric, "gain", rules.min_gain), *((name, "loss", -most) for name, most in guarded.items())]
    checks, notes = [], []
    for name, rule, bound in limits:
        if name in metrics:
            checks.append(_check(name, rule, bound, metrics[name]))
        elif name == "mmlu" and rule == "loss":
            notes.append("mmlu is guarded but was not measured: evaluation.mmlu.enabled is false")
        else:
            raise DataError(
                f"retraining: {name} was not measured, so nothing can be decided on it",
                hint=f"decide on one of {', '.join(metrics)}",
            )
    return Decision(tuple(checks), tuple(notes))


def check_rules(config: Config, rows: AnswerKind, prompts: AnswerKind | None) -> None:
    """Find out before anything is trained whether the measures of the rules can be taken.

    Args:
        rows: what kind of answers the held-out rows have.
        prompts: what kind of reference answers the prompts have; None where they have none.

    Raises:
        ConfigError: naming the measure and why it cannot be, with those that can.
    """
    rules = config.retraining
    guarded = () if isinstance(rules.max_loss, str) else tuple(rules.max_loss)
    for key, names in (("metric", (rules.metric,)), ("max_loss", guarded)):
        for name in names:
            kind = prompts if name.startswith(PROMPT) else rows
            taken = [*rows.measures, *ALWAYS]
            if name.startswith(PROMPT):
                taken = [PROMPT + one for one in ("exact_match", *prompts.measures)] if prompts else []
            if name not in (AUTO, "mmlu", *taken):
                why = "no prompt has a reference answer" if kind is None else f"the answers are {kind}"
                hint = f"there are {', '.join(dict.fromkeys(taken))}" if taken else "give the prompts references"
                raise ConfigError(f"retraining.{key}: {name} cannot be measured, because {why}", hint=hint)


def _check(name: str, rule: str, bound: float, measured: Mapping[str, Any]) -> Check:
    if "difference" not in measured:
        raise DataError(f"retraining: {name} was measured of one model only", hint="both must answer")
    difference = measured["difference"]
    sign = -1 if name in LESS_IS_BETTER else 1
    low, high = sorted(sign * difference[end] for end in ("low", "high"))
    return Check(
        measure=name,
        rule=rule,
        champion=measured["base"]["value"],
        candidate=measured["finetuned"]["value"],
        difference=sign * difference["value"],
        low=low,
        high=high,
        bound=bound,
        passed=low > bound if rule == "gain" else low >= bound,
    )
