"""`GET /events`: a stream or a long poll, by what the client accepts."""

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.auth import unauthenticated
from gateway.errors import GatewayError
from gateway.http import Call, identify, list_header, problem_response, unavailable
from gateway.log import LogUnavailableError
from gateway.node import Node
from gateway.transports import longpoll, sse
from gateway.transports.query import parse_events_query


def wants_poll(accept: str | None) -> bool:
    """Whether this Accept header means long poll. Raises `not_acceptable` where it names neither kind."""
    if accept is None or not accept.strip():
        return False
    kinds = {each.partition(";")[0].strip().lower() for each in accept.split(",") if not _refused(each)}
    if "text/event-stream" in kinds:
        return False
    if "application/json" in kinds:
        return True
    if kinds & {"*/*", "text/*"}:
        return False
    if "application/*" in kinds:
        return True
    raise GatewayError("not_acceptable", "text/event-stream and application/json are what there is")


def _refused(kind: str) -> bool:
    """Weight 0 (RFC 9110, section 12.4.2)."""
    return any(
        part.strip().replace(" ", "").lower() in ("q=0", "q=0.0", "q=0.00", "q=0.000")
        for part in kind.split(";")[1:]
    )


async def get_events(node: Node, scope: Scope, receive: Receive, send: Send) -> None:
    """The ASGI application of GET and HEAD on the path."""
    serve = await _prepare(Request(scope, receive), node)
    await serve(scope, receive, send)


async def _prepare(request: Request, node: Node) -> ASGIApp:
    """What answers the request: a response, or a stream, which holds nothing of the request."""
    try:
        principal = await identify(node, request.scope)
        if principal is None:
            raise unauthenticated()
        polls = wants_poll(list_header(request, "accept"))
        last_event_id = request.headers.get("last-event-id")
        query = parse_events_query(request.scope["query_string"], last_event_id, node.cursors)
        call = Call.of(node, request, principal)
        return await longpoll.poll(call, query) if polls else sse.stream(call, query)
    except GatewayError as error:
        return problem_response(error, node.settings.root_path)
    except LogUnavailableError as error:
        return problem_response(unavailable(str(error)), node.settings.root_path)
