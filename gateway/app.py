"""The application: the only module that knows everybody, and puts them together."""

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from urllib.parse import unquote

from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from gateway import access, connections_api, dead_letters, operations
from gateway.auth import Authenticator, Revocations, Verifier
from gateway.connection import Streams
from gateway.connections import Connections, Heartbeat, Limits
from gateway.cursor import Cursors
from gateway.errors import GatewayError
from gateway.event import Defaults
from gateway.guard import Guard
from gateway.http import Endpoint, Handler, problem_response
from gateway.hub import Hub
from gateway.ingest import http as http_ingest
from gateway.ingest import orders, pubsub, streams
from gateway.intake import Intake, Sizes
from gateway.lane import Flusher
from gateway.limits import RateLimit, Rates
from gateway.log import Log, LogStats, Retention
from gateway.log.redis import RedisLog
from gateway.log.sqlite import SqliteLog
from gateway.metrics import Metrics
from gateway.neighbours import Neighbours
from gateway.node import Ingest, Node
from gateway.origins import Origins, ProxyHeaders
from gateway.peers import LocalPeers, node_id
from gateway.redis_clients import RedisClients
from gateway.settings import Settings
from gateway.shared_limits import SharedLimits, SharedRates
from gateway.tasks import end
from gateway.tickets import Tickets
from gateway.transports.events import get_events
from gateway.transports.sse import beat as beat_sse
from gateway.transports.websocket import websocket
from gateway.worker_metrics import WorkerMetrics
from gateway.workers import Worker

logger = logging.getLogger(__name__)

Work = Callable[[], Awaitable[None]]

_STOP_SECONDS = 5.0  # for ingests to store what they have fetched
_LAG_INTERVAL = 1.0  # seconds between two looks at how late the loop is


def make_log(settings: Settings, stats: LogStats | None = None, node: str | None = None) -> Log:
    """The log that the settings name, not opened yet. `node` is what this node is called there."""
    retention = Retention(settings.retention_events, settings.retention_age, settings.latest_age)
    if settings.has_redis_store:
        return RedisLog(
            RedisClients(settings.store),
            retention=retention,
            index=settings.index,
            stats=stats,
            node=node,
        )
    _, _, place = settings.store.partition(":")
    return SqliteLog(place or None, retention=retention, index=settings.index, stats=stats)


async def open_node(
    settings: Settings, worker: Worker | None = None, ingest_redis: RedisClients | None = None
) -> Node:
    """Opens the log and builds everything around it. Raises LogCorruptError or LogUnavailableError.

    `ingest_redis` is where events are fetched from.
    """
    metrics = Metrics()
    stats = LogStats(observe_append=metrics.append.observe)
    id_ = node_id()
    log = make_log(settings, stats, id_)
    cursors = Cursors(settings.cursor_key.get_secret_value() if settings.cursor_key else None)
    flusher = Flusher(
        asyncio.get_running_loop(),
        settings.flush_ms / 1000,
        observe=metrics.flushed,
        more_coming=lambda: stats.waiting > 0,
    )
    hub = Hub(flusher, cursors)
    await log.open(hub.publish, lambda: hub.reset(log.epoch, log.head), wants_previous=hub.wants_previous)
    hub.begin(log.epoch, log.head)
    revocations = Revocations(await log.revocations())
    neighbours = Neighbours(RedisClients(settings.store), id_) if settings.has_redis_store else None
    shared = neighbours.limits if neighbours and settings.has_keys else None
    tickets = Tickets(log.secret)
    verifier = _verifier(settings)
    limits = Limits(settings.max_connections, settings.max_connections_per_token)
    sizes = Sizes(settings.max_event_bytes, settings.max_batch_events, settings.max_batch_bytes)
    intake = Intake(log, metrics, sizes, Defaults())
    return Node(
        id=id_,
        settings=settings,
        metrics=metrics,
        log=log,
        hub=hub,
        cursors=cursors,
        streams=Streams(log, hub, cursors, frozenset(settings.index) | {"subject", "type"}, metrics),
        connections=Connections(limits, metrics, shared=shared, revoked=revocations.revoked),
        websocket_beat=Heartbeat(settings.peer_timeout / 3, lambda connection: connection.beat()),
        sse_beat=Heartbeat(settings.peer_timeout / 4, beat_sse),
        intake=intake,
        origins=Origins(settings.origins),
        revocations=revocations,
        tickets=tickets,
        authenticator=Authenticator(verifier, revocations, tickets, log.use_once),
        publish_rates=_publish_rates(settings, shared),
        peers=neighbours.peers if neighbours else LocalPeers(),
        neighbours=neighbours,
        ingests=_ingests(settings, worker, ingest_redis, log, intake) if ingest_redis else (),
        idempotent_keys=set(),
        redrives={pubsub.KIND: pubsub.read_again, streams.KIND: streams.read_again},
        workers=WorkerMetrics(worker.directory, worker.number) if worker else None,
    )


