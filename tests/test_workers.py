"""Several processes on one port: how they start, how one that dies comes back, and how all stop."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.listeners import hold, listen
from gateway.settings import Settings, load
from gateway.workers import Worker, Workers, environment
from tests.support.workers import SupervisedProgram, supervised


def test_all_workers_serve_one_port(tmp_path: Path) -> None:
    """A free one where 0 was asked for; it is told once all are ready, and new clients find each of them."""
    with supervised(tmp_path, 3) as program:
        assert program.port > 0
        assert len(program.serving(3)) == 3
        assert program.output.count("serving ") == 1


def test_a_dead_worker_is_replaced(tmp_path: Path) -> None:
    """At once, by another process, and one line says how it died; the others live on."""
    with supervised(tmp_path) as program:
        killed, other = program.serving(2)
        os.kill(killed, signal.SIGKILL)
        program.wait_for(f"(pid {killed}) died: SIGKILL; it starts again in 0.0 s\n")
        program.wait_for("is ready\n")
        after = program.serving(2)
        assert other in after
        assert killed not in after
        assert program.output.count("died") == 1


def test_who_dies_again_and_again_is_replaced_later_and_later(tmp_path: Path) -> None:
    """Its exit code is told each time."""
    with supervised(tmp_path) as program:
        killed = program.serving(2).pop()
        (tmp_path / "crash").touch()
        os.kill(killed, signal.SIGKILL)
        program.wait_for("died: exit code 5; it starts again in 0.")
        (tmp_path / "crash").unlink()
        assert len(program.serving(2)) == 2


def test_pauses_grow_up_to_a_bound() -> None:
    """None after a first death, then doubled from death to death, up to half of it by chance."""
    shortest = Workers([], {}, 1, Path(), jitter=lambda: 0.0)
    longest = Workers([], {}, 1, Path(), jitter=lambda: 1.0)
    assert [longest._pause(deaths) for deaths in range(7)] == [0, 0, 0.5, 1, 2, 4, 8]
    assert [shortest._pause(deaths) for deaths in range(7)] == [0, 0, 0.25, 0.5, 1, 2, 4]
    assert longest._pause(1000) == 30


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_all_workers(tmp_path: Path, number: int) -> None:
    """And the exit is a success."""
    with supervised(tmp_path) as program:
        program.signal(number)
        assert program.wait() == 0
        assert program.notes == ["drained", "drained"]


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    """Whatever is being drained; the exit is a success all the same."""
    (tmp_path / "busy").touch()
    with supervised(tmp_path) as program:
        program.signal(signal.SIGTERM)
        program.wait_for_notes("asked", "asked")
        program.signal(signal.SIGINT)
        assert program.wait() == 0
        assert sorted(program.notes) == ["asked", "asked", "drained", "drained", "stopped", "stopped"]


def test_who_does_not_stop_is_killed(tmp_path: Path) -> None:
    """A moment after the second signal, and the exit says that it was none in order."""
    (tmp_path / "deaf").touch()
    with supervised(tmp_path) as program:
        program.signal(signal.SIGTERM)
        program.wait_for_notes("asked", "asked")
        program.signal(signal.SIGTERM)
        assert program.wait() == 1
        assert program.output.count("does not stop: killed") == 2
        assert program.notes == ["asked", "asked"]


def test_workers_do_not_outlive_their_supervisor(tmp_path: Path) -> None:
    """Not even one that was killed: they drain, and nothing is left behind."""
    with supervised(tmp_path) as program:
        program.serving(2)
        program.signal(signal.SIGKILL)
        assert program.wait() == -signal.SIGKILL
        assert sorted(program.notes) == ["drained", "drained", "orphaned", "orphaned"]
        assert not (tmp_path / "directory").exists()


def test_a_worker_that_cannot_start_says_why_once(tmp_path: Path) -> None:
    """Exit 3, with the one line of the first worker, since the others' would be the same."""
    (tmp_path / "fail").write_text("the store does not answer")
    with contextlib.closing(SupervisedProgram(tmp_path, 3)) as program:
        assert program.wait() == 3
        assert program.output == "the store does not answer\n"


def test_a_signal_while_workers_start_ends_them(tmp_path: Path) -> None:
    """Nothing has been served, so there is nothing to drain."""
    with supervised(tmp_path) as program:
        killed = program.serving(2).pop()
        (tmp_path / "crash").touch()  # until the signal comes there is always one that starts or waits to
        os.kill(killed, signal.SIGKILL)
        program.wait_for("exit code 5")
        program.signal(signal.SIGTERM)
        assert program.wait() == 0


# The port


def test_a_held_port_is_nobody_elses() -> None:
    """Neither another gateway's nor that of another one with workers, since they would share clients in silence."""
    with hold("127.0.0.1", 0) as held:
        port = held.getsockname()[1]
        with listen("127.0.0.1", port, shared=True), listen("127.0.0.1", port, shared=True):
            for take in (listen, hold):
                with pytest.raises(OSError, match=f"port {port}: Address already in use"):
                    take("127.0.0.1", port)


def test_a_port_that_was_just_in_use_can_be_held() -> None:
    """Connections that linger in TIME_WAIT are no obstacle to a restart."""
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            listener.setblocking(True)
            listener.accept()[0].close()
            assert client.recv(1) == b""
    hold("127.0.0.1", port).close()


# Settings


def test_workers_have_the_settings_of_their_supervisor() -> None:
    """Each one, wherever it came from, and exactly; a secret as itself, and what is not set stays so."""
    given = {
        "store": "redis://:pass@127.0.0.1:6379/1",
        "workers": "3",
        "retention_age": "36h",
        "request_timeout": "0.5",
        "index": "",
        "origins": "https://a.example, https://b.example",
        "jwt_secret": "a secret that is long enough for a test",
        "insecure_open": True,
        "publish_rate": "0.25",
        "flush_ms": "1.5",
    }
    settings = load(**given)
    variables = environment(settings)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
    code = (
        "from gateway.settings import *; s = load(); print(s.model_dump(), s.jwt_secret.get_secret_value())"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], env={**clean, **variables}, capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == f"{settings.model_dump()} {given['jwt_secret']}"


def test_a_default_gateway_passes_on_its_defaults() -> None:
    """So that a variable of the supervisor's environment cannot come in between."""
    defaults = Settings(store="memory:")
    assert load(**{name[8:].lower(): value for name, value in environment(defaults).items()}) == defaults


def test_a_place_is_told_as_it_is() -> None:
    """By one variable, which is no setting; a process without it is no worker."""
    place = Worker(2, Path("/tmp/some where"), 7)
    assert Worker.of({"ORDER_GATEWAY_WORKER": place.variable}) == place
    assert Worker.of({}) is None
