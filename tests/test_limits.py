"""Rate limits: what a bucket lets through, and that users do not add up in memory."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import limits
from gateway.limits import Bucket, Rates
from tests.support.core import Clock


def test_a_burst_of_a_second_and_then_the_rate() -> None:
    """As many at once as the rate has in a second, then one whenever its time has come; the answer says when."""
    clock = Clock()
    bucket = Bucket(4, clock)
    assert [bucket.take() for _ in range(5)] == [0, 0, 0, 0, 0.25]
    clock.now += 0.25
    assert bucket.take() == 0
    assert bucket.take() == 0.25


def test_slower_than_one_a_second() -> None:
    """There is always one to begin with."""
    clock = Clock()
    bucket = Bucket(0.1, clock)
    assert [bucket.take(), bucket.take()] == [0, 10]
    clock.now += 10
    assert bucket.take() == 0


@settings(max_examples=100)
@given(st.lists(st.floats(0, 2), max_size=200), st.integers(1, 20))
def test_never_more_than_burst_and_rate(pauses: list[float], rate: int) -> None:
    """However it is asked: within any time no more than a second's worth and what the time gives."""
    clock = Clock(0.0)
    bucket = Bucket(rate, clock)
    taken = 0
    for pause in pauses:
        clock.now += pause
        taken += bucket.take() == 0
    assert taken <= rate + clock.now * rate + 1e-6


async def test_users_have_buckets_of_their_own() -> None:
    """One that publishes too often takes nothing from the others."""
    rates = Rates(1, Clock())
    assert [await rates.take(user) for user in ("ann", "ann", "bob")] == [0, 1, 0]


async def test_users_do_not_add_up_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only so many buckets are kept: the user who was away longest begins anew."""
    monkeypatch.setattr(limits, "_MAX_USERS", 3)
    rates = Rates(1, Clock())
    for user in ("ann", "bob", "cay", "ann", "dee"):
        await rates.take(user)
    assert list(rates._buckets) == ["cay", "ann", "dee"]
