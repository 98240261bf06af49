"""What a gateway process holds: open connections, file descriptors, memory; and waiting for it to be so."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.support.sockets import Peer, request

PATIENCE: Final = 15.0  # seconds until a condition that does not come true fails the test
_PAUSE = 0.02


def eventually(condition: Callable[[], Any], *, within: float = PATIENCE) -> None:
    """Returns once the condition holds; fails with its last value otherwise."""
    deadline = time.monotonic() + within
    while not (last := condition()):
        assert time.monotonic() < deadline, f"never came true within {within} s; at last {last!r}"
        time.sleep(_PAUSE)


@dataclass(frozen=True, slots=True)
class Held:
    """What a process holds for its clients. `streams` are open streams and polls by the gauges."""

    streams: float
    subscriptions: float
    files: int


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
    files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return Held(metric(text, "gateway_connections"), metric(text, "gateway_subscriptions"), files)


def memory(pid: int) -> int:
    """Bytes of resident memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
