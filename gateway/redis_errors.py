"""What went wrong with a Redis, in one line that says what to do. Never with a user, a password or a URL."""

import errno
import re
import socket
import ssl
from typing import Final

from redis import exceptions

CUT: Final = "the connection was cut"
SILENT: Final = "it does not answer"

# By what Redis's own answer begins with, or has in it.
_ANSWERS: Final = {
    "WRONGPASS": "it refuses the user or the password of the URL",
    "NOAUTH": "it wants a password: write redis://:PASSWORD@HOST or redis://USER:PASSWORD@HOST",
    "NOPERM": "the user of the URL may not do this",
    "OOM": "it has no memory left (maxmemory): give it more, or keep less by GATEWAY_RETENTION_EVENTS",
    "READONLY": "it is a replica, which takes no writes: name its master, or its Sentinels",
    "MISCONF": "it cannot write to its disk and takes no writes",
    "LOADING": "it is still loading its data",
    "CLUSTERDOWN": "the cluster is down",
    "MASTERDOWN": "its master is down",
    "NOREPLICAS": "it has too few replicas to take writes (min-replicas-to-write)",
    "BUSY": "it is busy with a script",
    "WRONGTYPE": "WRONGTYPE: there is a key of another type under this name",
    "TRYAGAIN": "the cluster is moving the key",
    "Authentication required": "it wants a password: write redis://:PASSWORD@HOST or redis://USER:PASSWORD@HOST",
    "Cluster mode is not enabled": "it is no cluster: write redis://",
    "invalid username-password": "it refuses the user or the password of the URL",
    "max number of clients": "it takes no more clients (maxclients)",
    "called without any password": "it has no password, and the URL has one: leave it out",
    "No connection available": "all connections to it are in use",
}
_KINDS: Final = (
    (exceptions.MaxConnectionsError, "all connections to it are in use"),
    (exceptions.BusyLoadingError, _ANSWERS["LOADING"]),
    (exceptions.ReadOnlyError, _ANSWERS["READONLY"]),
    (exceptions.OutOfMemoryError, _ANSWERS["OOM"]),
    (exceptions.ClusterDownError, _ANSWERS["CLUSTERDOWN"]),
)
_NUMBERS: Final = {
    errno.ECONNREFUSED: "nobody listens there",
    errno.ECONNRESET: CUT,
    errno.EPIPE: CUT,
    errno.EHOSTUNREACH: "there is no way to it",
    errno.ENETUNREACH: "there is no way to it",
    errno.ETIMEDOUT: SILENT,
}
_TLS: Final = (
    ("certificate verify failed: hostname", "its certificate is for another name"),
    ("hostname mismatch", "its certificate is for another name"),
    ("ip address mismatch", "its certificate is for another address"),
    ("certificate has expired", "its certificate has expired"),
    (
        "certificate verify failed",
        "its certificate is not signed by an authority that is trusted here: name it by ?ssl_ca_certs=FILE",
    ),
    (
        "certificate required",
        "it wants a client's certificate: name it by ?ssl_certfile=FILE&ssl_keyfile=FILE",
    ),
    ("unknown ca", "it does not trust the client's certificate"),
    ("wrong version number", "it does not speak TLS there: write redis:// in place of rediss://"),
    ("record layer failure", "it does not speak TLS there: write redis:// in place of rediss://"),
)
_MAX_TEXT: Final = 300
_SPACES: Final = re.compile(r"\s+")
# Redis and redis-py tell of users, arguments and whole commands, which may be secrets and orders.
_TOLD: Final = re.compile(
    r"(?<=\buser) \S+(?= has no permissions)|, with args beginning with:.*|Command # \d+ \(.*\) of pipeline caused error: ",
    re.IGNORECASE | re.DOTALL,
)


def explain(error: BaseException) -> str:
    """The reason, in one line."""
    causes = list(_causes(error))
    for find in (_tls, _answer, _number):
        for each in causes:
            reason = find(each)
            if reason is not None:
                return reason
    return _text(error)


def _causes(error: BaseException | None) -> "list[BaseException]":
    """The error and what it comes from."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _answer(error: BaseException) -> str | None:
    """For what Redis itself has answered: redis-py has types for some of it, and leaves the first word off."""
    if isinstance(error, exceptions.NoPermissionError):
        return f"{_ANSWERS['NOPERM']} ({_text(error)})"
    for kind, reason in _KINDS:
        if isinstance(error, kind):
            return reason
    ours = isinstance(error, (exceptions.RedisError, exceptions.RedisClusterException))
    text = str(error)
    return next((told for word, told in _ANSWERS.items() if ours and re.search(rf"\b{word}\b", text)), None)


def _tls(error: BaseException) -> str | None:
    if not isinstance(error, ssl.SSLError) and "ssl" not in str(error).lower():
        return None
    text = str(error).lower().replace("_", " ")
    reason = next((told for part, told in _TLS if part in text), None)
    return reason or (f"TLS failed ({_text(error)})" if isinstance(error, ssl.SSLError) else None)


def _number(error: BaseException) -> str | None:
    if isinstance(error, socket.gaierror):
        return "its name is not known"
    if isinstance(error, (exceptions.TimeoutError, TimeoutError)):
        return SILENT
    number = getattr(error, "errno", None)
    if number in _NUMBERS:
        return _NUMBERS[number]
    text = str(error).lower()
    if "connection closed by server" in text or "connection lost" in text:
        return CUT
    return next((told for code, told in _NUMBERS.items() if f"error {code} " in text), None)


def _text(error: BaseException) -> str:
    return _SPACES.sub(" ", _TOLD.sub("", str(error))).strip()[:_MAX_TEXT] or type(error).__name__
