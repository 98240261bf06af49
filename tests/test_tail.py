"""The tail: a window on the log's end, bounded by entries and by bytes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.tail import Tail
from tests.support.core import History, body_of


@settings(max_examples=200)
@given(
    sizes=st.lists(st.integers(0, 400), max_size=80),
    max_entries=st.integers(1, 12),
    max_bytes=st.integers(50, 2000),
    begin=st.integers(0, 5),
)
def test_the_window_is_the_end_of_the_log(
    sizes: list[int], max_entries: int, max_bytes: int, begin: int
) -> None:
    """After each append it holds a dense run up to the newest entry, within both limits, and tells what it covers."""
    history = History()
    skipped = history.extend([body_of() for _ in range(begin)])
    tail = Tail(len(skipped), max_entries=max_entries, max_bytes=max_bytes)
    for size in sizes:
        tail.extend([history.add(body_of(data="x" * size))])
        head = len(history.entries)
        kept = tail.between(tail.after, head)
        assert [entry.offset for entry in kept] == list(range(tail.after + 1, head + 1))
        assert len(kept) <= max_entries
        assert sum(len(each.json) + len(each.previous or b"") for each in kept) <= max_bytes
        for after in range(head + 2):
            assert tail.covers(after) == (after >= tail.after)
            assert (tail.get(after) is None) == (not tail.after < after <= head)


@settings(max_examples=100)
@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 12))
def test_between_is_a_slice_of_the_log(after: int, upto: int, max_entries: int) -> None:
    """Exactly the entries with after < offset <= upto, wherever the window's list was cut."""
    history = History()
    tail = Tail(0, max_entries=max_entries)
    for _ in range(25):
        tail.extend([history.add(body_of())])
    if tail.covers(after):
        wanted = [entry for entry in history.entries if after < entry.offset <= upto]
        assert list(tail.between(after, upto)) == wanted


def test_it_keeps_as_much_as_it_may() -> None:
    """Nothing leaves the window before a limit is passed, and then only the oldest."""
    history = History()
    tail = Tail(0, max_entries=4)
    for entry in history.extend([body_of() for _ in range(4)]):
        tail.extend([entry])
    assert tail.after == 0
    tail.extend([history.add(body_of())])
    assert (tail.after, tail.get(1), tail.get(2)) == (1, None, history.entries[1])


@pytest.mark.parametrize("size", [0, 3])
def test_an_entry_larger_than_the_window_passes_through(size: int) -> None:
    """The window is empty then, and stands at the head: whoever is behind asks the store."""
    history = History()
    tail = Tail(0, max_bytes=1000)
    for _ in range(size):
        tail.extend([history.add(body_of())])
    tail.extend([history.add(body_of(data="x" * 2000))])
    assert tail.after == size + 1
    assert tail.between(size + 1, size + 1) == []
