"""Imports go down the layers only, so that the way of an event is a corridor and every part can be read alone."""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import gateway

ROOT = Path(gateway.__file__).parent

# A module may import from the rows above its own and from within its own package.
LAYERS = (
    ("errors", "origins", "limits", "remote", "slim", "tasks"),
    ("jsontext", "keys", "redis_url", "redis_errors"),
    ("redis_clients",),
    ("peers",),
    ("shared_limits",),
    ("event", "settings"),
    ("filters", "cursor", "logs"),
    ("principal", "listeners"),
    ("log", "tickets", "metrics", "workers", "worker_metrics"),
    ("auth", "wire", "tail", "index", "since", "intake", "neighbours"),
    ("lane",),
    ("hub",),
    ("reader",),
    ("connection",),
    ("connections", "protocols"),
    ("node",),
    ("http",),
    ("idempotency", "guard"),
    ("ingest", "transports", "access", "dead_letters", "operations"),
    ("connections_api",),
    ("app",),
    ("server", "letters_command"),
    ("cli",),
    ("__main__",),
)
LAYER_OF = {name: number for number, names in enumerate(LAYERS) for name in names}


def modules() -> dict[str, Path]:
    """Each module by its dotted name below `gateway`."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            found[name] = path
    return found


MODULES = modules()


def imports(nodes: Iterator[ast.AST]) -> set[str]:
    """The modules of this package that these statements import."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "gateway":
            within = (node.module or "").removeprefix("gateway").removeprefix(".")
            for alias in node.names:
                full = f"{within}.{alias.name}" if within else alias.name
                found.add(full if full in MODULES else within)
        elif isinstance(node, ast.Import):
            found |= {
                each.name.removeprefix("gateway.") for each in node.names if each.name.startswith("gateway.")
            }
    return found - {""}


def tree(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text())


def top(name: str) -> str:
    return name.partition(".")[0]


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_go_down_the_layers_only(name: str) -> None:
    """Also those within functions; every module has its layer."""
    for other in imports(ast.walk(tree(name))):
        if top(other) != top(name):
            assert LAYER_OF[top(other)] < LAYER_OF[top(name)], f"{name} imports {other}"


def test_the_layers_are_those_of_the_package() -> None:
    """No row names what is not there."""
    assert set(LAYER_OF) == {top(name) for name in MODULES}


def test_there_is_no_circle() -> None:
    """Within the packages neither."""
    graph = {name: imports(ast.walk(tree(name))) - {name} for name in MODULES}
    for name in graph:
        graph[name] -= {top(name)}  # a package's own words, which its __init__ gives to its modules
    tuple(graphlib.TopologicalSorter(graph).static_order())


def test_nobody_reaches_into_a_package() -> None:
    """What begins with an underscore is its package's own."""
    for name in MODULES:
        for other in imports(ast.walk(tree(name))):
            private = any(part.startswith("_") and part != "__main__" for part in other.split("."))
            assert not private or top(other) == top(name), f"{name} imports {other}"


@pytest.mark.parametrize("other", ["app", "server"])
def test_the_application_is_imported_by_what_starts_it_alone(other: str) -> None:
    """By the command only where it is needed, so that `--help` and `version` are there at once."""
    importers = {name for name in MODULES if other in imports(ast.walk(tree(name)))}
    assert importers <= {"server", "cli"}
    assert other not in imports(iter(tree("cli").body))
