"""The settings: one table of names, defaults and help that the command, the README and the checks read.

A setting comes from a flag, else from its GATEWAY_ variable, else from its default. Whatever is wrong
is said in one line that names it.
"""

import difflib
import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BeforeValidator,
    Field,
    FilePath,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from gateway.keys import MIN_SECRET_BYTES, public_key, secret_key
from gateway.origins import Origins, is_loopback
from gateway.redis_url import is_redis_url, parse_redis_url

PREFIX: Final = "GATEWAY_"
_OF_COMMANDS: Final = frozenset({"url", "token"})  # for the commands that talk to a running gateway
_UNITS: Final = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)", re.ASCII)
# What Kubernetes sets in every pod for a Service: GATEWAY_SERVICE_HOST, GATEWAY_PORT_8000_TCP_ADDR, …
_KUBERNETES = re.compile(r"GATEWAY_(.*_)?(SERVICE_HOST|SERVICE_PORT(_.*)?|PORT(_\d+_(TCP|UDP|SCTP)(_.*)?)?)")


def _split(value: object) -> object:
    if not isinstance(value, str):
        return value
    return tuple(each for each in (part.strip() for part in value.split(",")) if each)


def _seconds(value: object) -> object:
    if not isinstance(value, str):
        return value
    match = _DURATION.fullmatch(value.strip())
    if match is None:
        raise ValueError("must be a time like 45s, 30m, 12h or 7d, or seconds")
    return float(match[1]) * _UNITS[match[2]]


def _port(value: object) -> object:
    if isinstance(value, str) and "://" in value:
        raise ValueError(
            "is what Kubernetes sets for a Service of that name: give the port, or set enableServiceLinks: false"
        )
    return value


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
Count = Annotated[int, Field(ge=1, le=10**12)]
Rate = Annotated[float, Field(gt=0, le=10**9)]
Seconds = Annotated[float, BeforeValidator(_seconds), Field(gt=0, le=100 * 365 * 86400)]
Port = Annotated[int, BeforeValidator(_port), Field(ge=0, le=65535)]


def _setting(default: Any, help_text: str, shown: str | None = None) -> Any:
    """A row of the table. `shown` is how the default reads where its value does not say it."""
    return Field(default=default, description=help_text, json_schema_extra={"shown": shown})


