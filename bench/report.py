"""What a bench run says: tables, targets, and the machine it ran on."""

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Final

_LIBRARIES: Final = (
    "uvicorn",
    "uvloop",
    "httptools",
    "websockets",
    "starlette",
    "sse-starlette",
    "orjson",
    "redis",
)

Cell = str | float


@dataclass(frozen=True, slots=True)
class Scale:
    """How large a run is: numbers of clients, events and subjects, and seconds per measurement."""

    subscribers: int = 1000
    seconds: float = 4.0
    turns: int = 5
    turn_seconds: float = 2.0
    warm_up: float = 0.5
    idle: int = 5000
    settle: float = 3.0
    filters: int = 10_000
    rounds: int = 9
    round_seconds: float = 1.0
    lines: int = 200_000
    few_subjects: int = 1000
    many_subjects: int = 1_000_000
    snapshots: int = 200


FULL: Final = Scale()
QUICK: Final = Scale(
    subscribers=20,
    seconds=0.2,
    turns=1,
    turn_seconds=0.2,
    warm_up=0.05,
    idle=100,
    settle=0.1,
    filters=100,
    rounds=1,
    round_seconds=0.2,
    lines=2000,
    few_subjects=100,
    many_subjects=2000,
    snapshots=5,
)


@dataclass(frozen=True, slots=True)
class Target:
    """A promise: `measured` may be at most `limit`, or with `at_least` must reach it."""

    text: str
    measured: float
    limit: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit

    def line(self) -> str:
        relation = "at least" if self.at_least else "at most"
        verdict = "PASS" if self.met else "FAIL"
        return f"{verdict}  {self.text}: {number(self.measured)} ({relation} {number(self.limit)})"


@dataclass(slots=True)
class Table:
    """Rows under a title, as Markdown. A cell that is a number is shown with about three digits."""

    title: str
    columns: Sequence[str]
    rows: list[Sequence[Cell]] = field(default_factory=list)

    def markdown(self) -> str:
        lines = [f"**{self.title}**", "", _line(self.columns), _line(["---"] * len(self.columns))]
        lines += [
            _line([each if isinstance(each, str) else number(each) for each in row]) for row in self.rows
        ]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Report:
    """What one part of the bench found. `notes` are sentences that belong beside the figures."""

    table: Table
    targets: Sequence[Target] = ()
    notes: Sequence[str] = ()


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def number(value: float) -> str:
    """`value` to three digits, large ones whole: 0.0123, 1.23, 12.3, 1,230."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def medians(turns: Sequence[Sequence[float]]) -> list[float]:
    """Of turns with the same figures, the median of each figure."""
    return [median(each) for each in zip(*turns, strict=True)]


def machine() -> str:
    """CPU, cores, kernel, versions, and how busy the machine was before."""
    libraries = ", ".join(f"{name} {version(name)}" for name in _LIBRARIES)
    return (
        f"{_cpu_model()}, {os.cpu_count()} cores, Linux {platform.release()}, load {os.getloadavg()[0]:.2f}; "
        f"Python {platform.python_version()}, {libraries}"
    )


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()
