"""What the fast path takes from the private parts of uvicorn and websockets, named one by one.

An upgrade that renames or changes any of it fails here first, and says what. The tables are compared with the
source of the gateway, so they can neither miss a name nor keep one that is no longer used.
"""

import ast
import asyncio
import inspect
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httptools
import pytest
import uvicorn
import websockets.http11
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.server import ServerProtocol

import gateway.protocols._ending
import gateway.protocols.http
import gateway.protocols.websocket
import gateway.server
from gateway.protocols.http import MAX_HANDSHAKE_HEADERS, MAX_HANDSHAKE_LINE
from gateway.slim import Gate, Mailbox

# Methods that are overridden or called: their parameters after self.
WEBSOCKET_METHODS = {
    "__init__": ["config", "server_state", "app_state", "_loop"],
    "connection_made": ["transport"],
    "connection_lost": ["exc"],
    "pause_writing": [],
    "data_received": ["data"],
    "handle_connect": ["event"],
    "handle_ping": [],
    "handle_close": ["event"],
    "handle_parser_exception": [],
    "send_receive_event_to_app": [],
    "schedule_ping": [],
    "send_keepalive_ping": [],
    "keepalive_timeout": [],
    "stop_keepalive": [],
    "send": ["message"],
    "shutdown": [],
}
# What a new instance has, and its value then; Any where only the type of use matters.
WEBSOCKET_ATTRIBUTES: dict[str, Any] = {
    "loop": Any,
    "config": Any,
    "logger": Any,
    "transport": None,
    "conn": Any,
    "queue": Any,
    "writable": Any,
    "frames": [],
    "curr_msg_data_type": "bytes",
    "handshake_initiated": False,
    "handshake_complete": False,
    "disconnected": False,
    "close_sent": False,
    "close_timer": None,
    "read_paused": False,
    "ping_interval": 20.0,
    "ping_timer": None,
    "last_ping_rtt": 0.0,
}
WEBSOCKET_HANDSHAKE_ATTRIBUTES = {"scope", "request", "response"}  # set by handle_connect
CONN_MEMBERS = {"accept", "handshake_exc", "send_close", "data_to_send", "fail", "close_sent"}

HTTP_METHODS = {
    "__init__": ["config", "server_state", "app_state", "_loop"],
    "connection_made": ["transport"],
    "connection_lost": ["exc"],
    "pause_writing": [],
    "data_received": ["data"],
    "on_message_begin": [],
    "on_header": ["name", "value"],
    "on_headers_complete": [],
    "on_body": ["body"],
    "on_message_complete": [],
    "on_response_complete": [],
    "_should_upgrade": [],
    "_get_upgrade": [],
    "handle_websocket_upgrade": [],
    "_unsupported_upgrade_warning": [],
    "send_400_response": ["msg"],
    "shutdown": [],
}
HTTP_ATTRIBUTES: dict[str, Any] = {
    "loop": Any,
    "config": Any,
    "logger": Any,
    "transport": None,
    "flow": None,
    "parser": Any,
    "cycle": None,
    "pipeline": Any,
    "scope": None,
    "headers": None,
}
HTTP_REQUEST_ATTRIBUTES = {"url"}  # set by on_message_begin
FLOW_MEMBERS = {"write_paused", "drain", "resume_reading", "_is_writable_event"}
CYCLE_MEMBERS = {
    "body",
    "chunked_encoding",
    "default_headers",
    "disconnected",
    "keep_alive",
    "message_event",
    "more_body",
    "on_response",
    "response_complete",
    "response_started",
    "scope",
    "transport",
    "waiting_for_100_continue",
}
PARSER_MEMBERS = {"set_dangerous_leniencies", "should_upgrade", "get_method", "get_http_version"}

SERVER_METHODS = {
    "__init__": ["config"],
    "serve": ["sockets"],
    "shutdown": ["sockets"],
    "capture_signals": [],
    "handle_exit": ["sig", "frame"],
}
SERVER_ATTRIBUTES = {"should_exit": False, "force_exit": False}


