"""The fast path: thin subclasses of uvicorn's protocols that give the application a socket to write to.

uvicorn still owns the connection and websockets still checks every incoming frame. What is added: shared,
ready-made bytes go straight to the transport, and peers that stall, vanish, flood or never ask are removed.

Private parts of uvicorn are used here and nowhere else; `tests/test_protocols.py` names each of them.
"""

from typing import Any

import uvicorn

from gateway.protocols._ending import CLOSE_GRACE, EXTENSION, HIGH_WATER, LOW_WATER, UNSENT_BYTES, Timeouts
from gateway.protocols.http import HttpProtocol
from gateway.protocols.websocket import WebSocketProtocol


class Config(uvicorn.Config):
    """uvicorn's configuration with the gateway's protocols, their timeouts, and the prefix of links in their answers.

    The prefix is not uvicorn's `root_path`, which would change the paths that the application sees.
    """

    def __init__(self, app: Any, *, timeouts: Timeouts, prefix: str = "", **options: Any) -> None:
        super().__init__(app, http=HttpProtocol, ws=WebSocketProtocol, **options)
        self.timeouts = timeouts
        self.prefix = prefix


__all__ = [
    "CLOSE_GRACE",
    "EXTENSION",
    "HIGH_WATER",
    "LOW_WATER",
    "UNSENT_BYTES",
    "Config",
    "HttpProtocol",
    "Timeouts",
    "WebSocketProtocol",
]
