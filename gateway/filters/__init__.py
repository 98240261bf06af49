"""Filters: what a subscription wants, said in JSON or in a URL's query.

A filter is parsed once into its canonical form, so equal filters are one value, and compiled into
a matcher. It also tells by which values an event that matches can be found: `cover` for the hub's
index, `lookups` for the log's.
"""

from gateway.filters.canonical import Filter, all_of, any_of
from gateway.filters.parser import parse_filter, parse_filter_json, restore_filter
from gateway.filters.paths import keys_at, split_path
from gateway.filters.query import parse_query
from gateway.filters.values import index_key

__all__ = [
    "Filter",
    "all_of",
    "any_of",
    "index_key",
    "keys_at",
    "parse_filter",
    "parse_filter_json",
    "parse_query",
    "restore_filter",
    "split_path",
]