def _app(_scope: Any, _receive: Any, _send: Any) -> Any:
    raise AssertionError("never called")


async def _instance(cls: Callable[..., Any]) -> Any:
    config = uvicorn.Config(_app, http="httptools", ws="websockets-sansio", log_config=None)
    return cls(config=config, server_state=ServerState(), app_state={})


def _parameters(function: Any) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


@pytest.mark.parametrize(
    ("cls", "methods"),
    [
        (WebSocketsSansIOProtocol, WEBSOCKET_METHODS),
        (HttpToolsProtocol, HTTP_METHODS),
        (uvicorn.Server, SERVER_METHODS),
    ],
)
def test_the_methods_of_uvicorn_have_the_known_parameters(cls: Any, methods: dict[str, list[str]]) -> None:
    """What is overridden is called by uvicorn, and what is called exists, both with these parameters."""
    found = {name: _parameters(getattr(cls, name)) if hasattr(cls, name) else None for name in methods}
    assert found == methods


@pytest.mark.parametrize(
    ("cls", "attributes"),
    [(WebSocketsSansIOProtocol, WEBSOCKET_ATTRIBUTES), (HttpToolsProtocol, HTTP_ATTRIBUTES)],
)
async def test_a_new_protocol_has_the_known_attributes(cls: Any, attributes: dict[str, Any]) -> None:
    """Each attribute is there from the start, with the value that the fast path counts on."""
    instance = await _instance(cls)
    missing = object()
    found = {name: getattr(instance, name, missing) for name in attributes}
    assert [name for name, value in found.items() if value is missing] == []
    assert {name: found[name] for name, value in attributes.items() if value is not Any} == {
        name: value for name, value in attributes.items() if value is not Any
    }


def test_a_new_server_has_the_known_attributes() -> None:
    """The two flags by which a drain and a second signal are told apart."""
    server = uvicorn.Server(uvicorn.Config(_app))
    assert {name: getattr(server, name) for name in SERVER_ATTRIBUTES} == SERVER_ATTRIBUTES


@pytest.mark.parametrize(
    ("make", "members"),
    [
        (ServerProtocol, CONN_MEMBERS),
        (lambda: FlowControl(asyncio.Transport()), FLOW_MEMBERS),
        (lambda: httptools.HttpRequestParser(object()), PARSER_MEMBERS),
    ],
)
def test_the_parts_of_a_protocol_have_the_known_members(make: Callable[[], Any], members: set[str]) -> None:
    """What the protocols reach through: websockets' state machine, uvicorn's flow control, httptools."""
    part = make()
    assert {name for name in members if not hasattr(part, name)} == set()


def test_a_request_cycle_has_the_known_attributes() -> None:
    """They are set when it is made, so the transport can be replaced before the application runs."""
    source = inspect.getsource(RequestResponseCycle.__init__)
    assert set(re.findall(r"self\.(\w+)(?:: [^=]+)? = ", source)) >= CYCLE_MEMBERS


@pytest.mark.parametrize(
    ("owner", "attribute", "replacement"),
    [
        (WebSocketsSansIOProtocol, "queue", Mailbox),
        (WebSocketsSansIOProtocol, "writable", Gate),
        (FlowControl, "_is_writable_event", Gate),
        (RequestResponseCycle, "message_event", Gate),
    ],
)
def test_what_replaces_a_part_of_uvicorn_can_all_that_is_asked_of_it(
    owner: Any, attribute: str, replacement: Any
) -> None:
    """The slim replacements of asyncio's Queue and Event have each method that uvicorn calls."""
    uses = _Uses()
    uses.visit(ast.parse(textwrap.dedent(inspect.getsource(owner))))
    assert uses.inner[attribute] <= set(dir(replacement))


