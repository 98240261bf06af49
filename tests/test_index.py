"""The index: it finds channels fast and never changes what matches."""

from dataclasses import dataclass
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.filters import Filter, parse_filter
from gateway.index import Index


@dataclass(frozen=True, eq=False)
class Item:
    filter: Filter | None


values = st.sampled_from(["a", "b", "ab", 1, 1.0, 2, True, False, None, ""])
paths = st.sampled_from(["type", "subject", "tenant", "data.a", "data.a.0", "data.*", "data.a.*", "data.*.b"])
leaves = st.one_of(
    st.builds(lambda path, value: {"exact": {path: value}}, paths, values),
    st.builds(lambda path, some: {"in": {path: some}}, paths, st.lists(values, min_size=1, max_size=3)),
    st.builds(lambda path: {"prefix": {path: "a"}}, paths),
    st.builds(lambda path, wanted: {"exists": {path: wanted}}, paths, st.booleans()),
)
wanted = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(lambda some: {"all": some}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda some: {"any": some}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda one: {"not": one}, inner),
    ),
    max_leaves=5,
)
items = st.lists(st.none() | wanted, max_size=8).map(
    lambda filters: [Item(None if each is None else parse_filter(each)) for each in filters]
)
data = st.recursive(
    values,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab0"), inner, max_size=2),
    max_leaves=6,
)
bodies = st.fixed_dictionaries(
    {"type": st.sampled_from(["a", "b", "ab"])},
    optional={"subject": st.sampled_from(["a", "b"]), "tenant": values, "data": data},
)


@settings(max_examples=250)
@given(items, st.lists(bodies, max_size=5), st.data())
def test_it_finds_what_trying_each_filter_finds(
    items: list[Item], bodies: list[dict[str, Any]], draw: st.DataObject
) -> None:
    """Each item whose filter matches, once, and no other; also after some were removed."""
    index: Index[Item] = Index()
    for item in items:
        index.add(item)
    gone = draw.draw(st.sets(st.integers(0, 7)))
    for number, item in enumerate(items):
        if number in gone:
            index.remove(item)
    kept = [item for number, item in enumerate(items) if number not in gone]
    assert index.size == len(kept)
    for body in bodies:
        found = list(index.matching(body))
        assert len(found) == len(set(found))
        assert set(found) == {each for each in kept if each.filter is None or each.filter.matches(body)}


@settings(max_examples=100)
@given(items)
def test_what_was_removed_leaves_nothing(items: list[Item]) -> None:
    """An index that had items and lost them all is as small as a new one."""
    index: Index[Item] = Index()
    for item in items:
        index.add(item)
    for item in items:
        index.remove(item)
    assert vars(index) == vars(Index())


def test_a_channel_that_watches_one_order_costs_the_others_nothing() -> None:
    """Of ten thousand filters on a subject, an event makes only its own be evaluated."""
    tried: list[str] = []

    def watching(subject: str) -> Item:
        plain = parse_filter({"exact": {"subject": subject}})

        def matches(body: Any) -> bool:
            tried.append(subject)
            return plain.matches(body)

        return Item(Filter(plain.canonical, matches, plain.operator, cover=plain.cover))

    index: Index[Item] = Index()
    for number in range(10_000):
        index.add(watching(f"o-{number}"))
    assert len(list(index.matching({"type": "order.updated", "subject": "o-77"}))) == 1
    assert tried == ["o-77"]
