"""What holds for every test."""

import sys
from collections.abc import Iterator

import pytest
import uvicorn

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
