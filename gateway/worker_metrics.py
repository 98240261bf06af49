"""One `/metrics` for all workers of a machine: whichever is asked adds up its own and the others' series.

Each worker serves its exposition on a socket in the supervisor's directory, which is for this user alone. A worker
that is down or does not answer in time is left out. Nothing of it goes through the store.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

logger = logging.getLogger(__name__)

DEADLINE: Final = 1.0  # seconds that the others have
_SUFFIX: Final = ".metrics"
# What is no sum over workers: the worst of them, or what all have in common.
_COMBINE: Final[dict[str, Callable[[float, float], float]]] = {
    "gateway_event_loop_lag_seconds": max,
    "gateway_log_lag_events": max,
    "gateway_store_up": min,
    "gateway_build_info": max,
}

Exposition = Callable[[], Awaitable[bytes]]


class WorkerMetrics:
    """A worker's way to the others' metrics. `directory` is common to all, `number` this one's own."""

    def __init__(self, directory: Path, number: int) -> None:
        self._directory = directory
        self._path = directory / f"{number}{_SUFFIX}"

    @contextlib.asynccontextmanager
    async def serving(self, exposition: Exposition) -> AsyncIterator[None]:
        """Answers the others with what `exposition` gives, as long as it lasts. Raises OSError."""

        async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.closing(writer), contextlib.suppress(ConnectionError):
                body = await exposition()
                writer.write(b"%d\n%b" % (len(body), body))
                await writer.drain()

        self._path.unlink(missing_ok=True)  # of a predecessor that was killed
        async with await asyncio.start_unix_server(answer, self._path):
            try:
                yield
            finally:
                self._path.unlink(missing_ok=True)

    async def others(self) -> Sequence[bytes]:
        """The expositions of those that answer within DEADLINE."""
        paths = [path for path in self._directory.glob(f"*{_SUFFIX}") if path != self._path]
        answers = await asyncio.gather(*map(_ask, paths))
        return [each for each in answers if each]


async def _ask(path: Path) -> bytes:
    """A worker's exposition; nothing where it does not answer as a whole in time."""
    try:
        async with asyncio.timeout(DEADLINE):
            reader, writer = await asyncio.open_unix_connection(path)
            with contextlib.closing(writer):
                return await reader.readexactly(int(await reader.readline()))
    except (OSError, EOFError, ValueError, TimeoutError) as error:
        logger.info("%s is left out of the metrics: %r", path.stem, error)
        return b""


def merge(expositions: Iterable[bytes]) -> bytes:
    """One exposition for several: each series summed, or combined as _COMBINE says."""
    merged: dict[str, Metric] = {}
    values: dict[str, dict[_Series, float]] = {}
    for exposition in expositions:
        for family in text_string_to_metric_families(exposition.decode()):
            merged.setdefault(family.name, family)
            _add(values.setdefault(family.name, {}), family)
    for name, family in merged.items():
        family.samples = []
        for (sample, labels), value in values[name].items():
            family.add_sample(sample, dict(labels), value)
    registry = CollectorRegistry()
    registry.register(_Families(merged.values()))
    return generate_latest(registry)


_Series = tuple[str, tuple[tuple[str, str], ...]]  # the sample's name and its labels


def _add(values: dict[_Series, float], family: Metric) -> None:
    combine = _COMBINE.get(family.name)
    for sample in family.samples:
        series = sample.name, tuple(sample.labels.items())
        if series not in values:
            values[series] = sample.value
        elif combine is None:
            values[series] += sample.value
        else:
            values[series] = combine(values[series], sample.value)


class _Families:
    """Ready-made families as prometheus-client collects them."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterator[Any]:
        yield from self._families
