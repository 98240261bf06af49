"""What a gateway process holds: open connections, file descriptors, memory; and waiting for it to be so."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gateway.errors import KINDS
from tests.support.gateway import GatewayProcess
from tests.support.sockets import Answer, Peer, ask, request

PATIENCE: Final = 15.0  # seconds until a condition that does not come true fails the test
_PAUSE = 0.02


def eventually_equal(look: Callable[[], Any], expected: Any, *, within: float = PATIENCE) -> None:
    """Returns once `look` returns what is expected; fails with what it returned at last otherwise."""
    deadline = time.monotonic() + within
    while (last := look()) != expected:
        assert time.monotonic() < deadline, f"after {within} s still {last!r}, not {expected!r}"
        time.sleep(_PAUSE)


def eventually(condition: Callable[[], bool], *, within: float = PATIENCE) -> None:
    """Returns once the condition holds."""
    eventually_equal(condition, expected=True, within=within)


@dataclass(frozen=True, slots=True)
class Held:
    """What a process holds for its clients. `streams` are open streams and polls by the gauges."""

    streams: float
    subscriptions: float
    sockets: int


def metric(text: str, name: str) -> float:
    """The sum of a metric over its labels, from the text exposition."""
    lines = (line for line in text.splitlines() if line.startswith((f"{name} ", f"{name}{{")))
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def read_metrics(port: int, **headers: str) -> str:
    with Peer(port) as peer:
        peer.send(request("GET", "/metrics", connection="close", **headers))
        answer = peer.read_answer()
    assert answer.status == 200, answer
    return answer.body.decode()


def held(pid: int, port: int, **headers: str) -> Held:
    """What the gateway holds, the connection that asks it included."""
    text = read_metrics(port, **headers)
    return Held(metric(text, "gateway_connections"), metric(text, "gateway_subscriptions"), sockets(pid))


def sockets(pid: int) -> int:
    """How many sockets a process has open."""
    return sum(link.startswith("socket:") for link in _links(pid))


def _links(pid: int) -> Iterator[str]:
    for descriptor in list(Path(f"/proc/{pid}/fd").iterdir()):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            yield str(descriptor.readlink())


def memory(pid: int) -> int:
    """Bytes of resident memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def port_of(process: GatewayProcess) -> int:
    return int(process.url.rpartition(":")[2])


@contextmanager
def unharmed(process: GatewayProcess, headers: dict[str, str]) -> Iterator[int]:
    """The gateway's port; afterwards it must live, have logged no fault, and hold nothing more than before."""
    port = port_of(process)
    before, logged = held(process.pid, port, **headers), len(process.log)
    yield port
    assert ask(port, request("GET", "/livez", connection="close")).status == 200
    eventually_equal(lambda: held(process.pid, port, **headers), before)
    said = process.log[logged:]
    assert "Traceback" not in said, said
    assert "ERROR" not in said, said


def check_refusal(answer: Answer) -> None:
    """An error has the form of RFC 9457 with a known code, and is no fault of the gateway's."""
    if answer.status < 400:
        return
    assert answer.headers.get("content-type") == "application/problem+json", answer
    problem = answer.json()
    assert problem["code"] in KINDS, answer
    assert problem["status"] == answer.status != 500, answer


def refused(port: int, data: bytes, status: int, code: str) -> Answer:
    """The answer to these bytes, which is this refusal."""
    answer = ask(port, data)
    check_refusal(answer)
    assert (answer.status, answer.json()["code"]) == (status, code)
    return answer
