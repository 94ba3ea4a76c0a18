"""How long a collector is left alone."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import pytest
import requests

from syncagent.sinks.retry_after import RetryAfter


def heard(status, value=None):
    retry_after, response = RetryAfter(), requests.Response()
    response.status_code = status
    if value is not None:
        response.headers["Retry-After"] = value
    retry_after.session().hooks["response"][0](response)
    return retry_after


@pytest.mark.parametrize("status", [429, 503])
def test_it_is_left_alone_for_as_long_as_it_asks(status):
    """In seconds, or until a date."""
    assert heard(status, "20").left_s() == pytest.approx(20, abs=1)
    date = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=40), usegmt=True)
    assert heard(status, date).left_s() == pytest.approx(40, abs=2)


def test_it_cannot_ask_for_more_than_five_minutes():
    assert heard(503, "86400").left_s() == pytest.approx(300, abs=1)
    assert heard(503, "Fri, 31 Dec 9999 23:59:59 GMT").left_s() == pytest.approx(300, abs=1)


@pytest.mark.parametrize("value", [None, "soon", "-5", "1e9", "9" * 500, "", "\u00b2"])
def test_what_is_no_time_asks_for_nothing(value):
    assert heard(503, value).left_s() == 0


def test_only_answers_that_mean_later_count_and_a_good_one_ends_it():
    assert heard(400, "20").left_s() == 0
    retry_after = heard(503, "20")
    good = requests.Response()
    good.status_code = 200
    retry_after.session().hooks["response"][0](good)
    assert retry_after.left_s() == 0
