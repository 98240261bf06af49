"""RedisUrl: where a Redis is, as a setting says it. Nothing here connects.

redis://USER:PASSWORD@HOST:PORT/DB, with rediss for TLS; redis+sentinel://HOST:PORT,HOST:PORT/SERVICE/DB and
redis+cluster://HOST:PORT,HOST:PORT name several hosts. Behind ssl_ca_certs, ssl_certfile and ssl_keyfile in the query
stand PEM files: an authority of one's own, and a client's certificate with its key.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal
from urllib.parse import parse_qsl, unquote

Kind = Literal["single", "sentinel", "cluster"]

KINDS: Final[dict[str, Kind]] = {"redis": "single", "redis+sentinel": "sentinel", "redis+cluster": "cluster"}
SCHEMES: Final = frozenset(KINDS) | {each.replace("redis", "rediss", 1) for each in KINDS}
_PORTS: Final[dict[Kind, int]] = {"single": 6379, "sentinel": 26379, "cluster": 6379}
_TLS_FILES: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """`tls_files` are redis-py's own names for the PEM files. `str` of it is without user and password."""

    kind: Kind
    tls: bool
    hosts: tuple[tuple[str, int], ...]
    username: str | None = field(repr=False)
    password: str | None = field(repr=False)
    service: str = ""
    db: int = 0
    tls_files: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        hosts = ", ".join(
            f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts
        )
        return f"{self.service} of the Sentinels at {hosts}" if self.service else hosts


def is_redis_url(text: str) -> bool:
    return text.partition("://")[0] in SCHEMES


def parse_redis_url(text: str) -> RedisUrl:
    """Raises ValueError, which never tells the text: it may have a password."""
    scheme, found, rest = text.partition("://")
    if not found or scheme not in SCHEMES:
        raise ValueError("must be redis://HOST:PORT/DB, rediss://…, redis+sentinel://… or redis+cluster://…")
    tls = scheme.startswith("rediss")
    kind = KINDS[scheme.replace("rediss", "redis", 1)]
    rest, _, query = rest.partition("?")
    place, _, path = rest.partition("/")
    login, _, hosts = place.rpartition("@")
    username, password = _login(login)
    service, db = _path(kind, [each for each in path.split("/") if each])
    listed = tuple(_host(each, _PORTS[kind]) for each in hosts.split(","))
    if kind == "single" and len(listed) > 1:
        raise ValueError("names one host; several are for redis+sentinel:// and redis+cluster://")
    return RedisUrl(kind, tls, listed, username, password, service, db, _tls_files(query, tls=tls))


def _login(text: str) -> tuple[str | None, str | None]:
    user, colon, password = text.partition(":")
    if text and not colon:
        raise ValueError("has a user without a password: write USER:PASSWORD@, or :PASSWORD@")
    return unquote(user) or None, unquote(password) or None


def _path(kind: Kind, parts: list[str]) -> tuple[str, int]:
    """The service and the database."""
    service = ""
    if kind == "sentinel":
        if not parts:
            raise ValueError("lacks the service that the Sentinels watch: redis+sentinel://HOST:PORT/SERVICE")
        service = unquote(parts.pop(0))
    if not parts:
        return service, 0
    if len(parts) > 1 or not (parts[0].isascii() and parts[0].isdecimal()):
        raise ValueError("ends with the number of a database, or with none: redis://HOST:PORT/0")
    if kind == "cluster" and int(parts[0]):
        raise ValueError("names a database, but a cluster has only 0")
    return service, int(parts[0])


def _host(text: str, default: int) -> tuple[str, int]:
    if text.startswith("["):
        host, _, port = text[1:].partition("]")
        port = port.removeprefix(":")
    else:
        host, _, port = text.partition(":")
    if not host or (port and not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536)):
        raise ValueError("must have a host and a port from 1 to 65535: redis://HOST:PORT/DB")
    return unquote(host), int(port) if port else default


def _tls_files(query: str, *, tls: bool) -> tuple[tuple[str, str], ...]:
    given = parse_qsl(query, keep_blank_values=True)
    for name, value in given:
        if name not in _TLS_FILES:
            raise ValueError(f"has a parameter that is unknown here: known are {', '.join(_TLS_FILES)}")
        if not tls:
            raise ValueError(f"has {name}, which needs TLS: rediss://")
        if not Path(value).is_file():
            raise ValueError(f"names a file for {name} that is not there")
    names = {name for name, _ in given}
    if "ssl_keyfile" in names and "ssl_certfile" not in names:
        raise ValueError("has ssl_keyfile without ssl_certfile")
    return tuple(given)
