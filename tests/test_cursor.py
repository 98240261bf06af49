"""Cursors: one place, one text, and no text for what is no place."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.cursor import Cursors, Place

KEY = "a key for the cursors"
TOP = (1 << 63) - 1
plain, sealed = Cursors(), Cursors(KEY)
offsets = st.integers(0, TOP)
places = st.builds(Place, st.from_regex(r"[0-9a-z]{1,16}", fullmatch=True), offsets, st.none() | offsets)


@settings(max_examples=300)
@given(places)
def test_decode_undoes_encode(place: Place) -> None:
    """Every place comes back from its text, sealed or not."""
    for cursors in (plain, sealed):
        assert cursors.decode(cursors.encode_place(place)) == place


@settings(max_examples=300)
@given(st.text() | st.from_regex(r"[0-9a-z]{1,18}\.[0-9]{1,20}(-[0-9]{1,20})?", fullmatch=True))
def test_a_text_is_a_place_or_a_value_error(text: str) -> None:
    """Nothing else is ever raised, and what is taken is the one text of its place."""
    for cursors in (plain, sealed):
        try:
            place = cursors.decode(text)
        except ValueError:
            continue
        assert cursors.encode_place(place) == text


@pytest.mark.parametrize(
    "text",
    [
        "", ".", "k3x", "k3x.", ".1", "k3x.-1", "k3x.01", "k3x.00", "k3x.1-", "k3x.1-02", "k3x.1-2-3", "K3X.1",
        "k3x.1 ", " k3x.1", "k3x.1\n", "k3x.\uff11", "k3x.\u0661", "k3x.1.2", "k_x.1", "a" * 17 + ".1",
        f"k3x.{TOP + 1}", f"k3x.1-{TOP + 1}", "k3x." + "9" * 5000,
    ],
)  # fmt: skip
def test_malformed_texts_are_refused(text: str) -> None:
    """Other digits, leading zeros, other letters, and offsets beyond 63 bits are no cursors."""
    with pytest.raises(ValueError, match="cursor"):
        plain.decode(text)


def test_the_text_is_epoch_dot_offset() -> None:
    """As every client may see it in logs; within a snapshot with where that began."""
    assert plain.encode("k3x", 1042) == "k3x.1042"
    assert plain.encode("k3x", 0, 99) == "k3x.0-99"


@settings(max_examples=100)
@given(places)
def test_a_sealed_cursor_is_deterministic_and_opaque(place: Place) -> None:
    """Two nodes with the same key write the same text for a place, of one length, in lower-case base32."""
    text = sealed.encode_place(place)
    assert text == Cursors(KEY).encode_place(place)
    assert len(text) == 77
    assert set(text) <= set("abcdefghijklmnopqrstuvwxyz234567")


@settings(max_examples=150)
@given(places, st.integers(0, 76), st.sampled_from("abcdefghijklmnopqrstuvwxyz234567"))
def test_a_seal_does_not_survive_any_change(place: Place, at: int, letter: str) -> None:
    """One letter changed, and it is no cursor; that is also so for the last, which has bits to spare."""
    text = sealed.encode_place(place)
    forged = text[:at] + letter + text[at + 1 :]
    if forged != text:
        with pytest.raises(ValueError, match="seal"):
            sealed.decode(forged)


@settings(max_examples=50)
@given(places)
def test_a_seal_is_of_its_key(place: Place) -> None:
    """Another key's cursors, plain ones and upper case are refused."""
    text = sealed.encode_place(place)
    for forged in (
        Cursors("another key").encode_place(place),
        plain.encode_place(place),
        text.upper(),
        text + "=",
    ):
        with pytest.raises(ValueError, match="seal"):
            sealed.decode(forged)


def test_neighbours_look_unlike() -> None:
    """Nobody counts other people's orders by the cursors of their own."""
    texts = [sealed.encode("k3x", offset) for offset in range(100)]
    assert len({text[:8] for text in texts}) == 100
    assert len({text[-8:] for text in texts}) == 100
