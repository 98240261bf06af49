"""The settings: where they come from, what is refused, what is warned of, and that there is one table."""

import re
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from gateway.settings import (
    Settings,
    SettingsError,
    effective,
    load,
    refusal,
    settings_table,
    unknown_names,
    warnings,
)

SECRET = "a secret of more than thirty-two bytes"
PEM = (
    ec.generate_private_key(ec.SECP256R1())
    .public_key()
    .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    .decode()
)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may have settings of their own."""
    for name, _, _ in settings_table():
        monkeypatch.delenv(name, raising=False)


def fault(**given: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        load(**given)
    assert len(caught.value.lines) == 1
    return caught.value.lines[0]


def test_the_table_names_every_setting_with_its_default_and_help() -> None:
    """What `--help` and the README show is the table that is read."""
    table = settings_table()
    assert [name for name, _, _ in table] == [f"GATEWAY_{name.upper()}" for name in Settings.model_fields]
    assert all(shown and text for _, shown, text in table)
    rows = {name: shown for name, shown, _ in table}
    assert rows["GATEWAY_RETENTION_AGE"] == "7d"
    assert rows["GATEWAY_ORIGINS"] == "same origin"
    assert rows["GATEWAY_JWT_SECRET"] == "none"
    assert rows["GATEWAY_INSECURE_OPEN"] == "false"


def test_a_default_as_it_is_shown_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing the shown default into the environment changes nothing."""
    before = load()
    for name, shown, _ in settings_table():
        if shown != "none" and " " not in shown:
            monkeypatch.setenv(name, shown)
    assert load() == before


def test_a_flag_wins_over_the_environment_and_that_over_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three places, in this order."""
    assert load().port == 8000
    monkeypatch.setenv("GATEWAY_PORT", "9000")
    assert load().port == 9000
    assert load(port="9001").port == 9001


def test_settings_cannot_be_changed() -> None:
    """They are read once and hold for the process."""
    with pytest.raises(ValueError, match="frozen"):
        load().port = 1


def test_lists_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the environment and in a flag, spaces around the commas apart; an empty text is an empty list."""
    monkeypatch.setenv("GATEWAY_TRUSTED_PROXIES", "10.0.0.0/8 , ::1,")
    assert load().trusted_proxies == ("10.0.0.0/8", "::1")
    assert load(trusted_proxies="").trusted_proxies == ()
    assert load(store="redis://h", pubsub="orders,shop.*").pubsub == ("orders", "shop.*")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("7d", 604800), ("12h", 43200), ("30m", 1800), ("45s", 45), ("90", 90), ("1.5h", 5400), ("0.25", 0.25)],
)
def test_a_time_has_a_unit_or_is_seconds(text: str, seconds: float) -> None:
    """d, h, m, s, or none."""
    assert load(retention_age=text).retention_age == seconds


@pytest.mark.parametrize(("text", "seconds"), [("10", 10), ("0", 0), ("2.5", 2.5), ("10s", 10), ("1m", 60)])
def test_a_drain_takes_a_time_too(text: str, seconds: float) -> None:
    """Though its name says seconds; it may take none at all."""
    assert load(drain_seconds=text).drain_seconds == seconds


