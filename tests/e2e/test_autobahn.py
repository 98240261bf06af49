"""The Autobahn cases (RFC 6455) against the gateway's WebSocket protocol, with stock uvicorn beside it.

Without the cases on large messages (9) and on compression, which the gateway does not offer (12, 13).
"""

import asyncio
from typing import Any

import kosoku
import pytest
from kosoku._kosoku import CaseResult

from gateway.protocols import EXTENSION
from gateway.wire import frame
from tests.support.serving import serving_app

EXCLUDED = ["9.*", "12.*", "13.*"]
CASES = 247
# Best first.
RANKS = ["OK", "INFORMATIONAL", "NON-STRICT", "UNIMPLEMENTED", "UNCLEAN", "WRONG CODE", "FAILED", "ERROR"]
# A message with a violation right behind it: whether it is still answered, which is OK, or no longer, which is
# NON-STRICT, depends with either server on whether the two arrive in one segment.
RACES = ("3.", "4.")


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers text as ready-made frames where there is the fast path, all else through ASGI."""
    await receive()
    await send({"type": "websocket.accept"})
    socket = scope["extensions"].get(EXTENSION)
    while (message := await receive())["type"] == "websocket.receive":
        text = message.get("text")
        if socket is not None and text is not None:
            await socket.drained()
            socket.write(frame(text.encode()))
        else:
            await send({**message, "type": "websocket.send"})


def _rank(case: str, label: str) -> int:
    if label == "NON-STRICT" and case.startswith(RACES):
        label = "OK"
    return RANKS.index("FAILED" if label.startswith("FAILED") else label)


def _is_worse(case: str, ours: tuple[str, str], stock: tuple[str, str]) -> bool:
    return any(_rank(case, mine) > _rank(case, other) for mine, other in zip(ours, stock, strict=True))


Verdicts = dict[str, tuple[str, str]]


async def _run_cases(port: int) -> list[CaseResult]:
    url = f"ws://127.0.0.1:{port}"
    try:
        return await kosoku.run_fuzzingclient(url, exclude_cases=EXCLUDED, concurrency=4)
    except kosoku.FailureError as error:
        return list(error.results)


def verdicts(*, stock: bool) -> Verdicts:
    """Of each case the verdicts on its messages and on its close."""
    with serving_app(echo, stock=stock, ws_ping_interval=None) as served:
        results = asyncio.run(_run_cases(served.port))
    return {each.case_id: (each.behavior.value, each.behavior_close.value) for each in results}


@pytest.fixture(scope="module")
def ours() -> Verdicts:
    return verdicts(stock=False)


def test_no_autobahn_case_is_worse_than_with_stock_uvicorn(ours: Verdicts) -> None:
    """Frames, fragments, UTF-8, control frames and closes are handled as well as by uvicorn's own protocol."""
    stock = verdicts(stock=True)
    assert len(ours) == CASES
    assert ours.keys() == stock.keys()
    worse = {case: (ours[case], stock[case]) for case in ours if _is_worse(case, ours[case], stock[case])}
    assert worse == {}


def test_only_one_autobahn_case_fails(ours: Verdicts) -> None:
    """7.1.5 alone: a close in the middle of a fragmented message is answered 1002, where Autobahn wants 1000."""
    failed = {
        case for case, (messages, _) in ours.items() if messages in ("FAILED", "ERROR", "UNIMPLEMENTED")
    }
    assert failed == {"7.1.5"}
