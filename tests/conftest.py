"""What holds for every test."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from hypothesis import HealthCheck, settings

from tests.support.redis_server import RedisFactory, RedisServer

# How long an example takes says something of the machine alone.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

_HANDLE_EXIT = uvicorn.Server.handle_exit


@pytest.fixture(autouse=True)
def _sse_starlette_forgotten() -> Iterator[None]:
    """sse-starlette patches uvicorn when it is imported, and remembers for the whole process that a server has
    stopped: neither shall reach the next test."""
    yield
    module = sys.modules.get("sse_starlette.sse")
    if module is not None:
        module.AppStatus.should_exit = False
        uvicorn.Server.handle_exit = _HANDLE_EXIT  # type: ignore[method-assign]


@pytest.fixture
def redis_factory(tmp_path: Path) -> Iterator[RedisFactory]:
    """Starts as many Redis servers, Sentinels and clusters as the test wants, and kills them after it."""
    factory = RedisFactory(tmp_path)
    try:
        yield factory
    finally:
        factory.kill9()


@pytest.fixture
def redis_server(redis_factory: RedisFactory) -> RedisServer:
    """A Redis of the test's own: empty, without a password, with nothing persisted."""
    return redis_factory.server()