def test_an_empty_variable_is_an_unset_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As compose files write it; above all an empty secret is no secret."""
    for name in ("GATEWAY_PORT", "GATEWAY_JWT_SECRET", "GATEWAY_OPS_PORT", "GATEWAY_RETENTION_AGE"):
        monkeypatch.setenv(name, "")
    assert load() == Settings()
    assert load().port == 8000
    assert not load().has_keys


@pytest.mark.parametrize(
    ("given", "name", "reason"),
    [
        ({"port": "tcp://10.0.0.1:8000"}, "PORT", "Kubernetes"),
        ({"port": "eighty"}, "PORT", "integer"),
        ({"port": "65536"}, "PORT", "65535"),
        ({"ops_port": "tcp://10.0.0.1:9000"}, "OPS_PORT", "Kubernetes"),
        ({"store": "postgres://h"}, "STORE", "sqlite:PATH"),
        ({"store": "sqlite:"}, "STORE", "sqlite:PATH"),
        ({"store": "memory"}, "STORE", "sqlite:PATH"),
        ({"store": "redis://"}, "STORE", "redis://HOST"),
        ({"store": "redis://h:99999"}, "STORE", "ort"),
        ({"ingest_redis": "http://h"}, "INGEST_REDIS", "redis://HOST"),
        ({"pubsub": "orders"}, "INGEST_REDIS", "need a Redis"),
        ({"streams": "orders"}, "INGEST_REDIS", "need a Redis"),
        ({"workers": "2"}, "WORKERS", "Redis store"),
        ({"workers": "0"}, "WORKERS", "1"),
        ({"port": "9000", "ops_port": "9000"}, "OPS_PORT", "another port"),
        ({"retention_events": "0"}, "RETENTION_EVENTS", "1"),
        ({"retention_age": "7 days"}, "RETENTION_AGE", "7d"),
        ({"retention_age": "0"}, "RETENTION_AGE", "0"),
        ({"retention_age": "1e9"}, "RETENTION_AGE", "7d"),
        ({"retention_age": "-1d"}, "RETENTION_AGE", "7d"),
        ({"flush_ms": "nan"}, "FLUSH_MS", "0"),
        ({"flush_ms": "-1"}, "FLUSH_MS", "0"),
        ({"drain_seconds": "3601"}, "DRAIN_SECONDS", "3600"),
        ({"drain_seconds": "2h"}, "DRAIN_SECONDS", "3600"),
        ({"drain_seconds": "inf"}, "DRAIN_SECONDS", "45s"),
        ({"drain_seconds": "-1"}, "DRAIN_SECONDS", "45s"),
        ({"message_rate": "0"}, "MESSAGE_RATE", "0"),
        ({"publish_rate": "inf"}, "PUBLISH_RATE", "less"),
        ({"index": "customerId"}, "INDEX", "payload path"),
        ({"index": "data.a..b"}, "INDEX", "payload path"),
        ({"jwt_secret": PEM}, "JWT_SECRET", "HMAC"),
        ({"jwt_public_key": "/nowhere/key.pem"}, "JWT_PUBLIC_KEY", "/nowhere/key.pem"),
        ({"jwt_public_key": "-----BEGIN PUBLIC KEY-----"}, "JWT_PUBLIC_KEY", "no PEM public key"),
        ({"jwks_url": "file:///etc/passwd"}, "JWKS_URL", "http"),
        ({"jwks_url": "https://"}, "JWKS_URL", "http"),
        ({"origins": "*"}, "ORIGINS", "*"),
        ({"origins": "https://shop.example,*"}, "ORIGINS", "*"),
        ({"origins": "https://shop.example/"}, "ORIGINS", "no origin"),
        ({"trusted_proxies": "proxy"}, "TRUSTED_PROXIES", "proxy"),
        ({"trusted_proxies": "10.0.0.1/8"}, "TRUSTED_PROXIES", "host bits"),
        ({"root_path": "/a b"}, "ROOT_PATH", "path"),
        ({"root_path": "https://x"}, "ROOT_PATH", "path"),
        ({"log_format": "xml"}, "LOG_FORMAT", "json"),
        ({"tls_cert": __file__}, "TLS_KEY", "missing"),
        ({"tls_key": __file__}, "TLS_CERT", "missing"),
        ({"tls_key": "/nowhere", "tls_cert": __file__}, "TLS_KEY", "file"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_that_names_the_setting(
    given: dict[str, str], name: str, reason: str
) -> None:
    """One line for each fault, with the variable first."""
    line = fault(**given)
    assert line.startswith(f"GATEWAY_{name}: ")
    assert reason in line
    assert "\n" not in line


def test_every_fault_is_told_at_once() -> None:
    """Not one a start."""
    with pytest.raises(SettingsError) as caught:
        load(port="x", store="y", flush_ms="z")
    assert [line.partition(":")[0] for line in caught.value.lines] == [
        "GATEWAY_PORT",
        "GATEWAY_STORE",
        "GATEWAY_FLUSH_MS",
    ]


def test_no_fault_tells_a_secret() -> None:
    """Neither a secret nor a URL's password stands in a message."""
    for given in (
        {"jwt_secret": PEM},
        {"store": "redis://:hunter2@h:99999"},
        {"store": "rediss://u:hunter2@"},
    ):
        line = fault(**given)
        assert "hunter2" not in line
        assert PEM.splitlines()[1] not in line


def test_a_public_key_is_text_or_a_file(tmp_path: Path) -> None:
    """A PEM, a PEM in one line with its line ends spelled out, or the path of a PEM file."""
    path = tmp_path / "key.pem"
    path.write_text(PEM)
    for given in (PEM, PEM.replace("\n", "\\n"), str(path)):
        assert load(jwt_public_key=given).jwt_public_key == PEM


@pytest.mark.parametrize(
    ("text", "path"), [("", ""), ("/", ""), ("gw", "/gw"), ("/gw/", "/gw"), ("/a/b", "/a/b")]
)
def test_a_root_path_begins_with_a_slash_and_ends_without(text: str, path: str) -> None:
    """However it is written; none is the empty text."""
    assert load(root_path=text).root_path == path


