"""Which subscription takes a message: patterns as Redis reads them."""

import random

import pytest

from gateway.ingest._subscriptions import Subscriptions, glob, is_pattern
from tests.support.redis_server import RedisServer

PATTERNS = [
    *(
        "*",
        "?",
        "a*",
        "*a",
        "a*b*c",
        "a?c",
        "[abc]",
        "[^abc]",
        "[a-c]x",
        "[c-a]",
        "[a-",
        "[",
        "[]",
        "[^]",
        "[]a]",
        "a]",
    ),
    *(
        "\\*",
        "a\\",
        "[\\]]",
        "[\\a-c]",
        "\\[a]",
        "orders.*",
        "orders.?",
        "{gateway}:mark",
        "ä*",
        "[ä]",
        "**",
        "*?*",
        "[a-]",
    ),
]
NAMES = [
    *"abcx*?[]\\^-]",
    "",
    "ab",
    "abc",
    "aXc",
    "aXbXc",
    "ax",
    "cx",
    "orders.a",
    "orders.",
    "orders.ab",
    "ä",
    "äb",
    "a]",
    "[a]",
    "\n",
    "a\nc",
]


def test_patterns_match_what_redis_says(redis_server: RedisServer) -> None:
    """Every pattern against every name, with Redis itself as the judge (KEYS matches as PSUBSCRIBE does)."""
    dice = random.Random(7)
    alphabet = "ab*?[]^-\\"
    patterns = [*PATTERNS, *("".join(dice.choices(alphabet, k=dice.randint(1, 6))) for _ in range(300))]
    names = [*NAMES, *("".join(dice.choices("ab-]^*", k=dice.randint(1, 4))) for _ in range(60))]
    names = [each for each in names if each]
    for name in names:
        redis_server.call("SET", name, 1)
    for pattern in patterns:
        expected = {each.decode() for each in redis_server.call("KEYS", pattern)}
        regex = glob(pattern.encode())
        assert {each for each in names if regex.fullmatch(each.encode())} == expected, pattern


def test_a_message_is_taken_by_the_first_that_matches() -> None:
    """However many subscriptions it is delivered for."""
    subscriptions = Subscriptions(["orders.*", "orders.eu", "*", "orders.?u"])
    assert (subscriptions.channels, subscriptions.patterns) == (
        ("orders.eu",),
        ("orders.*", "*", "orders.?u"),
    )
    for channel, by in ((b"orders.eu", b"orders.eu"), (b"orders.us", b"orders.*"), (b"other", b"*")):
        takers = [
            each
            for each in (b"orders.*", b"orders.eu", b"*", b"orders.?u")
            if subscriptions.takes(each, channel)
        ]
        assert takers == [by]
        assert subscriptions.name_of(channel) == by.decode()


@pytest.mark.parametrize(
    ("name", "expected"), [("orders", False), ("orders.*", True), ("a?", True), ("[a]", True)]
)
def test_names_without_special_characters_are_channels(name: str, expected: bool) -> None:
    """They are subscribed to by name, which costs Redis less than a pattern."""
    assert is_pattern(name) is expected
