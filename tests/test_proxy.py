"""The proxy of the tests breaks connections as it says: else what is tested with it would prove nothing."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.support.proxy import HOST, Proxy

SECONDS = 30


class Echo:
    """A server that answers with what comes, and keeps it."""

    def __init__(self) -> None:
        self.received = b""
        self.heard = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            self.received += data
            self.heard.set()
            writer.write(data)
        writer.close()


@pytest.fixture
async def echo() -> AsyncIterator[tuple[Echo, Proxy]]:
    echo = Echo()
    server = await asyncio.start_server(echo.serve, HOST, 0)
    async with Proxy(server.sockets[0].getsockname()[1]) as proxy:
        yield echo, proxy
    server.close()


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def ask(self, text: bytes) -> bytes:
        """The answer of as many bytes. Raises ConnectionError, asyncio.IncompleteReadError."""
        self.writer.write(text)
        return await asyncio.wait_for(self.reader.readexactly(len(text)), SECONDS)

    async def is_dropped(self) -> bool:
        try:
            return await asyncio.wait_for(self.reader.read(1), SECONDS) == b""
        except ConnectionError:
            return True

    def close(self) -> None:
        self.writer.transport.abort()


async def connect(proxy: Proxy) -> Client:
    return Client(*await asyncio.open_connection(HOST, proxy.port))


async def until(echo: Echo, received: bytes) -> None:
    async with asyncio.timeout(SECONDS):
        while echo.received != received:
            await echo.heard.wait()
            echo.heard.clear()


async def test_it_forwards_both_ways(echo: tuple[Echo, Proxy]) -> None:
    """And counts who came."""
    client = await connect(echo[1])
    assert await client.ask(b"hello") == b"hello"
    assert echo[1].accepted == 1
    client.close()


async def test_a_cut_drops_everyone_and_refuses_until_it_heals(echo: tuple[Echo, Proxy]) -> None:
    """On the same port afterwards."""
    proxy = echo[1]
    client = await connect(proxy)
    await client.ask(b"hello")
    proxy.cut()
    assert await client.is_dropped()
    with pytest.raises(ConnectionRefusedError):
        await connect(proxy)
    await proxy.heal()
    again = await connect(proxy)
    assert await again.ask(b"again") == b"again"
    client.close()
    again.close()


async def test_a_stall_swallows_everything(echo: tuple[Echo, Proxy]) -> None:
    """Of connections there were and of new ones; healing drops them, and new ones work."""
    server, proxy = echo
    client = await connect(proxy)
    await client.ask(b"hello")
    proxy.stall()
    late = await connect(proxy)
    for each in (client, late):
        each.writer.write(b"lost")
        await each.writer.drain()
    await proxy.heal()
    assert await client.is_dropped()
    assert await late.is_dropped()
    again = await connect(proxy)
    assert await again.ask(b"again") == b"again"
    assert server.received == b"helloagain"
    for each in (client, late, again):
        each.close()


async def test_without_answers_the_server_hears_and_nobody_is_told(echo: tuple[Echo, Proxy]) -> None:
    """As when a connection breaks after a command has been done."""
    server, proxy = echo
    client = await connect(proxy)
    proxy.lose_answers()
    client.writer.write(b"done")
    await until(server, b"done")
    await proxy.heal()
    assert await client.is_dropped()
    client.close()


async def test_a_reset_drops_those_that_are_there(echo: tuple[Echo, Proxy]) -> None:
    """With a RST; the next is welcome."""
    proxy = echo[1]
    client = await connect(proxy)
    await client.ask(b"hello")
    proxy.reset()
    with pytest.raises(ConnectionResetError):
        await client.ask(b"lost")
    again = await connect(proxy)
    assert await again.ask(b"again") == b"again"
    client.close()
    again.close()


async def test_without_a_target_connections_are_dropped_and_a_stall_keeps_them() -> None:
    """A stalled proxy is a server that accepts and never says a word."""
    async with Proxy(1) as proxy:
        client = await connect(proxy)
        assert await client.is_dropped()
        client.close()
        proxy.stall()
        silent = await connect(proxy)
        silent.writer.write(b"hello")
        await silent.writer.drain()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(silent.reader.read(1), 0.2)
        silent.close()