class Settings(BaseSettings):
    """Every setting. Times are in seconds, sizes in bytes."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, validate_default=True, extra="forbid", hide_input_in_errors=True
    )

    host: str = _setting("127.0.0.1", "address to listen on")
    port: Port = _setting(8000, "port to listen on")
    store: str = _setting(
        "sqlite:gateway.db", "where the log is: sqlite:PATH, memory:, redis://HOST:PORT/DB or rediss://…"
    )
    retention_events: Count = _setting(1_000_000, "how many events the log keeps")
    retention_age: Seconds = _setting("7d", "how long the log keeps an event")
    latest_age: Seconds = _setting(
        "30d", "how long a subject's latest event is kept, beyond the log's retention"
    )
    index: Names = _setting(
        "data.customerId",
        "payload paths by which snapshots and GET /orders find latest events without a scan",
    )
    ingest_redis: str | None = _setting(None, "Redis URL to take events from", "the store's, if Redis")
    pubsub: Names = _setting("", "Redis channels or patterns to take events from", "none")
    streams: Names = _setting("", "Redis streams to take events from", "none")
    workers: Count = _setting(1, "processes on this machine; more than one needs a Redis store")
    jwt_secret: SecretStr | None = _setting(None, "secret that verifies HS256 tokens")
    jwt_public_key: str | None = _setting(
        None, "PEM public key, or the path of a PEM file, that verifies RS256, ES256 or EdDSA tokens"
    )
    jwks_url: str | None = _setting(None, "URL of a JWK set whose keys verify tokens")
    cursor_key: SecretStr | None = _setting(None, "seals cursors; the same on all nodes")
    origins: Names = _setting("", "browser origins that may use the gateway", "same origin")
    trusted_proxies: Names = _setting(
        "127.0.0.1,::1", "addresses or networks whose X-Forwarded-For, -Proto and -Host count"
    )
    root_path: str = _setting("", "the prefix under which a proxy serves the gateway", "none")
    flush_ms: Annotated[float, Field(ge=0, le=1000)] = _setting(
        2, "least milliseconds between two writes to a channel; 0 = end of the loop's turn"
    )
    drain_seconds: Annotated[float, BeforeValidator(_seconds), Field(ge=0, le=3600)] = _setting(
        10, "over how long a stopping gateway sends its clients away"
    )
    ops_port: Port | None = _setting(
        None, "when set, /metrics, /console, /connections and /explain are served on this port alone"
    )
    log_format: Literal["text", "json"] | None = _setting(
        None, "text or json", "text on a terminal, else json"
    )
    insecure_open: bool = _setting(False, "without keys, serve everyone on an address that is not loopback")
    tls_cert: FilePath | None = _setting(None, "PEM certificate chain for TLS")
    tls_key: FilePath | None = _setting(None, "PEM private key for TLS")
    max_event_bytes: Count = _setting(65_536, "largest event, NDJSON line and client message")
    max_batch_events: Count = _setting(1000, "most events in a batch")
    max_batch_bytes: Count = _setting(8 * 1024 * 1024, "largest batch")
    request_timeout: Seconds = _setting("30s", "time for a request's head, and for a body's next byte")
    peer_timeout: Seconds = _setting("60s", "a vanished peer is gone within this")
    max_connections: Count = _setting(10_000, "most connections of this node")
    max_connections_per_token: Count = _setting(100, "most connections of one token's user")
    max_subscriptions: Count = _setting(100, "most subscriptions of one connection")
    message_rate: Rate = _setting(50, "most messages a second of one client")
    publish_rate: Rate | None = _setting(None, "most publish requests a second of one token's user")

    @property
    def has_keys(self) -> bool:
        """Whether tokens can be verified; without keys the gateway is open."""
        return bool(self.jwt_secret or self.jwt_public_key or self.jwks_url)

    @property
    def has_redis_store(self) -> bool:
        return is_redis_url(self.store)

    @property
    def redis_url(self) -> str | None:
        """Where the Redis ingests listen; None where there is no Redis."""
        return self.ingest_redis or (self.store if self.has_redis_store else None)

    @model_validator(mode="before")
    @classmethod
    def _drop_empty(cls, values: dict[str, Any]) -> dict[str, Any]:
        """An empty variable is an unset one, as compose files write it; an empty list is a list."""
        return {
            name: value
            for name, value in values.items()
            if value != "" or _is_list(cls.model_fields.get(name))
        }

    @field_validator("store")
    @classmethod
    def _check_store(cls, value: str) -> str:
        if value == "memory:" or (value.startswith("sqlite:") and value != "sqlite:"):
            return value
        if is_redis_url(value):
            return _checked_redis(value)
        raise ValueError(
            "must be sqlite:PATH, memory:, redis://HOST:PORT/DB, rediss://…, redis+sentinel://… or redis+cluster://…"
        )

    @field_validator("ingest_redis")
    @classmethod
    def _check_ingest_redis(cls, value: str | None) -> str | None:
        return value if value is None else _checked_redis(value)

    @field_validator("index")
    @classmethod
    def _check_index(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for path in value:
            if not path.startswith("data.") or "" in path.split("."):
                raise ValueError(f"{path!r} is no payload path: write data.customerId")
        return value

    @field_validator("jwt_secret")
    @classmethod
    def _check_secret(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            secret_key(value.get_secret_value())
        return value

    @field_validator("jwt_public_key")
    @classmethod
    def _read_public_key(cls, value: str | None) -> str | None:
        if value is None:
            return None
        # An environment file holds a PEM in one line, with \n spelled out.
        pem = value.replace("\\n", "\n") if value.lstrip().startswith("-----BEGIN") else _read(Path(value))
        public_key(pem)
        return pem

    @field_validator("jwks_url")
    @classmethod
    def _check_jwks_url(cls, value: str | None) -> str | None:
        if value is not None and (
            urlsplit(value).scheme not in ("http", "https") or not urlsplit(value).hostname
        ):
            raise ValueError("must be an http or https URL")
        return value

    @field_validator("origins")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "*" in value:
            raise ValueError("cannot be *: every page of the web could use the cookies of your users")
        Origins(value)
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _check_proxies(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for each in value:
            if each != "*":
                ipaddress.ip_network(each)
        return value

    @field_validator("root_path")
    @classmethod
    def _normalise_root_path(cls, value: str) -> str:
        path = "/" + value.strip("/") if value.strip("/") else ""
        if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)*", path):
            raise ValueError("must be a path like /gateway")
        return path

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.workers > 1 and not self.has_redis_store:
            raise ValueError("GATEWAY_WORKERS: more than one worker needs a Redis store: set GATEWAY_STORE")
        if self.ops_port and self.ops_port == self.port:
            raise ValueError("GATEWAY_OPS_PORT: must be another port than GATEWAY_PORT")
        if (self.tls_cert is None) != (self.tls_key is None):
            missing = "CERT" if self.tls_cert is None else "KEY"
            raise ValueError(f"GATEWAY_TLS_{missing}: is missing: TLS needs a certificate and its key")
        if (self.pubsub or self.streams) and self.redis_url is None:
            raise ValueError(
                "GATEWAY_INGEST_REDIS: is missing: GATEWAY_PUBSUB and GATEWAY_STREAMS need a Redis"
            )
        return self


class SettingsError(Exception):
    """Settings that are wrong: `lines` has one for each, which names the setting."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("; ".join(lines))
        self.lines = lines


