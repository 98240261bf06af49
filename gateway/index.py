"""The index: which channels an event may concern, found by equality terms instead of by trying each filter.

Ten thousand channels that each watch one order cost one dictionary look-up per event.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, Generic, Protocol, TypeVar

from gateway.filters import Filter, keys_at


class Filtered(Protocol):
    @property
    def filter(self) -> Filter | None: ...


T = TypeVar("T", bound=Filtered)


class Index(Generic[T]):
    """Items by their filter's cover (see `Filter.cover`); those without one are candidates always."""

    def __init__(self) -> None:
        self._by_path: dict[str, dict[str, dict[T, None]]] = {}
        self._always: dict[T, None] = {}
        self.size = 0

    def add(self, item: T) -> None:
        self.size += 1
        cover = item.filter.cover if item.filter else None
        if cover is None:
            self._always[item] = None
            return
        for path, key in cover:
            self._by_path.setdefault(path, {}).setdefault(key, {})[item] = None

    def remove(self, item: T) -> None:
        self.size -= 1
        cover = item.filter.cover if item.filter else None
        if cover is None:
            del self._always[item]
            return
        for path, key in cover:
            keys = self._by_path[path]
            del keys[key][item]
            if not keys[key]:
                del keys[key]
            if not keys:
                del self._by_path[path]

    def matching(self, body: Mapping[str, Any]) -> Iterator[T]:
        """The items whose filter matches, each once."""
        for item in self._candidates(body):
            if item.filter is None or item.filter.matches(body):
                yield item

    def _candidates(self, body: Mapping[str, Any]) -> Iterable[T]:
        hits = []
        for path, keys in self._by_path.items():
            for key in keys_at(body, path):
                items = keys.get(key)
                if items:
                    hits.append(items)
        if self._always:
            hits.append(self._always)
        if len(hits) < 2:
            return hits[0] if hits else ()
        return dict.fromkeys(chain.from_iterable(hits))  # a filter may be found by several of its terms
