"""Cron expressions mean here what they mean to Kubeflow's scheduler: robfig/cron 1.2.

The tables of moments are those of robfig/cron's own tests (spec_test.go), with its optional sixth field written out.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from whence.errors import ConfigError
from whence.pipelines.cluster.cron import next_times, six_fields

NEW_YORK = ZoneInfo("America/New_York")
NEXT = [
    ("2012-07-09 14:45:00", "0 0/15 * * * *", "2012-07-09 15:00:00"),
    ("2012-07-09 14:59:59", "0 0/15 * * * *", "2012-07-09 15:00:00"),
    ("2012-07-09 15:45:00", "0 20-35/15 * * * *", "2012-07-09 16:20:00"),
    ("2012-07-09 23:46:00", "0 */15 * * * *", "2012-07-10 00:00:00"),
    ("2012-07-09 23:45:00", "0 20-35/15 * * * *", "2012-07-10 00:20:00"),
    ("2012-07-09 23:35:51", "15/35 20-35/15 1/2 * * *", "2012-07-10 01:20:15"),
    ("2012-07-09 23:35:51", "15/35 20-35/15 10-12 * * *", "2012-07-10 10:20:15"),
    ("2012-07-09 23:35:51", "15/35 20-35/15 1/2 */2 * *", "2012-07-11 01:20:15"),
    ("2012-07-09 23:35:51", "15/35 20-35/15 * 9-20 Jul *", "2012-07-10 00:20:15"),
    ("2012-07-09 23:35:00", "0 0 0 9 Apr-Oct *", "2012-08-09 00:00:00"),
    ("2012-07-09 23:35:00", "0 0 0 */5 Apr,Aug,Oct Mon", "2012-08-06 00:00:00"),
    ("2012-07-09 23:35:00", "0 0 0 */5 Oct Mon", "2012-10-01 00:00:00"),
    ("2012-07-09 23:35:00", "0 0 0 * Feb Mon", "2013-02-04 00:00:00"),
    ("2012-07-09 23:35:00", "0 0 0 * Feb Mon/2", "2013-02-01 00:00:00"),
    ("2012-12-31 23:59:45", "0 * * * * *", "2013-01-01 00:00:00"),
    ("2012-07-09 23:35:00", "0 0 0 29 Feb *", "2016-02-29 00:00:00"),
]
CLOCK_CHANGES = [
    ("2012-03-11T00:00:00-05:00", "0 30 2 11 Mar *", "2013-03-11T02:30:00-04:00"),
    ("2012-03-11T01:00:00-05:00", "0 0 * * * *", "2012-03-11T03:00:00-04:00"),
    ("2012-03-11T01:00:00-05:00", "0 0 1 * * *", "2012-03-12T01:00:00-04:00"),
    ("2012-03-11T00:00:00-05:00", "0 0 2 * * *", "2012-03-12T02:00:00-04:00"),
    ("2012-11-04T01:00:00-04:00", "0 0 * * * *", "2012-11-04T01:00:00-05:00"),
    ("2012-11-04T00:00:00-04:00", "0 0 2 * * *", "2012-11-04T02:00:00-05:00"),
    ("2012-11-04T00:00:00-04:00", "0 0 3 * * *", "2012-11-04T03:00:00-05:00"),
]
# With both day of month and day of week, one must match; with a star in either, both.
DAYS = [
    ("2012-07-15", "0 0 0 1,15 * Sun", True),
    ("2012-06-15", "0 0 0 1,15 * Sun", True),
    ("2012-08-01", "0 0 0 1,15 * Sun", True),
    ("2012-07-15", "0 0 0 * * Mon", False),
    ("2012-07-15", "0 0 0 */10 * Sun", False),
    ("2012-07-09", "0 0 0 1,15 * *", False),
    ("2012-07-15", "0 0 0 1,15 * *", True),
    ("2012-07-15", "0 0 0 */2 * Sun", True),
]


@pytest.mark.parametrize(("after", "cron", "then"), NEXT)
def test_the_next_time_is_the_scheduler_s(after: str, cron: str, then: str) -> None:
    assert next_times(cron, datetime.fromisoformat(after), 1) == [datetime.fromisoformat(then)]


@pytest.mark.parametrize(("after", "cron", "then"), CLOCK_CHANGES)
def test_a_clock_change_is_passed_as_the_scheduler_does(after: str, cron: str, then: str) -> None:
    start = datetime.fromisoformat(after).astimezone(NEW_YORK)
    assert next_times(cron, start, 1)[0].astimezone(UTC) == datetime.fromisoformat(then).astimezone(UTC)


@pytest.mark.parametrize(("day", "cron", "comes"), DAYS)
def test_days_of_month_and_of_week_combine_as_the_scheduler_has_it(day: str, cron: str, comes: bool) -> None:
    midnight = datetime.fromisoformat(day)
    assert (next_times(cron, midnight - timedelta(seconds=1), 1) == [midnight]) is comes


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("0 3 * * 1", "0 0 3 * * 1"),
        ("30 4 ? * MON-FRI", "0 30 4 * * MON-FRI"),
        ("15 0 3 * * 1", "15 0 3 * * 1"),
        ("@weekly", "0 0 0 * * 0"),
        ("@daily", "0 0 0 * * *"),
        ("  5  1-9/2 1,15 */2 *  ", "0 5 1-9/2 1,15 */2 *"),
    ],
)
def test_five_fields_are_given_their_seconds(given: str, sent: str) -> None:
    assert six_fields(given) == sent


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("0 3 * *", "has 4 fields"),
        ("", "has 0 fields"),
        ("@every 1h", "has 2 fields"),
        ("60 3 * * *", "bad minute"),
        ("0 24 * * *", "bad hour"),
        ("0 3 0 * *", "bad day-of-month"),
        ("0 3 5-3 * *", "bad day-of-month"),
        ("0 3 * XYZ *", "bad month"),
        ("0 3 * * 7", "Sunday is 0, not 7"),
        ("0 3 * * 1-7", "Sunday is 0, not 7"),
        ("0 3 L * *", "Kubeflow does not read 'L'"),
        ("0 3 * * 5#2", "Kubeflow does not read '5#2'"),
        ("0 3 15,*/10 * *", "Kubeflow does not read '15,*/10'"),
        ("*/0 3 * * *", "bad minute"),
        ("0 0 30 2 *", "bad day-of-month"),
        ("0 0 31 4,6 ?", "bad day-of-month"),
        ("* * * * * *", "comes every few seconds"),
        ("*/20 3 * * * *", "comes every few seconds"),
    ],
)
def test_what_the_scheduler_would_refuse_or_read_otherwise_is_refused(given: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        six_fields(given)
    assert f"--cron {given!r}: " in str(refused.value)
    assert said in str(refused.value)
