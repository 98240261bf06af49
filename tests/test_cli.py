"""The command, as a process: its flags, its exit codes, and one line where it cannot do what it is asked to."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gateway import __version__
from gateway.settings import Settings


def gateway(*args: str, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
    return subprocess.run(
        [sys.executable, "-m", "gateway", *args],
        cwd=cwd,
        env={**clean, "COLUMNS": "200", "NO_COLOR": "1", **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_version_is_told(tmp_path: Path) -> None:
    """And is the package's."""
    done = gateway("version", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"gateway {__version__} ")


@pytest.mark.parametrize("command", ["serve", "check"])
def test_every_setting_is_a_flag(command: str, tmp_path: Path) -> None:
    """Named like its variable, with its default and its help."""
    done = gateway(command, "--help", cwd=tmp_path)
    assert done.returncode == 0
    for name in Settings.model_fields:
        assert f"--{name.replace('_', '-')} " in done.stdout
    assert "[default: sqlite:gateway.db]" in done.stdout


@pytest.mark.parametrize(
    "args",
    [
        ("--port", "eighty"),
        ("serve", "--port", "eighty"),
        ("check", "--port", "eighty"),
    ],
)
def test_a_bad_setting_is_a_usage_error_in_one_line(args: tuple[str, ...], tmp_path: Path) -> None:
    """Flags without a command are those of serve."""
    done = gateway(*args, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("GATEWAY_PORT: ")
    assert done.stderr.count("\n") == 1


def test_a_bad_variable_is_a_usage_error_too(tmp_path: Path) -> None:
    """The same line, wherever the setting came from."""
    done = gateway(cwd=tmp_path, GATEWAY_STORE="postgres://h")
    assert done.returncode == 2
    assert done.stderr.startswith("GATEWAY_STORE: ")


@pytest.mark.parametrize(
    "args", [("--no-such-flag",), ("serve", "--no-such-flag"), ("no-such-command",), ("serve", "x")]
)
def test_an_unknown_flag_or_command_is_a_usage_error(args: tuple[str, ...], tmp_path: Path) -> None:
    """As every command has it."""
    assert gateway(*args, cwd=tmp_path).returncode == 2


@pytest.mark.parametrize("command", ["serve", "check"])
def test_an_open_gateway_refuses_the_network(command: str, tmp_path: Path) -> None:
    """Without keys, on an address that is not loopback: exit 3 and one line that says what to do."""
    done = gateway(command, "--host", "0.0.0.0", "--store", "memory:", cwd=tmp_path)
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert "--insecure-open" in done.stderr


def test_check_shows_what_is_in_force_and_tries_the_store(tmp_path: Path) -> None:
    """Flag over environment over default, secrets as `set`, warnings on stderr, the store opened for real."""
    done = gateway(
        "check",
        "--port",
        "9001",
        cwd=tmp_path,
        GATEWAY_PORT="9000",
        GATEWAY_JWT_SECRET="a short one",
        GATEWAY_STROE="memory:",
    )
    assert done.returncode == 0, done.stderr
    rows = {cells[1]: cells[2] for line in done.stdout.splitlines() if len(cells := line.split("│")) == 4}
    shown = {name.strip(): value.strip() for name, value in rows.items()}
    assert shown["GATEWAY_PORT"] == "9001"
    assert shown["GATEWAY_JWT_SECRET"] == "set"
    assert shown["GATEWAY_STORE"] == "sqlite:gateway.db"
    assert "a short one" not in done.stdout + done.stderr
    assert "did you mean GATEWAY_STORE?" in done.stderr
    assert "GATEWAY_JWT_SECRET is shorter" in done.stderr
    assert (tmp_path / "gateway.db").exists()


@pytest.mark.parametrize("command", ["serve", "check"])
def test_a_store_that_cannot_be_opened_is_told_in_one_line(command: str, tmp_path: Path) -> None:
    """A file that is no log: exit 3, no traceback."""
    (tmp_path / "broken.db").write_bytes(b"this is no database, whatever its name says" * 100)
    done = gateway(command, "--port", "0", "--store", "sqlite:broken.db", cwd=tmp_path)
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    assert "broken.db" in done.stderr.splitlines()[-1]


def test_a_taken_port_is_told_in_one_line(tmp_path: Path) -> None:
    """Exit 3, no traceback."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = gateway("--port", port, "--store", "memory:", cwd=tmp_path)
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    assert "ddress already in use" in done.stderr.splitlines()[-1]