def test_the_ingests_listen_where_the_store_is() -> None:
    """Unless they are told otherwise."""
    assert load().redis_url is None
    assert load(store="redis://h/1").redis_url == "redis://h/1"
    assert load(store="redis://h/1", ingest_redis="redis://other").redis_url == "redis://other"
    assert load(ingest_redis="redis://other", pubsub="orders").redis_url == "redis://other"


def test_more_workers_with_a_redis_store() -> None:
    """They share its log."""
    assert load(store="rediss://h", workers="4").workers == 4


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_without_keys_loopback_is_fine(host: str) -> None:
    """Nobody else reaches it."""
    assert refusal(load(host=host)) is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "gw.example", "127.0.0.1.example"])
def test_without_keys_any_other_address_is_refused(host: str) -> None:
    """Unless one insists; the line says what to do. With a key of any kind it is fine."""
    line = refusal(load(host=host))
    assert line is not None
    assert "--insecure-open" in line
    assert "GATEWAY_JWT_SECRET" in line
    assert refusal(load(host=host, insecure_open=True)) is None
    assert refusal(load(host=host, jwt_secret=SECRET)) is None
    assert refusal(load(host=host, jwks_url="https://id.example/jwks")) is None
    assert refusal(load(host=host, jwt_public_key=PEM)) is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"jwt_secret": SECRET}, []),
        ({}, ["everyone may do everything"]),
        ({"host": "::", "insecure_open": True}, ["everyone may do everything", "--insecure-open"]),
        ({"host": "::", "jwt_secret": SECRET}, ["no TLS"]),
        ({"host": "::", "jwt_secret": SECRET, "tls_cert": __file__, "tls_key": __file__}, []),
        ({"jwt_secret": "short"}, ["GATEWAY_JWT_SECRET"]),
        ({"jwks_url": "http://id.example/jwks"}, ["GATEWAY_JWKS_URL"]),
        ({"jwt_secret": SECRET, "trusted_proxies": "*"}, ["GATEWAY_TRUSTED_PROXIES"]),
    ],
)
def test_every_insecure_choice_is_one_warning(given: dict[str, Any], words: list[str]) -> None:
    """And a secure one is none."""
    lines = warnings(load(**given))
    assert len(lines) == len(words)
    assert all(word in line for word, line in zip(words, lines, strict=True))


def test_a_misspelt_name_is_named_with_the_nearest() -> None:
    """A setting that silently does nothing would be found much later."""
    assert unknown_names(
        {"GATEWAY_STROE": "x", "HOME": "/", "GATEWAY_STORE": "memory:", "gateway_port": "1"}
    ) == ["GATEWAY_STROE is no setting; did you mean GATEWAY_STORE?"]
    assert unknown_names({"GATEWAY_XYZZY": ""}) == ["GATEWAY_XYZZY is no setting"]
    assert unknown_names({"GATEWAY_URL": "", "GATEWAY_TOKEN": ""}) == []  # the commands' own


def test_what_kubernetes_sets_is_no_misspelling() -> None:
    """For a Service named gateway, or gateway-something, every pod gets these."""
    names = [
        "GATEWAY_SERVICE_HOST",
        "GATEWAY_SERVICE_PORT",
        "GATEWAY_SERVICE_PORT_HTTP",
        "GATEWAY_PORT_8000_TCP",
        "GATEWAY_PORT_8000_TCP_ADDR",
        "GATEWAY_PORT_8000_TCP_PROTO",
        "GATEWAY_OPS_SERVICE_HOST",
        "GATEWAY_OPS_PORT_9000_TCP",
    ]
    assert unknown_names(dict.fromkeys(names, "x")) == []


def test_what_is_in_force_is_shown_without_secrets() -> None:
    """Secrets are `set`, passwords in URLs are stars."""
    shown = dict(
        effective(
            load(
                jwt_secret=SECRET,
                jwt_public_key=PEM,
                store="redis://user:hunter2@h:6379/0",
                trusted_proxies="::1,10.0.0.0/8",
            )
        )
    )
    assert shown["GATEWAY_JWT_SECRET"] == "set"
    assert shown["GATEWAY_JWT_PUBLIC_KEY"] == "set"
    assert shown["GATEWAY_CURSOR_KEY"] == "none"
    assert shown["GATEWAY_STORE"] == "redis://***@h:6379/0"
    assert shown["GATEWAY_TRUSTED_PROXIES"] == "::1,10.0.0.0/8"
    assert shown["GATEWAY_ORIGINS"] == "same origin"
    assert shown["GATEWAY_RETENTION_AGE"] == "604800"
    assert not re.search("hunter2|secret of|BEGIN", repr(shown))
    assert SECRET not in repr(load(jwt_secret=SECRET))
