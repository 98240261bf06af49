"""What operators and browsers ask of a node: probes, metrics, the board and its files."""

import asyncio
import mimetypes
from pathlib import Path
from typing import Final

from starlette.responses import Response

from gateway.errors import GatewayError
from gateway.http import Call, JsonResponse
from gateway.log import LogUnavailableError
from gateway.node import Node
from gateway.worker_metrics import merge

_STORE_SECONDS: Final = 0.5  # well below what another worker waits for these metrics

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "font-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_PAGE_HEADERS = {
    "Content-Security-Policy": CSP,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def static_directory() -> Path:
    """The pages' files: beside the package in a checkout, within it in an installed wheel."""
    packaged = Path(__file__).parent / "static"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "static"


async def livez(_call: Call) -> Response:
    return JsonResponse({"status": "ok"})


async def readyz(call: Call) -> Response:
    """200 or 503, with each check and its reason."""
    node = call.node
    store = await _check_store(node)
    ingests = next((f"{each.name}: {fault}" for each in node.ingests if (fault := each.fault())), None)
    draining = node.connections.draining
    checks: dict[str, dict[str, bool | str | None]] = {
        "store": {"ok": store is None, "reason": store},
        "ingests": {"ok": ingests is None, "reason": ingests},
        "draining": {"ok": not draining, "reason": "the gateway is about to stop" if draining else None},
    }
    ready = all(check["ok"] for check in checks.values())
    return JsonResponse(
        {"status": "ready" if ready else "not ready", "checks": checks}, 200 if ready else 503
    )


async def _check_store(node: Node) -> str | None:
    try:
        reason = await node.log.check()
    except LogUnavailableError as error:
        reason = str(error)
    node.metrics.store_up.set(reason is None)
    return reason


async def metrics(call: Call) -> Response:
    """Of all workers of this machine."""
    node = call.node
    if not node.settings.ops_port:
        call.principal.require_admin()
    if node.workers is None:
        body = await exposition(node)
    else:
        own, others = await asyncio.gather(exposition(node), node.workers.others())
        body = merge([own, *others])
    return Response(body, media_type="text/plain; version=0.0.4")


async def exposition(node: Node) -> bytes:
    """This process's metrics as of now; a store that takes its time counts as down."""
    try:
        async with asyncio.timeout(_STORE_SECONDS):
            await _check_store(node)
    except TimeoutError:
        node.metrics.store_up.set(0)
    node.metrics.channels.set(len(node.hub.channels))
    node.metrics.log_lag.set(max(0, node.log.head - node.hub.position))
    return node.metrics.render()


async def board(_call: Call) -> Response:
    return _page("index.html")


async def static(call: Call) -> Response:
    """A file of the pages, by its plain name."""
    return _page(call.param("name"))


def _page(name: str) -> Response:
    """The whole file, which is small; a response that knows ranges would refuse them in a form of its own."""
    if name not in {path.name for path in static_directory().iterdir() if path.is_file()}:
        raise GatewayError("not_found", f"there is no file {name[:200]}")
    media_type = "text/javascript" if name.endswith(".js") else mimetypes.guess_type(name)[0]
    content = (static_directory() / name).read_bytes()
    return Response(content, headers=_PAGE_HEADERS, media_type=media_type)