def _publish_rates(settings: Settings, shared: SharedLimits | None) -> RateLimit | None:
    if settings.publish_rate is None:
        return None
    return SharedRates(shared, settings.publish_rate) if shared else Rates(settings.publish_rate)


def _ingests(
    settings: Settings, worker: Worker | None, redis: RedisClients, log: Log, intake: Intake
) -> list[Ingest]:
    ingests: list[Ingest] = []
    if settings.pubsub:
        ingests.append(pubsub.PubSub(redis, settings.pubsub, log, intake))
    if settings.streams:
        consumer = f"{socket.gethostname()}-{settings.port}-{worker.number if worker else 0}"
        ingests.append(streams.StreamIngest(redis, settings.streams, consumer, log, intake))
    return ingests


def _verifier(settings: Settings) -> Verifier | None:
    if not settings.has_keys:
        return None
    secret = settings.jwt_secret.get_secret_value() if settings.jwt_secret else None
    return Verifier(secret=secret, public_key_pem=settings.jwt_public_key, jwks_url=settings.jwks_url)


def _router(node: Node) -> Router:
    def path(template: str, *, public: bool = False, **handlers: Handler) -> Route:
        return Route(template, Endpoint(node, handlers, public=public))

    ops = bool(node.settings.ops_port)  # a port of its own, which is for the inside
    return Router(
        [
            path("/orders", POST=orders.create, GET=orders.index),
            path("/tickets", POST=access.create_ticket),
            path("/revocations", POST=access.create_revocation),
            path("/connections", public=ops, GET=connections_api.index),
            path("/connections/{connection_id}", public=ops, DELETE=connections_api.delete),
            path("/connections/{connection_id}/token", POST=access.renew_token),
            path("/dead-letters", GET=dead_letters.index),
            path("/dead-letters/redrive", POST=dead_letters.redrive_all),
            path("/dead-letters/{letter_id:path}/redrive", POST=dead_letters.redrive),
            path("/dead-letters/{letter_id:path}", GET=dead_letters.show, DELETE=dead_letters.delete),
            path("/ws", public=True, GET=_upgrade_required),
            path("/livez", public=True, GET=operations.livez),
            path("/readyz", public=True, GET=operations.readyz),
            path("/metrics", public=ops, GET=operations.metrics),
            path("/", public=True, GET=operations.board),
            path("/static/{name:path}", public=True, GET=operations.static),
        ],
        redirect_slashes=False,
    )


async def _upgrade_required(_call: object) -> Response:
    raise GatewayError(
        "bad_request",
        "this path speaks WebSocket, and this was no complete handshake of it (RFC 6455, section 4.1, version 13)",
        headers={"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"},
        status=426,
    )


def path_segments(scope: Scope) -> list[str]:
    """The path's segments, each decoded by itself: a slash within one came as %2F.

    `scope["path"]` is decoded as a whole, so it no longer tells. Where a server gives nothing else, it decides.
    """
    path: str = scope["path"]
    raw = (scope.get("raw_path") or b"").decode("latin-1")
    if unquote(raw) != path:
        return path.split("/")
    return [unquote(each) for each in raw.split("/")]


