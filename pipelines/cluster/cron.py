"""Cron expressions as Kubeflow runs them: six fields, seconds first, read by robfig/cron 1.2.

A five-field expression sent as it is would be read with its minutes as seconds, so it is given its seconds here. What
other crons take and Kubeflow's does not (7 for Sunday, ``L``, ``#``) is refused with what to write instead.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from itertools import islice, pairwise

from cronsim import CronSim, CronSimError

from whence.errors import ConfigError

SHORTHANDS = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
ITEM = re.compile(r"(\*|[0-9]+|[a-z]{3})(-([0-9]+|[a-z]{3}))?(/[0-9]+)?", re.IGNORECASE)
SHORTEST = timedelta(minutes=1)
SHOWN = 3


def six_fields(expression: str) -> str:
    """``expression`` with seconds, as Kubeflow takes it.

    Raises:
        ConfigError: Kubeflow does not take it or would read it otherwise, it never comes, or every few seconds.
    """
    fields = SHORTHANDS.get(expression.strip().lower(), expression).replace("?", "*").split()
    if len(fields) not in (5, 6):
        raise ConfigError(
            f"--cron {expression!r}: has {len(fields)} fields",
            hint="write five (minute, hour, day of month, month, day of week), e.g. '0 3 * * 1', or six with the "
            "seconds first",
        )
    fields = ["0", *fields] if len(fields) == 5 else fields
    for field in fields:
        items = field.split(",")
        if not all(ITEM.fullmatch(item) for item in items) or (len(items) > 1 and "*" in field):
            raise ConfigError(
                f"--cron {expression!r}: Kubeflow does not read {field!r}",
                hint="it takes numbers, names (MON, JAN), ranges (1-5), steps (*/2, 1-9/2) and lists of those",
            )
    if re.search(r"(?<![0-9/])0*7(?![0-9])", fields[5]):
        raise ConfigError(f"--cron {expression!r}: for Kubeflow Sunday is 0, not 7")
    cron = " ".join(fields)
    _check_pace(cron, expression)
    return cron


def next_times(cron: str, after: datetime, count: int = SHOWN) -> list[datetime]:
    """The next times of a six-field expression, in the time zone of ``after``."""
    *fields, days = cron.split()
    # A start with a step goes on to the field's end, which is 6 for Kubeflow and 7 (again Sunday) elsewhere.
    days = re.sub(r"(?<![0-9A-Za-z-])([0-9]|[A-Za-z]{3})/", r"\1-6/", days)
    return list(islice(CronSim(" ".join([*fields, days]), after), count))


def _check_pace(cron: str, expression: str) -> None:
    try:
        times = next_times(cron, datetime(2024, 1, 1))
    except CronSimError as error:
        raise ConfigError(f"--cron {expression!r}: {str(error).lower()}") from error
    if not times:
        raise ConfigError(f"--cron {expression!r}: never comes")
    if any(later - earlier < SHORTEST for earlier, later in pairwise(times)):
        raise ConfigError(
            f"--cron {expression!r}: comes every few seconds",
            hint="of six fields the first are the seconds, so put 0 there",
        )
