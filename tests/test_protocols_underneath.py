"""What stock uvicorn and websockets do at the places where the fast path hooks in.

Names alone prove little: an upgrade that keeps them and changes the order of things fails here.
"""

import asyncio
import sys
import threading
from collections.abc import Callable
from typing import Any

import httptools
import pytest
import websockets.http11
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import InvalidState
from websockets.server import ServerProtocol

from gateway.protocols.http import MAX_HANDSHAKE_LINE
from tests.support.serving import serving_app
from tests.support.sockets import CLOSE, DEADLINE, PING, TEXT, Peer, WebSocketPeer, frame, handshake, request


async def _accept_and_return(_scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept"})


async def _echo(_scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({**message, "type": "websocket.send"})


def _watching(base: Any, method: str, note: Callable[[Any], None]) -> Any:
    """A subclass of uvicorn's that notes what holds right after `method`."""

    def watched(self: Any, *args: Any) -> None:
        getattr(base, method)(self, *args)
        note(self)

    return type("Watching", (base,), {method: watched})


def test_handle_connect_makes_the_scope_before_the_application_runs() -> None:
    """So an extension that is put into the scope right after it is seen by the application."""
    seen: list[Any] = []

    def extend(protocol: Any) -> None:
        protocol.scope["extensions"]["a"] = protocol
        seen.append(protocol.response.status_code)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["extensions"]["a"].scope is scope)
        await _accept_and_return(scope, receive, send)

    protocol = _watching(WebSocketsSansIOProtocol, "handle_connect", extend)
    with serving_app(app, stock=True, ws=protocol) as served, Peer(served.port) as peer:
        peer.send(handshake("/"))
        assert peer.read_head()[0] == 101
        peer.read_to_end()
    assert seen == [101, True]


def test_a_malformed_handshake_is_noted_and_starts_no_application() -> None:
    """`handshake_exc` says so where no request event comes, and stock uvicorn answers nothing."""
    seen: list[Any] = []

    def note(protocol: Any) -> None:
        seen.append((protocol.handshake_initiated, protocol.conn.handshake_exc is not None))
        protocol.transport.close()

    protocol = _watching(WebSocketsSansIOProtocol, "data_received", note)
    with serving_app(_echo, stock=True, ws=protocol) as served, Peer(served.port) as peer:
        peer.send(handshake("/", x_long="x" * (MAX_HANDSHAKE_LINE + 1)))
        assert peer.read_to_end() == b""
    assert seen == [(False, True)]


def test_the_upgraded_protocol_takes_the_transport_before_data_received_returns() -> None:
    """So the HTTP protocol knows afterwards that the connection is no longer its own."""
    seen: list[bool] = []

    def note(protocol: Any) -> None:
        seen.append(protocol.transport.get_protocol() is protocol)

    protocol = _watching(HttpToolsProtocol, "data_received", note)
    with serving_app(_echo, stock=True, http=protocol) as served, WebSocketPeer(served.port) as peer:
        peer.leave()
    assert seen == [False]


def test_a_close_timer_keeps_the_connection_until_the_peer_has_answered() -> None:
    """After a close of its own uvicorn ends the transport at the peer's close, not at the application's end."""

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await _accept_and_return(_scope, receive, send)
        await send({"type": "websocket.close", "code": 4008})

    with serving_app(app, stock=True) as served, WebSocketPeer(served.port, "/") as peer:
        assert peer.read_close() == 4008
        (protocol,) = served.connections
        assert protocol.close_timer is not None
        peer.send(frame(TEXT, b"late") + frame(CLOSE, (4008).to_bytes(2, "big")))
        assert peer.read_to_end() == b""


def test_a_received_message_pauses_reading_until_the_application_takes_it() -> None:
    """`read_paused` says so: a client is read no faster than its messages are worked off."""
    gate = asyncio.Event()

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await _accept_and_return(_scope, receive, send)
        await gate.wait()
        while (await receive())["type"] != "websocket.disconnect":
            pass

    noted = threading.Event()
    protocol = _watching(WebSocketsSansIOProtocol, "send_receive_event_to_app", lambda _: noted.set())
    with serving_app(app, stock=True, ws=protocol) as served, WebSocketPeer(served.port, "/") as peer:
        peer.send(frame(TEXT, b"one"))
        assert noted.wait(DEADLINE)
        (found,) = served.connections
        assert served.call(lambda: found.read_paused)
        served.call(gate.set)
        peer.send(frame(PING, b"?"))
        assert peer.read_frame().payload == b"?"
        assert not served.call(lambda: found.read_paused)


def test_a_handshake_can_be_looked_at_before_it_is_accepted() -> None:
    """Asking whether websockets would accept it has no effect on the answer to come."""
    conn = ServerProtocol()
    conn.receive_data(handshake("/"))
    (event,) = conn.events_received()
    assert isinstance(event, websockets.http11.Request)
    assert [conn.accept(event).status_code for _ in range(2)] == [101, 101]
    assert conn.data_to_send() == []


def test_an_upgrade_that_is_declined_ends_the_parser_with_the_place_it_came_to() -> None:
    """httptools says where the rest begins, and uvicorn asks the overridden method while it handles that."""
    seen: list[Any] = []
    protocol = type(
        "Watching",
        (HttpToolsProtocol,),
        {"_unsupported_upgrade_warning": lambda _: seen.append(sys.exception())},
    )
    offer = request("POST", "/", b"{}", upgrade="h2c", connection="Upgrade")
    with serving_app(_echo, stock=True, http=protocol) as served, Peer(served.port) as peer:
        peer.send(offer)
        peer.finish_sending()
        peer.read_to_end()
    (upgrade,) = seen
    assert isinstance(upgrade, httptools.HttpParserUpgrade)
    assert upgrade.args == (len(offer) - 2,)


def test_a_closed_state_machine_refuses_another_close() -> None:
    """InvalidState is what `close` of the fast path takes for "already closed"."""
    conn = ServerProtocol()
    with pytest.raises(InvalidState):
        conn.send_close(1000)
    assert conn.data_to_send() == []
