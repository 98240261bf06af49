"""A call to a running gateway: one answer, or one line why there is none."""

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from gateway.remote import Remote, RemoteError


@contextmanager
def answering(answer: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """A server that gives one connection this answer: its URL, and what it was sent."""
    heard: list[bytes] = []

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with closing(connection):
            heard.append(connection.recv(65536))
            connection.sendall(answer)

    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", heard
        thread.join(30)
        assert not thread.is_alive()


def refused(remote: Remote) -> str:
    with pytest.raises(RemoteError) as caught:
        remote.call("GET", "/x")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_call_is_one_request() -> None:
    """Below the URL's path, with the token and the parameters that are given."""
    with answering(b'HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n{"a":1}') as (url, heard):
        answer = Remote(f"{url}/orders/", "abc\n").call("POST", "/x/a%2Fb", origin="redis:ä&b", after=None)
    assert answer == {"a": 1}
    lines = heard[0].decode().split("\r\n")
    assert lines[0] == "POST /orders/x/a%2Fb?origin=redis%3A%C3%A4%26b HTTP/1.1"
    assert "Authorization: Bearer abc" in lines


def test_no_content_is_none() -> None:
    """And without a token none is sent."""
    with answering(b"HTTP/1.1 204 No Content\r\n\r\n") as (url, heard):
        assert Remote(url).call("DELETE", "/x") is None
    assert b"authorization" not in heard[0].lower()


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (b'HTTP/1.1 404 Not Found\r\nContent-Length: 20\r\n\r\n{"detail":"no such"}', "answers 404: no such"),
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 4\r\n\r\noops", "answers 502: Bad Gateway"),
        (b"HTTP/1.1 307 Moved\r\nLocation: http://elsewhere/\r\nContent-Length: 0\r\n\r\n", "answers 307: Temporary Redirect"),
        (b"SSH-2.0-OpenSSH\r\n", "does not answer: SSH-2.0-OpenSSH"),
        (b"", "does not answer: Remote end closed connection without response"),
    ],
)  # fmt: skip
def test_what_is_no_success_is_one_line(answer: bytes, line: str) -> None:
    """With the reason that a gateway gives; a redirect is not followed, least of all with the token."""
    with answering(answer) as (url, _):
        assert refused(Remote(url, "abc")) == f"{url} {line}"


def test_nobody_there_is_one_line() -> None:
    """As soon as it is known."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
    assert "does not answer: [Errno 111]" in refused(Remote(f"http://127.0.0.1:{port}"))


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:8000", "ftp://h", "http://", "http://h:x", "http://h:99999", "http://[::1", "http://h/?a=1"]
)  # fmt: skip
def test_what_is_no_url_is_told(url: str) -> None:
    """With the form of one."""
    assert refused(Remote(url)) == f"{url} is no URL of a gateway: write http://HOST:PORT"


@pytest.mark.parametrize("token", ["a\nb", "a\r\nX: y", "ä", "a\0"])
def test_a_token_that_is_none_is_not_told(token: str) -> None:
    """Neither in the error nor in what Python shows of the value."""
    remote = Remote("http://127.0.0.1:1", token)
    assert refused(remote) == "the token has characters that no token has"
    assert token not in repr(remote)
