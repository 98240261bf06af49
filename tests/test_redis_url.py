"""URLs of a Redis: what they name, and what is wrong with them."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.redis_url import RedisUrl, parse_redis_url


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("redis://h", RedisUrl("single", False, (("h", 6379),), None, None)),
        ("redis://:p%40ss@h:1/3", RedisUrl("single", False, (("h", 1),), None, "p@ss", db=3)),
        ("rediss://u:p%3A@[::1]:2/", RedisUrl("single", True, (("::1", 2),), "u", "p:")),
        (
            "redis+sentinel://a,b:5/orders/2",
            RedisUrl("sentinel", False, (("a", 26379), ("b", 5)), None, None, "orders", 2),
        ),
        ("rediss+sentinel://u:p@a/s", RedisUrl("sentinel", True, (("a", 26379),), "u", "p", "s")),
        ("redis+cluster://a:1,b:2", RedisUrl("cluster", False, (("a", 1), ("b", 2)), None, None)),
        ("rediss+cluster://a/0", RedisUrl("cluster", True, (("a", 6379),), None, None)),
    ],
)
def test_what_a_url_names(text: str, expected: RedisUrl) -> None:
    """Hosts with their ports, user and password as they are, the service, the database."""
    assert parse_redis_url(text) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("http://h", "must be redis"),
        ("redis:h", "must be redis"),
        ("redis://", "HOST"),
        ("redis://h:0", "port"),
        ("redis://h:65536", "port"),
        ("redis://h:x", "port"),
        ("redis://a,b", "one host"),
        ("redis://user@h", "without a password"),
        ("redis://h/x", "number of a database"),
        ("redis://h/1/2", "number of a database"),
        ("redis+sentinel://h", "lacks the service"),
        ("redis+cluster://h/1", "has only 0"),
        ("redis://h?ssl_ca_certs=/x", "needs TLS"),
        ("rediss://h?ssl_ca_certs=/not/there", "not there"),
        ("rediss://h?timeout=3", "unknown"),
    ],
)
def test_what_is_wrong_with_a_url(text: str, reason: str) -> None:
    """Is said in words, which never have the URL in them."""
    with pytest.raises(ValueError, match=reason):
        parse_redis_url(text)


def test_certificates_stand_in_the_query(tmp_path: Path) -> None:
    """Files that are there; a key goes with a certificate."""
    file = tmp_path / "x.pem"
    file.touch()
    url = parse_redis_url(f"rediss://h?ssl_ca_certs={file}&ssl_certfile={file}&ssl_keyfile={file}")
    assert [name for name, _ in url.tls_files] == ["ssl_ca_certs", "ssl_certfile", "ssl_keyfile"]
    with pytest.raises(ValueError, match="without ssl_certfile"):
        parse_redis_url(f"rediss://h?ssl_keyfile={file}")


@given(st.text(max_size=30).map(lambda rest: "redis://" + rest))
def test_no_text_does_worse_than_value_error(text: str) -> None:
    """And a place never tells user or password."""
    try:
        url = parse_redis_url(text)
    except ValueError:
        return
    assert "@" not in str(url) or "@" in url.hosts[0][0]
