"""What is said of the errors of a Redis: by what a real one answers in test_redis_clients.py, here by its words."""

import pytest
from redis import exceptions

from gateway.redis_errors import explain


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (exceptions.ResponseError("MISCONF Redis is configured to save RDB snapshots"), "its disk"),
        (exceptions.ResponseError("NOREPLICAS Not enough good replicas to write."), "too few replicas"),
        (exceptions.ResponseError("BUSY Redis is busy running a script."), "busy with a script"),
        (exceptions.BusyLoadingError("Redis is loading the dataset in memory"), "still loading"),
        (exceptions.ClusterDownError("The cluster is down"), "cluster is down"),
        (exceptions.ConnectionError("max number of clients reached"), "maxclients"),
        (exceptions.ConnectionError("No connection available."), "in use"),
        (exceptions.AuthenticationError("AUTH <password> called without any password"), "leave it out"),
    ],
)
def test_an_answer_is_said_in_words(error: Exception, words: str) -> None:
    """That say what is the matter."""
    assert words in explain(error)


def test_an_answer_is_known_by_a_whole_word() -> None:
    """A group that exists is no script that runs, and an order's words are none of Redis's."""
    assert "script" not in explain(exceptions.ResponseError("BUSYGROUP Consumer Group name already exists"))
    assert "memory" not in explain(exceptions.ResponseError("no such BATHROOM"))


@pytest.mark.parametrize(
    "error",
    [
        exceptions.NoPermissionError("User ann has no permissions to run the 'get' command"),
        exceptions.ResponseError("unknown command 'AUTH', with args beginning with: 'ann' 'geheim' "),
        exceptions.ResponseError("Command # 1 (SET ann geheim (1)\n) of pipeline caused error: ('ERR x',)"),
    ],
)
def test_users_and_arguments_are_left_out(error: Exception) -> None:
    """Redis and redis-py tell of them; they may be secrets, or the data of an order."""
    text = explain(error)
    assert "ann" not in text
    assert "geheim" not in text
    assert "\n" not in text
    assert text


def test_what_comes_from_something_is_said_by_it() -> None:
    """However often redis-py has wrapped it."""
    outer = exceptions.RedisClusterException("Redis Cluster cannot be connected")
    outer.__cause__ = exceptions.ConnectionError("Error 111 connecting to 127.0.0.1:1.")
    outer.__cause__.__context__ = ConnectionRefusedError(111, "Connect call failed")
    assert "nobody listens" in explain(outer)