def test_the_limits_of_a_handshake_are_those_of_websockets() -> None:
    """What is let through to websockets is within its limits, so that each refusal gets an answer."""
    limits = (websockets.http11.MAX_NUM_HEADERS, websockets.http11.MAX_LINE_LENGTH)
    assert limits == (MAX_HANDSHAKE_HEADERS, MAX_HANDSHAKE_LINE + len("\r\n"))


# Nothing is used that is not named above


class _Uses(ast.NodeVisitor):
    """The members of `self` that a class uses, and the members of those (`self.conn.fail`)."""

    def __init__(self) -> None:
        self.own: set[str] = set()
        self.inner: dict[str, set[str]] = {}

    def visit_Attribute(self, node: ast.Attribute) -> None:
        match node.value:
            case ast.Name(id="self") | ast.Call(func=ast.Name(id="super")):
                self.own.add(node.attr)
            case ast.Attribute(value=ast.Name(id="self"), attr=outer):
                self.inner.setdefault(outer, set()).add(node.attr)
        self.generic_visit(node)


def _class_of(module: Any, name: str) -> ast.ClassDef:
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    return next(each for each in tree.body if isinstance(each, ast.ClassDef) and each.name == name)


def _uses(module: Any, *names: str) -> _Uses:
    """What these classes use, and what they override."""
    uses = _Uses()
    for name in names:
        body = _class_of(module, name)
        uses.visit(body)
        uses.own |= {
            each.name for each in body.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
        }
    return uses


def _names(module: Any, cls: str, variable: str) -> set[str]:
    """The members that a class uses of a local variable."""
    nodes = ast.walk(_class_of(module, cls))
    return {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == variable
    }


@pytest.mark.parametrize(
    ("base", "module", "name", "named"),
    [
        (
            WebSocketsSansIOProtocol,
            gateway.protocols.websocket,
            "WebSocketProtocol",
            WEBSOCKET_METHODS.keys() | WEBSOCKET_ATTRIBUTES.keys() | WEBSOCKET_HANDSHAKE_ATTRIBUTES,
        ),
        (
            HttpToolsProtocol,
            gateway.protocols.http,
            "HttpProtocol",
            HTTP_METHODS.keys() | HTTP_ATTRIBUTES.keys() | HTTP_REQUEST_ATTRIBUTES,
        ),
    ],
)
async def test_every_private_name_in_use_stands_in_the_tables(
    base: Any, module: Any, name: str, named: set[str]
) -> None:
    """A name of uvicorn's that the source uses and the tables miss, or the other way round, is a fault here."""
    late = WEBSOCKET_HANDSHAKE_ATTRIBUTES | HTTP_REQUEST_ATTRIBUTES
    theirs = set(dir(await _instance(base))) - set(dir(object)) - {"__dict__"} | late
    used = _uses(gateway.protocols._ending, "Ending").own | _uses(module, name).own
    assert used & (theirs | {"__init__"}) == named


def test_every_name_of_the_server_in_use_stands_in_the_tables() -> None:
    """The same for uvicorn's server; `serve` is called from outside the class."""
    theirs = set(dir(uvicorn.Server(uvicorn.Config(_app)))) - set(dir(object)) | {"__init__"}
    used = _uses(gateway.server, "Server").own | {"serve"}
    assert used & theirs == SERVER_METHODS.keys() | SERVER_ATTRIBUTES.keys()


def test_every_private_part_in_use_stands_in_the_tables() -> None:
    """The same for what is reached through `conn`, `flow`, `cycle` and `parser`."""
    websocket = _uses(gateway.protocols.websocket, "WebSocketProtocol").inner
    http = _uses(gateway.protocols.http, "HttpProtocol").inner
    assert websocket["conn"] == CONN_MEMBERS
    assert http["flow"] == FLOW_MEMBERS
    assert http["parser"] == PARSER_MEMBERS
    cycle = http["cycle"] | http["_running"] | _names(gateway.protocols.http, "HttpProtocol", "cycle")
    assert cycle == CYCLE_MEMBERS