class Application:
    """The ASGI application of an open node. Streams are dispatched here, so that an idle one holds few frames."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._router = _router(node)
        self._order = Endpoint(node, {"GET": orders.show})
        self._order_status = Endpoint(node, {"PATCH": orders.update})
        self._publish = Endpoint(node, {"POST": http_ingest.publish}, also=("GET", "HEAD"))
        self._router.default = self._not_found

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        path = scope["path"]
        if scope["type"] == "websocket" and path == "/ws":
            return websocket(self._node, scope, receive, send)
        if scope["type"] == "http" and path == "/events" and scope["method"] in ("GET", "HEAD"):
            return get_events(self._node, scope, receive, send)
        if scope["type"] == "http" and path == "/events":
            return self._publish(scope, receive, send)
        if scope["type"] == "http" and path.startswith("/orders/"):
            return self._dispatch_order(scope, receive, send)
        return self._router(scope, receive, send)

    def _dispatch_order(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """An order's id is the subject of events, which may have slashes: no template of a router fits it."""
        match path_segments(scope)[2:]:
            case [order_id] if order_id:
                serve = self._order
            case [order_id, "status"] if order_id:
                serve = self._order_status
            case _:
                return self._not_found(scope, receive, send)
        scope["path_params"] = {"order_id": order_id}
        return serve(scope, receive, send)

    async def _not_found(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
        error = GatewayError("not_found", f"there is nothing at {scope['path'][:200]}")
        await problem_response(error, self._node.settings.root_path)(scope, receive, send)


class Gateway:
    """The whole gateway as one ASGI application, opened and closed by the server's lifespan messages.

    `node` is there between the two. `worker` is its place where it is one of several processes.
    """

    def __init__(self, settings: Settings, worker: Worker | None = None) -> None:
        self.settings = settings
        self._worker = worker
        self.node: Node | None = None
        self._app: ProxyHeaders | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        else:
            await self.dispatch(scope, receive, send)

    def dispatch(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """The same without lifespan and without a coroutine of its own, whose frame an idle stream would hold."""
        assert self._app is not None
        done: Awaitable[None] = self._app(scope, receive, send)
        return done

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        async with self.running():
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Node]:
        """Open while it lasts. Raises LogCorruptError or LogUnavailableError."""
        redis = _ingest_redis(self.settings)
        node = self.node = await open_node(self.settings, self._worker, redis)
        guarded = Guard(Application(node), self.settings, node.origins)
        self._app = ProxyHeaders(guarded, list(self.settings.trusted_proxies))  # type: ignore[arg-type]  # uvicorn's ASGI types are its own
        tasks = [asyncio.create_task(_supervised(name, work)) for name, work in _works(node)]
        try:
            async with _with_neighbours(node), _answering_workers(node):
                yield node
        finally:
            await _stop(node.ingests)
            await end(*tasks)
            if redis is not None:
                await redis.aclose()
            await node.log.close()


def _ingest_redis(settings: Settings) -> RedisClients | None:
    if settings.redis_url and (settings.pubsub or settings.streams):
        return RedisClients(settings.redis_url)
    return None


async def _stop(ingests: Sequence[Ingest]) -> None:
    """In order where that is soon done: what they leave behind others do, or the next start."""
    try:
        async with asyncio.timeout(_STOP_SECONDS):
            await asyncio.gather(*(each.stop() for each in ingests))
    except TimeoutError:
        logger.warning("the ingests from Redis did not end within %g s", _STOP_SECONDS)


def _works(node: Node) -> Iterator[tuple[str, Work]]:
    """What runs in the background as long as the node is open, by name."""
    yield "websocket heartbeat", node.websocket_beat.run
    yield "sse heartbeat", node.sse_beat.run
    yield "loop watch", lambda: _watch_loop(node.metrics)
    yield from ((f"ingest of {each.name}", each.run) for each in node.ingests)


@contextlib.asynccontextmanager
async def _with_neighbours(node: Node) -> AsyncIterator[None]:
    """The other nodes count on this one while it lasts. Raises LogUnavailableError."""
    access.serve_peers(node)
    connections_api.serve_peers(node)
    neighbours = node.neighbours
    if neighbours is None:
        yield
        return
    tasks: list[asyncio.Task[None]] = []
    try:
        await neighbours.open()
        neighbours.missed.set()  # what was said since the log was opened
        works: list[tuple[str, Work]] = [
            ("bus", neighbours.peers.follow),
            ("node heartbeat", neighbours.peers.beat),
            ("limits of all nodes", neighbours.limits.run),
            ("revocations", lambda: access.follow_revocations(node, neighbours.missed)),
        ]
        tasks += [asyncio.create_task(_supervised(name, work)) for name, work in works]
        yield
    finally:
        await end(*tasks)
        await neighbours.close()


def _answering_workers(node: Node) -> AbstractAsyncContextManager[None]:
    """The other workers of this machine can ask for this one's metrics."""
    if node.workers is None:
        return contextlib.nullcontext()
    return node.workers.serving(lambda: operations.exposition(node))


async def _supervised(name: str, work: Work) -> None:
    """Runs a background task for ever: one that fails says so and starts again."""
    while True:
        try:
            await work()
        except Exception:
            logger.exception("%s failed and starts again", name)
            await asyncio.sleep(1.0)


async def _watch_loop(metrics: Metrics) -> None:
    while True:
        before = time.monotonic()
        await asyncio.sleep(_LAG_INTERVAL)
        metrics.loop_lag.set(max(0.0, time.monotonic() - before - _LAG_INTERVAL))


def create_app(settings: Settings | None = None) -> Gateway:
    """The gateway as an ASGI application for any server; its lifespan must be on."""
    return Gateway(settings or Settings())
