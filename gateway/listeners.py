"""Listening sockets: one process's own, or one of several that share a port, each with its own queue."""

import socket
from typing import Final

from gateway.settings import Settings

BACKLOG: Final = 4096


def listen(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A listening socket of this process's own. Raises OSError, which names the address.

    With `shared` other processes of this user may listen on the port too, each with a queue of its own, and the
    kernel deals connections out among them; a queue that all accept from would pile them onto few.
    """
    sock = _bound(host, port, shared=shared)
    try:
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise _named(host, port, error) from None
    sock.setblocking(False)
    return sock


def hold(host: str, port: int) -> socket.socket:
    """A socket that keeps a port for processes that `listen(…, shared=True)`, and gets no connection itself.

    Raises OSError where anybody else has the port already, also one who would share it.
    """
    if port:
        listen(host, port).close()
    return _bound(host, port, shared=True)


def _bound(host: str, port: int, *, shared: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        address = socket.getaddrinfo(host, port, family if host != "localhost" else 0, socket.SOCK_STREAM)[0]
        sock = socket.socket(address[0], socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)
            sock.bind(address[4])
        except OSError:
            sock.close()
            raise
    except OSError as error:
        raise _named(host, port, error) from None
    return sock


def _named(host: str, port: int, error: OSError) -> OSError:
    return OSError(f"cannot listen on {host}, port {port}: {error.strerror or error}")


def url_of(sock: socket.socket, settings: Settings) -> str:
    host, port = sock.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if settings.tls_cert else 'http'}://{shown}:{port}{settings.root_path}/"