def load(**given: Any) -> Settings:
    """The settings of the environment, with those given over them. Raises SettingsError."""
    try:
        return Settings(**given)
    except ValidationError as error:
        # Never with the value: it may be a secret, or a URL with a password.
        faults = error.errors(include_url=False, include_input=False)
        raise SettingsError([_line(each["loc"], each["msg"]) for each in faults]) from None


def _line(place: tuple[int | str, ...], message: str) -> str:
    reason = message.removeprefix("Value error, ")
    return f"{env_name(str(place[0]))}: {reason}" if place else reason


def env_name(field: str) -> str:
    """The environment variable of a field of Settings."""
    return PREFIX + field.upper()


def settings_table() -> list[tuple[str, str, str]]:
    """Each setting's variable, its default as one would write it, and its help."""
    return [
        (env_name(name), _shown_default(field), field.description or "")
        for name, field in Settings.model_fields.items()
    ]


def _shown_default(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    shown = extra.get("shown") if isinstance(extra, dict) else None
    return str(shown) if shown is not None else _text(field.default)


def _text(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return ",".join(value) if isinstance(value, tuple) else str(value)


def effective(settings: Settings) -> list[tuple[str, str]]:
    """Each setting's variable and its value in force; of secrets only whether they are set."""
    return [
        (env_name(name), _masked(getattr(settings, name)) or _shown_default(field))
        for name, field in Settings.model_fields.items()
    ]


def _masked(value: object) -> str:
    """The value as text, "" for one that is not set, without the secrets and passwords in it."""
    if value is None:
        return ""
    if isinstance(value, SecretStr):
        return "set"
    text = _text(value)
    if text.startswith("-----BEGIN"):
        return "set"
    return re.sub(r"(?<=://)[^/?#]*@", "***@", text)


def refusal(settings: Settings) -> str | None:
    """Why the gateway must not start with these settings, in one line; None where it may."""
    if settings.has_keys or settings.insecure_open or is_loopback(settings.host):
        return None
    return (
        f"without keys the gateway serves everyone, so it does not listen on {settings.host}: set GATEWAY_JWT_SECRET, "
        "GATEWAY_JWT_PUBLIC_KEY or GATEWAY_JWKS_URL, or give --insecure-open"
    )


def warnings(settings: Settings) -> list[str]:
    """One line for each insecure choice."""
    secret = settings.jwt_secret.get_secret_value() if settings.jwt_secret else None
    checks = [
        (not settings.has_keys, "there are no keys: everyone may do everything"),
        (
            settings.insecure_open and not settings.has_keys and not is_loopback(settings.host),
            f"--insecure-open: everyone who reaches {settings.host} may do everything",
        ),
        (
            settings.has_keys and settings.tls_cert is None and not is_loopback(settings.host),
            "there is no TLS: tokens travel in clear text, unless a proxy in front ends TLS",
        ),
        (
            secret is not None and len(secret.encode()) < MIN_SECRET_BYTES,
            f"GATEWAY_JWT_SECRET is shorter than {MIN_SECRET_BYTES} bytes: it can be guessed",
        ),
        ((settings.jwks_url or "").startswith("http:"), "GATEWAY_JWKS_URL is not https: keys can be forged"),
        (
            "*" in settings.trusted_proxies,
            "GATEWAY_TRUSTED_PROXIES is *: every client may claim any address and host",
        ),
    ]
    return [line for applies, line in checks if applies]


def unknown_names(environ: Mapping[str, str]) -> list[str]:
    """One line for each GATEWAY_ variable that is no setting, with the nearest that is.

    What Kubernetes sets for a Service named gateway is left out.
    """
    names = [name for name in sorted(environ) if name.upper().startswith(PREFIX)]
    strangers = [each for each in names if not _is_known(each) and not _KUBERNETES.fullmatch(each)]
    return [f"{each} is no setting{_hint(each)}" for each in strangers]


def _is_known(name: str) -> bool:
    field = name.upper().removeprefix(PREFIX).lower()
    return field in Settings.model_fields or field in _OF_COMMANDS


def _hint(name: str) -> str:
    nearest = difflib.get_close_matches(name.upper().removeprefix(PREFIX).lower(), Settings.model_fields, n=1)
    return f"; did you mean {env_name(nearest[0])}?" if nearest else ""


def _is_list(field: FieldInfo | None) -> bool:
    return field is not None and field.annotation == tuple[str, ...]


def _checked_redis(url: str) -> str:
    parse_redis_url(url)
    return url


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot be read from {path}: {error}") from None
